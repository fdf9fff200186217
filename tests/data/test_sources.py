"""Names of datasets: data files that are shipped beside the configs."""

import json
from pathlib import Path

import pytest

from toolkit.data.auxiliary import load_split
from toolkit.errors import DatasetError

NAME = "smollm2-135m/prompts.jsonl"


def prompts(name: str) -> list[str]:
    rows = load_split(name, "train", option="split", drop_bad_rows=False, seed=0)
    return [row["prompt"][0]["content"] for row in rows]


def test_shipped_data_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(set(prompts(NAME))) == 400
    shown = load_split(
        "smollm2-135m/demonstrations.jsonl",
        "train",
        option="split",
        kind="prompt-completion",
        drop_bad_rows=False,
        seed=0,
    )
    assert len(shown) == 200
    assert not {row["prompt"][0]["content"] for row in shown} & set(prompts(NAME))
    with pytest.raises(DatasetError, match="no such file"):
        prompts("smollm2-135m/other.jsonl")
    Path(NAME).parent.mkdir()
    row = {"prompt": [{"role": "user", "content": "Mine?"}]}
    Path(NAME).write_text(json.dumps(row) + "\n")
    assert prompts(NAME) == ["Mine?"]  # a file here comes first
