"""The held-out prompts of a run come from the test rows that its run.json records, and from no other."""

import json
from pathlib import Path

import pytest
from trl import DatasetMixtureConfig, ScriptArguments

from tests.app.conftest import edit_json
from toolkit.app.answering.held_out import held_out_prompts
from toolkit.data.loading import load_splits
from toolkit.data.splits import hash_rows
from toolkit.errors import ConfigError
from toolkit.options.arguments import DataArguments
from toolkit.runs.run import Run

DIALOGUE = [
    {"role": r, "content": c} for r, c in (("user", "A"), ("assistant", "B"), ("user", "C"))
]
TEST = ["Why?", "Two\nlines?", "{brace}", "Why?", "x" * 8001]


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A DPO run with a test split of messages, as training records it."""
    data = tmp_path / "data"
    data.mkdir()
    for split, prompts in (("train", [user("Who?")]), ("test", [*map(user, TEST), DIALOGUE])):
        rows = [{"prompt": p, "chosen": reply("Yes."), "rejected": reply("No.")} for p in prompts]
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    script = ScriptArguments(dataset_name=str(data))
    splits = load_splits(script, DatasetMixtureConfig(), DataArguments(), kind="preference", seed=0)
    run = Run.start(tmp_path / "dpo", recipe="dpo").finish()
    edit_json(
        run.path / "run.json",
        config={"dataset_name": str(data), "seed": 0, "datasets": [], "sources": []},
        inputs={"test rows": hash_rows(splits["test"])},
    )
    return Run.load(run.path)


def reply(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def test_prompts_of_the_test_split_fill_batch(run: Run) -> None:
    assert held_out_prompts(run) == ["Why?", "Two\nlines?", "{brace}"]


def test_changed_rows_are_rejected(run: Run) -> None:
    file = Path(run.config["dataset_name"]) / "test.jsonl"
    file.write_text(file.read_text().replace("Why?", "A secret"))
    with pytest.raises(ConfigError, match="other test rows than in training"):
        held_out_prompts(run)


def test_unreadable_rows_are_described_only_in_the_terminal(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path(run.config["dataset_name"]) / "test.jsonl"
    file.write_text('{"secret": 1}\n')
    with pytest.raises(ConfigError, match="cannot be read") as error:
        held_out_prompts(run)
    assert "secret" not in str(error.value) and "secret" in capsys.readouterr().err


@pytest.mark.parametrize(
    "config",
    [
        {"dataset_name": "someone/dataset"},
        {"sources": [{"dataset_name": "someone/dataset"}]},
        {"datasets": [{"path": "json"}]},
    ],
)
def test_datasets_of_the_hub_are_not_read(run: Run, config: dict[str, object]) -> None:
    edit_json(run.path / "run.json", config=run.config | config)
    with pytest.raises(ConfigError, match="on the hub"):
        held_out_prompts(Run.load(run.path))
