"""Prompts for labelers come from text files and from data files."""

import json
from pathlib import Path

import pytest

from toolkit.app.judgements.battles import read_prompts
from toolkit.errors import DatasetError


def write(file: Path, *rows: object) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_text_file_has_one_prompt_per_line(tmp_path: Path) -> None:
    file = tmp_path / "p.txt"
    file.write_text("Why?\r\n\n  How? \nWhy?\n" + "x" * 8001)
    assert read_prompts(file) == ["Why?", "How?"]


def test_text_file_of_another_system_is_read_or_rejected(tmp_path: Path) -> None:
    file = tmp_path / "P.TXT"
    file.write_bytes("Größe?\rWhy?".encode("utf-8-sig"))
    assert read_prompts(file) == ["Größe?", "Why?"]
    for content in ("Größe?".encode("cp1252"), "Größe?".encode("utf-16")):
        file.write_bytes(content)
        with pytest.raises(DatasetError, match="not UTF-8 text; save the file as UTF-8"):
            read_prompts(file)
    file.write_bytes(b"Why?\0")
    with pytest.raises(DatasetError, match="binary data"):
        read_prompts(file)


def test_data_file_of_any_format_gives_its_prompts(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    rows = [
        {"prompt": "Why?", "chosen": "So.", "rejected": "No."},
        {"prompt": talk[:1], "chosen": talk[1:], "rejected": [talk[1] | {"content": "?"}]},
        {"prompt": [*talk, talk[0]], "chosen": talk[1:], "rejected": [talk[1] | {"content": "?"}]},
        {"prompt": "", "chosen": "So.", "rejected": "No."},
    ]
    text = write(tmp_path / "text.jsonl", rows[0], rows[3], rows[0] | {"prompt": "Who?"})
    assert read_prompts(text) == ["Why?", "Who?"]
    assert read_prompts(write(tmp_path / "m.jsonl", rows[1], rows[2])) == ["Hi"]
    assert read_prompts(write(tmp_path / "alone.jsonl", {"prompt": "When?"})) == ["When?"]


def test_file_without_usable_prompts_raises(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe")
    for name in ("empty.txt", "bytes.txt", "none.txt", "none.jsonl"):
        with pytest.raises(DatasetError, match=name):
            read_prompts(tmp_path / name)
