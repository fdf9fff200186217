"""docs/data.md says what the code does: its formats, their examples and what they become."""

import json
import re
from pathlib import Path

import pytest

from toolkit.data import FORMATS, convert_row, detect_format
from toolkit.data.convert import Kind, check_conversion
from toolkit.errors import DatasetError


def table(title: str) -> list[list[str]]:
    """The rows of the table under a heading of docs/data.md, without its head."""
    page = Path(__file__).resolve().parents[2] / "docs" / "data.md"
    part = page.read_text(encoding="utf-8").split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in part.split("\n### ")[0].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_formats_of_the_page_are_those_of_the_code() -> None:
    rows = table("Formats")
    assert [name.strip("`") for name, *_ in rows] == list(FORMATS)
    for cell, columns, example in rows:
        name, row = cell.strip("`"), json.loads(example.strip("`"))
        assert detect_format([row], place="x") == name
        named = set(re.findall(r"`(\w+)`", columns))
        assert named == {*FORMATS[name].columns, *FORMATS[name].optional}, name
        kind: Kind = "text" if name == "text" else "prompt-only"
        assert len(convert_row(row, format=name, kind=kind)) == 1


def test_formats_of_the_page_become_what_it_says() -> None:
    kinds: list[Kind] = ["prompt-completion", "preference", "unpaired", "prompt-only"]
    rows = table("What a recipe makes of them")
    assert [name.strip("`") for name, *_ in rows] == list(FORMATS)
    for cell, *says in rows:
        name = cell.strip("`")
        for kind, word in zip(kinds, says, strict=True):
            if word in ("no", "as text"):
                with pytest.raises(DatasetError):
                    check_conversion(format=name, kind=kind, place="x")
            else:
                check_conversion(format=name, kind=kind, place="x")
