"""Real files: every row is converted or accounted for."""

from pathlib import Path
from typing import Any

import pytest
from trl.scripts.utils import DatasetMixtureConfig, ScriptArguments

from toolkit.arguments import DataArguments
from toolkit.data import load_splits
from toolkit.errors import DatasetError

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def load(file: str, kind: str, *, test: float | None = None, **run_args: Any) -> dict[str, Any]:
    path = DATA / file
    if not path.exists():
        pytest.skip(f"the real data file {file} is not at ../shared/data")
    return load_splits(
        ScriptArguments(dataset_name=str(path)),
        DatasetMixtureConfig(test_split_size=test),
        DataArguments(**run_args),
        kind=kind,
        seed=0,
    )


@pytest.mark.parametrize(
    ("file", "kind", "rows"),
    [
        ("sharegpt_preferences.json", "preference", 150),
        ("sharegpt_preferences.json", "prompt-completion", 150),
        ("sharegpt_preferences_zh.json", "preference", 60),
        ("sharegpt_preferences_zh.json", "prompt-only", 60),
        ("alpaca_instructions.json", "prompt-completion", 500),
        ("alpaca_instructions.json", "prompt-only", 500),
    ],
)
def test_all_rows_are_converted(file: str, kind: str, rows: int) -> None:
    splits = load(file, kind, test=0.1)
    assert len(splits["train"]) + len(splits["test"]) == rows
    prompts = [{str(row["prompt"]) for row in splits[name]} for name in ("train", "test")]
    assert not prompts[0] & prompts[1]


def test_alpaca_is_no_preference_data() -> None:
    with pytest.raises(DatasetError, match=r"its format is alpaca .*preference needs"):
        load("alpaca_instructions.json", "preference")


def test_hh_rows_that_are_malformed_are_named() -> None:
    with pytest.raises(DatasetError) as caught:
        load("hh_rlhf_harmless.jsonl.gz", "preference")
    message = str(caught.value)
    assert 'row 87 of 1156: "chosen" turn 4 (Assistant) must be non-empty text, got ""' in message
    assert "4 rows fail this check (87, 517, 926, 1104)" in message
    assert "2 rows fail others: 2 roles out of order (668, 764). Fix them" in message


@pytest.mark.parametrize("kind", ["preference", "prompt-completion", "prompt-only"])
def test_hh_counts_add_up(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    splits = load("hh_rlhf_harmless.jsonl.gz", kind, test=0.05, drop_bad_rows=True)
    assert len(splits["train"]) + len(splits["test"]) == 1156 - 6
    said = capsys.readouterr().out
    assert "dropped 6 of 1156 rows: 4 empty text (87, 517, 926, 1104)" in said
    assert f"hh, 1156 rows -> {kind} (train {len(splits['train'])}, test {len(splits['test'])}" in (
        said
    )


def test_hh_prompt_and_answers_are_the_transcript() -> None:
    first = load("hh_rlhf_harmless.jsonl.gz", "preference", max_rows=1)["train"][0]
    assert [m["role"] for m in first["prompt"]] == ["user", "assistant"] * 2 + ["user"]
    assert first["prompt"][0]["content"] == "what are some pranks with a pen i can do?"
    assert first["prompt"][2] == {"role": "user", "content": "yep"}
    (chosen,) = first["chosen"]
    assert chosen["role"] == "assistant"
    assert chosen["content"].startswith("No, sorry!  All of these involve a pen")
