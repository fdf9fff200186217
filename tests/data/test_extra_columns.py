"""Extra columns: those that trainers read are checked, those that TRL would act on are left out."""

from pathlib import Path
from typing import Any

import pytest

from tests.data.helpers import load, write_rows
from toolkit.errors import DatasetError

PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("margin", float("nan"), '"margin" must be a finite number, got NaN (float)'),
        ("margin", "much", '"margin" must be a finite number, got "much" (str)'),
        ("margin", 10**400, '"margin" must be a finite number, got 1000'),
        ("margin", True, '"margin" must be a finite number, got true (bool)'),
        ("chosen_gold", [1.0], '"chosen_gold" must be a finite number, got [1.0] (list)'),
        ("group_id", [1, 2], '"group_id" must be text or a whole number, got [1, 2] (list)'),
        ("group_id", 0.5, '"group_id" must be text or a whole number, got 0.5 (float)'),
        ("group_id", float("nan"), '"group_id" must be text or a whole number, got NaN (float)'),
    ],
)
def test_malformed_margin_or_group_raises_or_is_dropped(
    tmp_path: Path, column: str, value: Any, message: str
) -> None:
    name = write_rows(tmp_path / "d.jsonl", [PAIR, PAIR | {column: value}])
    with pytest.raises(DatasetError) as caught:
        load(name, kind="preference")
    assert f"row 2 of 2: {message}" in str(caught.value)
    assert len(load(name, kind="preference", drop_bad_rows=True)["train"]) == 1


def test_csv_numbers_are_parsed_and_blanks_are_null(tmp_path: Path) -> None:
    file = tmp_path / "d.csv"
    file.write_text(
        "prompt,chosen,rejected,margin,group_id\nq,a,b,0.5,x\nq,a,c,,x\nr,a,b, 2 ,\ns,a,b,1,\n"
    )
    rows = load(str(file), kind="preference")["train"]
    assert rows["margin"] == [0.5, None, 2.0, 1.0]
    assert rows["group_id"] == ["x", "x", None, None]


def test_ranking_keeps_its_group_or_gets_one(tmp_path: Path) -> None:
    row = {"prompt": "q", "completions": ["a", "b", "c"], "ranks": [1, 2, 3]}
    named = load(write_rows(tmp_path / "a.jsonl", [row | {"group_id": 7.0}]), kind="preference")
    assert named["train"]["group_id"] == [7, 7, 7]
    rows = load(write_rows(tmp_path / "b.jsonl", [row, row | {"prompt": "r"}]), kind="preference")
    blank = [row | {"group_id": ""}, row | {"prompt": "r", "group_id": None}]
    blanks = load(write_rows(tmp_path / "c.jsonl", blank), kind="preference")
    first, second = rows["train"]["group_id"][0], rows["train"]["group_id"][3]
    assert first != second
    assert blanks["train"]["group_id"] == [first] * 3 + [second] * 3


def test_columns_that_trl_uses_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = {"images": [], "tools": "", "ref_chosen_logps": 0.0, "id": 1}
    splits = load(write_rows(tmp_path / "d.jsonl", [PAIR | more]), kind="preference")
    assert splits["train"].column_names == ["prompt", "chosen", "rejected", "id"]
    output = capsys.readouterr().out
    assert "columns not read: id, ref_chosen_logps" in output


def test_unprintable_column_names_are_escaped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"prompt": "q", "completion": "a", "\ud800": 1, "a\nb": 2, "名": 3}
    assert len(load(write_rows(tmp_path / "d.jsonl", [row]))["train"]) == 1
    assert "columns not read: a\\nb, 名, \\ud800" in capsys.readouterr().out


def test_unread_keys_of_messages_are_reported(tmp_path, capsys):
    messages = [
        {"role": "user", "content": "q", "name": None},
        {"role": "assistant", "content": "a", "mood": "glad", "reasoning_content": "hm"},
    ]
    for kind, row in (
        ("prompt-completion", {"messages": messages}),
        (
            "preference",
            {
                "prompt": messages[:1],
                "chosen": messages[1:],
                "rejected": [messages[1] | {"content": "b"}],
            },
        ),
    ):
        load(write_rows(tmp_path / "d.jsonl", [row]), kind=kind)
        line = "; keys of messages not read: mood\n"
        assert capsys.readouterr().out.endswith(line)
    plain = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    load(write_rows(tmp_path / "d.jsonl", [{"conversations": plain}]))
    assert "keys of messages" not in capsys.readouterr().out
