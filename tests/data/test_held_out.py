"""A test split is made of prompts: the same ones of a file in every recipe."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.helpers import assistant, load, pairs, user, write_rows
from toolkit.data.splits import hold_out, question_key
from toolkit.errors import DatasetError

KINDS = ("prompt-completion", "preference", "unpaired", "prompt-only")


def comparison(number: int, pair: int, *, chat: bool = False) -> dict[str, Any]:
    """The n-th pair of a prompt."""
    texts = [f"question {number}", f"good {pair}", f"bad {pair}"]
    if not chat:
        return dict(zip(("prompt", "chosen", "rejected"), texts, strict=True))
    return {
        "prompt": [user(texts[0])],
        "chosen": [assistant(texts[1])],
        "rejected": [assistant(texts[2])],
    }


def prompts_of(rows: Any) -> set[str]:
    return {question_key(row) for row in rows}


def held_out(file: str, kind: str, size: float = 0.25, **options: Any) -> set[str]:
    """The prompts of the test split, of which none is used for training."""
    splits = load(file, kind=kind, mixture={"test_split_size": size}, **options)
    test = prompts_of(splits["test"])
    assert not test & prompts_of(splits["train"])
    return test


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("size", [0.25, 3])
def test_recipes_hold_out_the_same_prompts(tmp_path: Path, chat: bool, size: float) -> None:
    """Twelve prompts with one to five pairs each: a quarter, or three, are held out."""
    rows = [comparison(n, pair, chat=chat) for n in range(12) for pair in range(1 + n % 5)]
    file = write_rows(tmp_path / "pairs.jsonl", rows)
    first, *others = [held_out(file, kind, size) for kind in KINDS]
    assert len(first) == 3
    assert others == [first] * 3
    backwards = write_rows(tmp_path / "backwards.jsonl", rows[::-1])
    assert held_out(backwards, "unpaired", size) == first
    assert held_out(file, "unpaired", size, seed=1) != first


def test_text_and_messages_hold_out_the_same_prompts(tmp_path: Path) -> None:
    files = [
        write_rows(tmp_path / f"{chat}.jsonl", [comparison(n, 0, chat=chat) for n in range(12)])
        for chat in (False, True)
    ]
    assert held_out(files[0], "unpaired") == held_out(files[1], "preference")


def test_turns_of_a_dialogue_count_once(tmp_path: Path) -> None:
    """SFT with one or all turns, DPO with the last turn and PPO hold out the same dialogues."""
    dialogues = [
        [m for t in range(1 + n % 4) for m in (user(f"q{n} {t}"), assistant(f"a {t}"))]
        for n in range(12)
    ]
    file = write_rows(tmp_path / "d.jsonl", [{"messages": d} for d in dialogues])
    pairs = [
        {"prompt": d[:-1], "chosen": d[-1:], "rejected": [assistant("bad")]} for d in dialogues
    ]
    other = write_rows(tmp_path / "p.jsonl", pairs)
    first = held_out(file, "prompt-completion", turns="all")
    assert len(first) == 3
    assert held_out(file, "prompt-completion", turns="last") == first
    assert held_out(file, "prompt-only") == first
    assert held_out(other, "preference") == held_out(other, "unpaired") == first


def test_dialogue_after_a_greeting_stays_in_one_split(tmp_path: Path) -> None:
    rows = [
        {"prompt": [assistant("Hi."), user(f"q{n}"), assistant("a"), user("more")][:length]}
        for n in range(8)
        for length in (2, 4)
    ]
    train, test = hold_out(rows, 0.25, seed=0, place="x")
    assert (len(train), len(test)) == (12, 4)
    assert not prompts_of(rows[i] for i in train) & prompts_of(rows[i] for i in test)


@pytest.mark.parametrize("unused", ["bad", "ties"])
def test_prompts_without_a_row_for_sft_count_too(tmp_path: Path, unused: str) -> None:
    """Half of the prompts have no good answer, or only ties."""
    if unused == "bad":
        rows = [
            {"prompt": f"q{n}", "completion": "a", "label": label}
            for n in range(40)
            for label in ([True, False] if n % 2 else [False])
        ]
        kinds = ("prompt-completion", "unpaired")
    else:
        rows = [
            {"prompt": f"q{n}", "completions": ["a", "b"], "ranks": [1, 1 + n % 2]}
            for n in range(40)
        ]
        kinds = ("preference", "prompt-only")
    file = write_rows(tmp_path / "rows.jsonl", rows)
    few, all_prompts = (held_out(file, kind, seed=4) for kind in kinds)
    assert len(all_prompts) == 10
    odd = {json.dumps(f"q{n}") for n in range(1, 40, 2)}
    assert few == all_prompts & odd


def test_groups_stay_together_in_every_recipe(tmp_path: Path) -> None:
    rows = [comparison(n, 0) | {"group_id": n // 2} for n in range(12)]
    file = write_rows(tmp_path / "groups.jsonl", rows)
    first, *others = [held_out(file, kind, 4) for kind in KINDS]
    assert len(first) == 4
    assert others == [first] * 3
    assert all({json.dumps(f"question {n ^ 1}")} <= first
               for n in range(12) if json.dumps(f"question {n}") in first)  # fmt: skip


@pytest.mark.parametrize("chat", [False, True])
def test_blanks_around_a_prompt_do_not_count(tmp_path: Path, chat: bool) -> None:
    texts = [[f"q{i}\n?", f" q{i}\r\n? ", f"q{i}\n?\n"] for i in range(12)]
    data = [
        {"prompt": [user(t)], "completion": [assistant("a")]}
        if chat
        else {"prompt": t, "completion": "a"}
        for copies in texts
        for t in copies
    ]
    splits = load(write_rows(tmp_path / "d.jsonl", data), mixture={"test_split_size": 0.5})
    train, test = prompts_of(splits["train"]), prompts_of(splits["test"])
    assert not train & test
    assert (len(splits["train"]), len(splits["test"]), len(train), len(test)) == (18, 18, 6, 6)


def test_questions_that_two_splits_share_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split, answer in (("train", "a"), ("test", "b")):
        dialogue = [user("Sky?"), assistant(answer), user("And?"), assistant("No.")]
        write_rows(tmp_path / f"{split}.jsonl", [{"messages": dialogue}])
    load(str(tmp_path), turns="last")
    assert "1 test rows have a prompt of the train split" in capsys.readouterr().out


@pytest.mark.parametrize("test", ["test", "testset", "evals"])
def test_column_split_with_test_rows_raises(tmp_path: Path, test: str) -> None:
    data = [
        row | {"split": name} for row, name in zip(pairs(3), ("train", "train", test), strict=True)
    ]
    file = write_rows(tmp_path / "d.jsonl", data)
    with pytest.raises(DatasetError, match=f'the column "split" marks rows as {test}'):
        load(file)
    assert len(load(file, columns={"split": "part"})["train"]) == 3
    for name, some in (("train", data[:2]), ("test", data[2:])):
        write_rows(tmp_path / f"{name}.jsonl", some)
    (tmp_path / "d.jsonl").unlink()
    assert {split: len(table) for split, table in load(str(tmp_path)).items()} == {
        "train": 2,
        "test": 1,
    }
