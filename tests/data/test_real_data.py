"""Real files: every row is converted or listed as dropped."""

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.data.helpers import load
from toolkit.data import Splits, check_texts
from toolkit.data.row_errors import DROPPED_FILE
from toolkit.errors import DatasetError
from toolkit.options.arguments import DataArguments, SourceArguments

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def find(file: str) -> Path:
    path = DATA / file
    if not path.exists():
        pytest.skip(f"the real data file {file} is not at ../shared/data")
    return path


def load_file(file: str, kind: str, *, test: float | None = None, **options: Any) -> Splits:
    return load(str(find(file)), kind=kind, mixture={"test_split_size": test}, **options)


def count_rows(file: str) -> int:
    path = find(file)
    if path.suffix == ".gz":
        with gzip.open(path, "rt") as lines:
            return sum(bool(line.strip()) for line in lines)
    return len(json.loads(path.read_text()))


HH, SHAREGPT = "hh_rlhf_harmless.jsonl.gz", "sharegpt_preferences.json"
CHINESE, ALPACA = "sharegpt_preferences_zh.json", "alpaca_instructions.json"
# rows of each file that are malformed, counted by reading them
MALFORMED = {HH: 6, SHAREGPT: 0, CHINESE: 0, ALPACA: 0}


@pytest.mark.parametrize("kind", ["prompt-completion", "preference", "prompt-only", "unpaired"])
@pytest.mark.parametrize("file", [HH, SHAREGPT, CHINESE, ALPACA])
def test_converted_and_dropped_rows_add_up(
    file: str, kind: str, tmp_path: Path, tokenizer: Any
) -> None:
    options: dict[str, Any] = {"drop_bad_rows": True, "folder": tmp_path}
    if file == ALPACA and kind in ("preference", "unpaired"):
        with pytest.raises(DatasetError, match=rf"its format is alpaca .*{kind} needs"):
            load_file(file, kind, **options)
        return
    splits = load_file(file, kind, test=0.1, **options)
    splits = check_texts(splits, tokenizer, DataArguments())
    dropped = tmp_path / DROPPED_FILE
    lost = dropped.read_text().splitlines() if dropped.exists() else []
    assert len(lost) == MALFORMED[file]
    rows = [(o.place, o.number) for origins in splits.origins.values() for o in origins]
    each = 2 if kind == "unpaired" else 1
    assert len(rows) == each * len(set(rows)) == len(splits["train"]) + len(splits["test"])
    assert len(set(rows)) + len(lost) == count_rows(file)
    prompts = [{str(row["prompt"]) for row in splits[name]} for name in ("train", "test")]
    assert not prompts[0] & prompts[1]


def test_alpaca_has_one_duplicate(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(load_file(ALPACA, "prompt-completion", drop_duplicates=True)["train"]) == 499
    assert "; 1 train row duplicates an earlier one (" in capsys.readouterr().out


def test_hh_dialogues_give_an_example_for_each_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = load_file(HH, "preference", drop_bad_rows=True)["train"]
    file = tmp_path / "d.jsonl"
    file.write_text(
        "".join(json.dumps({"messages": r["prompt"] + r["chosen"]}) + "\n" for r in rows)
    )
    capsys.readouterr()
    splits = load(str(file), mixture={"test_split_size": 0.1}, turns="all")
    answers = file.read_text().count('"role": "assistant"')
    output = capsys.readouterr().out
    assert f"; {count_rows(HH) - MALFORMED[HH]} dialogues became {answers} examples" in output
    assert len(splits["train"]) + len(splits["test"]) == answers
    counts = Counter(o.number for origins in splits.origins.values() for o in origins)
    assert all(counts[i] == (len(r["prompt"]) + 1) // 2 for i, r in enumerate(rows, start=1))
    sides = [{o.number for o in splits.origins[split]} for split in ("train", "test")]
    assert not sides[0] & sides[1]


def test_mixture_of_real_files_keeps_shares(
    tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    shares = {HH: 0.5, SHAREGPT: 0.2, CHINESE: 0.05, ALPACA: 0.25}
    sources = [SourceArguments(str(find(file)), fraction=f) for file, f in shares.items()]
    splits = load(sources=sources, drop_bad_rows=True, mixture={"test_split_size": 0.1})
    # 150 rows are a fifth of 750, and the other files have more than their shares of that
    drawn = {HH: 375, SHAREGPT: 150, CHINESE: 38, ALPACA: 188}
    output = capsys.readouterr().out
    for file, count in drawn.items():
        of = count_rows(file)
        rows = f"{count} rows" if count == of else f"{count} of {of} rows"
        assert f"), {rows} -> prompt-completion (train " in output
    dropped = sum(int(line.split("dropped ")[1].split()[0]) for line in output.splitlines()
                  if ": dropped " in line)  # fmt: skip
    assert len(splits["train"]) + len(splits["test"]) == sum(drawn.values()) - dropped
    assert len(check_texts(splits, tokenizer, DataArguments())["train"]) == len(splits["train"])


def test_hh_error_names_malformed_rows() -> None:
    with pytest.raises(DatasetError) as caught:
        load_file(HH, "preference")
    message = str(caught.value)
    assert 'row 87 of 1156: "chosen" turn 4 (Assistant) must be non-empty text, got ""' in message
    assert "4 rows fail this check (87, 517, 926, 1104)" in message
    assert "2 rows fail other checks: 2 roles out of order (668, 764). Fix them" in message


def test_hh_summary_reports_dropped_rows(capsys: pytest.CaptureFixture[str]) -> None:
    splits = load_file(HH, "preference", test=0.05, drop_bad_rows=True)
    assert len(splits["train"]) + len(splits["test"]) == 1156 - 6
    output = capsys.readouterr().out
    assert "dropped 6 of 1156 rows: 4 empty text (87, 517, 926, 1104)" in output
    sizes = f"(train {len(splits['train'])}, test {len(splits['test'])})"
    assert f"hh (by its columns chosen, rejected), 1156 rows -> preference {sizes}" in output


def test_hh_transcript_becomes_messages() -> None:
    first = load_file(HH, "preference", max_rows=1)["train"][0]
    assert [m["role"] for m in first["prompt"]] == ["user", "assistant"] * 2 + ["user"]
    assert first["prompt"][0]["content"] == "what are some pranks with a pen i can do?"
    assert first["prompt"][2] == {"role": "user", "content": "yep"}
    (chosen,) = first["chosen"]
    assert chosen["role"] == "assistant"
    assert chosen["content"].startswith("No, sorry!  All of these involve a pen")
