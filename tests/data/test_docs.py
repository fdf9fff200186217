"""The tables of docs/data.md agree with the code."""

import re

import pytest

from tests.data.helpers import EXAMPLES, docs_table
from toolkit.data import FORMATS, convert_row, detect_format
from toolkit.data.convert import COLUMNS, KINDS, SOURCES, check_conversion
from toolkit.errors import DatasetError


def test_table_of_formats_agrees_with_code() -> None:
    rows = docs_table("Formats")
    assert [name.strip("`") for name, *_ in rows] == list(FORMATS)
    for cell, columns, content, _ in rows:
        name = cell.strip("`")
        format = FORMATS[name]
        assert detect_format([EXAMPLES[name]], place="x") == name
        assert set(re.findall(r"`(\w+)`", columns)) == {*format.columns, *format.optional}, name
        assert content == format.content, name


@pytest.mark.parametrize("name", FORMATS)
def test_examples_convert_to_every_kind_of_their_content(name: str) -> None:
    for kind in KINDS:
        if FORMATS[name].content in SOURCES[kind]:
            check_conversion(format=name, kind=kind, place="x")
            rows = convert_row(EXAMPLES[name], format=name, kind=kind)
            assert rows
            assert all(set(COLUMNS[kind]) <= set(row) for row in rows)
        else:
            with pytest.raises(DatasetError, match=f"its format is {name} .*{kind} needs"):
                check_conversion(format=name, kind=kind, place="x")


def test_table_of_contents_agrees_with_code() -> None:
    rows = docs_table("Rows that a recipe makes")
    assert {row[0] for row in rows} == {format.content for format in FORMATS.values()}
    for content, *cells in rows:
        kinds = ("prompt-completion", "preference", "unpaired", "prompt-only")
        for kind, cell in zip(kinds, cells, strict=True):
            assert (cell not in ("no", "as text")) == (content in SOURCES[kind]), (content, kind)
