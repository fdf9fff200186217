"""Pretraining text from JSONL."""

import json
from pathlib import Path
from typing import Any

import pytest

from toolkit.data.auxiliary import held_out_texts, pretraining_texts
from toolkit.errors import ConfigError

# JSON may hold all of these as they are; str.splitlines() breaks at each
TEXTS = ["one\u2028line", "one\u2029line", "one\u0085line", "Ends."]


def test_a_line_of_jsonl_ends_at_a_line_break_alone(tmp_path: Path, tokenizer: Any) -> None:
    file = tmp_path / "texts.jsonl"
    rows = [json.dumps({"text": text}, ensure_ascii=False) for text in TEXTS]
    file.write_text("\r\n\n".join(rows) + "\n\n", encoding="utf-8", newline="")
    assert pretraining_texts(str(file), tokenizer) == TEXTS
    assert held_out_texts(str(file), tokenizer, count=2) == TEXTS[:2]


def test_no_more_lines_are_read_than_asked_for(tmp_path: Path, tokenizer: Any) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text('{"text": "a"}\n{"text": "b"}\n{broken', encoding="utf-8")
    assert pretraining_texts(str(file), tokenizer, count=2) == ["a", "b"]
    with pytest.raises(ConfigError, match="must be JSONL with `text`"):
        pretraining_texts(str(file), tokenizer)
