"""Demonstrations and pretraining text."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.helpers import pairs, write_rows
from toolkit.data.auxiliary import held_out_texts, load_demonstrations, pretraining_texts
from toolkit.errors import ConfigError
from toolkit.options.arguments import DataArguments

# JSON may contain all of these unescaped; str.splitlines() splits at each.
TEXTS = ["one\u2028line", "one\u2029line", "one\u0085line", "Ends."]


def test_texts_split_only_at_line_breaks(tmp_path: Path, tokenizer: Any) -> None:
    file = tmp_path / "texts.jsonl"
    rows = [json.dumps({"text": text}, ensure_ascii=False) for text in TEXTS]
    file.write_text("\r\n\n".join(rows) + "\n\n", encoding="utf-8", newline="")
    assert pretraining_texts(str(file), tokenizer) == TEXTS
    assert held_out_texts(str(file), tokenizer, count=2) == TEXTS[:2]


def test_texts_read_no_line_after_the_count(tmp_path: Path, tokenizer: Any) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text('{"text": "a"}\n{"text": "b"}\n{broken', encoding="utf-8")
    assert pretraining_texts(str(file), tokenizer, count=2) == ["a", "b"]
    with pytest.raises(ConfigError, match="must be JSONL with `text`"):
        pretraining_texts(str(file), tokenizer)


def test_demonstrations_are_a_seeded_sample_of_train(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", pairs(3000))
    (tmp_path / "test.jsonl").write_text("{not JSON\n", encoding="utf-8")  # it must not be read

    def sample(seed: int, **options: Any) -> list[int]:
        rows = load_demonstrations(str(tmp_path), DataArguments(**options), seed=seed)
        assert all(completion == "a" + str(prompt)[1:] for prompt, completion in rows)
        return [int(str(prompt)[1:]) for prompt, _ in rows]

    first = sample(0)
    assert len(first) == len(set(first)) == 1000
    # the mean of a thousand of 3,000 numbers is 1499.5 with a standard error of 22
    assert abs(sum(first) / 1000 - 1499.5) < 110
    assert first == sample(0)
    assert first != sample(1)
    assert sample(0, max_rows=5) == [0, 1, 2, 3, 4]
    assert load_demonstrations(None, DataArguments(), seed=0) == []
