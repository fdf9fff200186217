"""Lists stored as text are read, and a prompt that answers repeat is cut, alike in every recipe."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.helpers import assistant, load, user, write_rows
from toolkit.data.stored_lists import parse_list
from toolkit.errors import DatasetError

SKY = [user("Sky?"), assistant("Blue.")]
RED = [user("Sky?"), assistant("It's red.")]
SNOW = [user("Snow?"), assistant("White.")]
BLACK = [user("Snow?"), assistant("Black.")]
CHAT_PAIRS = [
    {"prompt": [user("Sky?")], "chosen": SKY[1:], "rejected": RED[1:]},
    {"prompt": [user("Snow?")], "chosen": SNOW[1:], "rejected": BLACK[1:]},
]


def write_csv(path: Path, rows: list[dict[str, Any]], write: Any) -> str:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0]])
        writer.writeheader()
        writer.writerows(
            {k: v if isinstance(v, str) else write(v) for k, v in row.items()} for row in rows
        )
    return str(path)


@pytest.mark.parametrize("write", [json.dumps, repr], ids=["json", "python"])
def test_messages_stored_as_text_are_read(
    tmp_path: Path, write: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    cases: dict[str, list[dict[str, Any]]] = {
        "whole": [
            {"prompt": "Sky?", "chosen": SKY, "rejected": RED},
            {"prompt": "Snow?", "chosen": SNOW, "rejected": BLACK},
        ],
        "implicit": [{"chosen": SKY, "rejected": RED}, {"chosen": SNOW, "rejected": BLACK}],
        "explicit": CHAT_PAIRS,
    }
    for name, data in cases.items():
        file = write_csv(tmp_path / f"{name}.csv", data, write)
        assert load(file, kind="preference")["train"].to_list() == CHAT_PAIRS, name
        assert "lists stored as text in " in capsys.readouterr().out
        assert load(file)["train"].to_list() == [
            {"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in CHAT_PAIRS
        ]
        prompts = load(file, kind="prompt-only")["train"].to_list()
        assert prompts == [{"prompt": pair["prompt"]} for pair in CHAT_PAIRS]
    file = write_csv(tmp_path / "m.csv", [{"messages": SKY}, {"messages": SNOW}], write)
    assert load(file)["train"][1] == {"prompt": SNOW[:1], "completion": SNOW[1:]}
    ranked = {"prompt": "Sky?", "completions": ["Blue.", "Red."], "ranks": [1, 2]}
    file = write_csv(tmp_path / "r.csv", [ranked], write)
    assert load(file, kind="preference")["train"][0]["chosen"] == "Blue."


def test_messages_stored_one_by_one_are_read(tmp_path: Path) -> None:
    data = [{"messages": [json.dumps(message) for message in SKY]}]
    file = write_rows(tmp_path / "d.jsonl", data)
    assert load(file)["train"].to_list() == [{"prompt": SKY[:1], "completion": SKY[1:]}]


def test_stored_list_that_cannot_be_read_is_malformed(tmp_path: Path) -> None:
    good = {"messages": json.dumps(SKY)}
    for bad in ("[{'role': 'user'", "[__import__('os')]", "[" * 100_000, '{"role"', "no list"):
        file = write_rows(tmp_path / "d.jsonl", [good, good, {"messages": bad}])
        with pytest.raises(DatasetError, match='row 3 of 3: "messages" must be a list'):
            load(file)
        assert len(load(file, drop_bad_rows=True)["train"]) == 2
    numpy = str([{"role": "user", "content": "Sky?"}]).replace("}", "}\n {'role'")
    with pytest.raises(DatasetError, match='"chosen" must be a list, as in most rows'):
        load(
            write_rows(tmp_path / "n.jsonl", [{"chosen": numpy, "rejected": numpy}]),
            kind="preference",
        )


def test_text_with_brackets_stays_text(tmp_path: Path) -> None:
    data = [{"prompt": "[1, 2]", "completion": '{"a": 1}'}] * 2
    assert load(write_rows(tmp_path / "d.jsonl", data))["train"].to_list() == data


def test_nothing_in_a_stored_list_is_executed(tmp_path: Path) -> None:
    made = tmp_path / "made"
    for text in (f"[open({str(made)!r}, 'w')]", f"[{{'role': open({str(made)!r}, 'w')}}]"):
        with pytest.raises(DatasetError, match="must be a list"):
            parse_list(text, "messages")
    assert not made.exists()
    for text in ("(" * 60 + ")" * 60, "['" + "x" * 1_000_000 + "']"):
        with pytest.raises(DatasetError, match="must be a list"):
            parse_list(text, "messages")


COLOURS = [("grass", "Green.", "Red."), ("snow", "White.", "Black.")]
START = "Question: colour of {}? Answer:"


@pytest.mark.parametrize("blank", ["", "\n"])
def test_repeated_prompt_is_cut(
    tmp_path: Path, blank: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs, chats = [], []
    for thing, good, bad in COLOURS:
        start = START.format(thing)
        whole = {"chosen": f"{blank}{start} {good}", "rejected": f"{blank}{start} {bad}"}
        pairs.append({"prompt": start, **whole})
        chats.append({"instruction": start, **whole})
    expected = [
        {"prompt": START.format(thing), "chosen": f" {good}", "rejected": f" {bad}"}
        for thing, good, bad in COLOURS
    ]
    file = write_rows(tmp_path / "d.jsonl", pairs)
    assert load(file, kind="preference")["train"].to_list() == expected
    assert "; the prompt was cut from the beginning of the answers" in capsys.readouterr().out
    sft = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in expected]
    assert load(file)["train"].to_list() == sft
    assert load(file, kind="unpaired")["train"]["completion"][:2] == [" Green.", " Red."]
    ranked = [
        {"prompt": row["prompt"], "completions": [row["rejected"], row["chosen"]], "scores": [1, 2]}
        for row in pairs
    ]
    train = load(write_rows(tmp_path / "r.jsonl", ranked), kind="preference")["train"].to_list()
    assert [{name: row[name] for name in expected[0]} for row in train] == expected
    chat = load(write_rows(tmp_path / "c.jsonl", chats))["train"][0]
    assert chat["completion"] == [assistant("Green.")]


def test_sft_prompt_is_cut_and_empty_answers_are_malformed(tmp_path: Path) -> None:
    data = [{"prompt": f"Q{i}:", "completion": f"Q{i}: A{i}"} for i in range(20)]
    data[7]["completion"] = "Q7:"
    file = write_rows(tmp_path / "d.jsonl", data)
    with pytest.raises(DatasetError, match="row 8 of 20: the answer after its prompt must be non-"):
        load(file)
    train = load(file, drop_bad_rows=True)["train"]
    assert train["completion"] == [f" A{i}" for i in range(20) if i != 7]


def test_prompt_that_only_most_answers_repeat_raises(tmp_path: Path) -> None:
    data = [{"prompt": f"Q{i}:", "completion": f"Q{i}: A{i}" if i < 7 else "A"} for i in range(10)]
    with pytest.raises(DatasetError, match="7 of 10 answers start with their prompt, the others"):
        load(write_rows(tmp_path / "d.jsonl", data))
    data = [{"prompt": "Hi", "completion": "Hi there!"}, *({"prompt": "a", "completion": "b"},) * 3]
    assert load(write_rows(tmp_path / "d.jsonl", data))["train"].to_list() == data


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("Photosynthesis", "Photosynthesis is a process"),
        ("The French Revolution", "The French Revolution began"),
        ("Ode to the sea", "Ode to the sea\n\nO sea"),
        ("Yahoo!", "Yahoo! is a company"),
        ("Acme (a firm)", "Acme (a firm) sells"),
        ("I feel sad today", "I feel sad today too"),
    ],
)
@pytest.mark.parametrize("others", [0, 6])
def test_answers_that_begin_with_their_subject_stay(
    tmp_path: Path, prompt: str, answer: str, others: int, capsys: pytest.CaptureFixture[str]
) -> None:
    data = [{"prompt": prompt, "completion": f"{answer} {i}."} for i in range(14)]
    data += [{"prompt": prompt, "completion": f"No {i}."} for i in range(others)]
    assert load(write_rows(tmp_path / "d.jsonl", data))["train"].to_list() == data
    assert f"; 14 of {len(data)} answers start with their prompt, which stays" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize("rest", ["s are things.", "'s tail", "-like"])
def test_prompt_is_never_cut_inside_a_word(tmp_path: Path, rest: str) -> None:
    words = ("cat", "the cat", "a white cat on the mat")
    data = [{"prompt": word, "completion": word + rest} for word in words]
    file = write_rows(tmp_path / "d.jsonl", data)
    assert load(file)["train"].to_list() == data
    repeats = [{"prompt": f"Q{i}?", "completion": f"Q{i}? A"} for i in range(30)]
    train = load(write_rows(tmp_path / "d.jsonl", [*repeats, *data]))["train"].to_list()
    assert [row["completion"] for row in train] == [*[" A"] * 30, *[r["completion"] for r in data]]


@pytest.mark.parametrize(
    ("prompt", "rest"),
    [
        ("What is gravity?", " A force"),
        ("天空是什么颜色？", "蓝色"),
        ("Write a poem about the sea", "\nO sea"),
        ("Write a poem about the sea\n", "O sea"),
        ("[INST] Sky [/INST]", "Blue"),
        ("Write a poem about the sea", "<|assistant|>O sea"),
        ('Say "blue."', " Blue"),
    ],
)
def test_copy_of_prompt_before_a_border_is_cut(tmp_path: Path, prompt: str, rest: str) -> None:
    data = [{"prompt": prompt, "completion": f"{prompt}{rest} {i}."} for i in range(9)]
    data.append({"prompt": "Tell me more", "completion": "Tell me more The rest follows."})
    train = load(write_rows(tmp_path / "d.jsonl", data))["train"]
    assert train["completion"] == [*(f"{rest} {i}." for i in range(9)), " The rest follows."]


def test_dialogues_that_repeat_each_question_are_cut(tmp_path: Path) -> None:
    answers = [assistant("Sky? Blue."), assistant("And snow?\nWhite.")]
    data = [{"messages": [user("Sky?"), answers[0], user("And snow?"), answers[1]]}]
    assert load(write_rows(tmp_path / "d.jsonl", data), turns="all")["train"].to_list() == [
        {"prompt": SKY[:1], "completion": SKY[1:]},
        {"prompt": [*SKY, user("And snow?")], "completion": SNOW[1:]},
    ]


def test_messages_in_a_column_of_text_raise(tmp_path: Path) -> None:
    stored = json.dumps(SKY)
    for row in ({"instruction": "Sky?", "output": stored}, {"text": stored}):
        with pytest.raises(DatasetError, match=r'" must be non-empty text, got \[\{"role"'):
            load(write_rows(tmp_path / "d.jsonl", [row]), texts=True)


@pytest.mark.parametrize("prompt", ["\n\nHuman: Sky?\n\nAssistant:", "Sky?", SKY[:1]], ids=str)
def test_transcripts_may_repeat_their_prompt(tmp_path: Path, prompt: Any) -> None:
    start = "\n\nHuman: Sky?\n\nAssistant:"
    row = {"prompt": prompt, "chosen": f"{start} Blue.", "rejected": f"{start} It's red."}
    file = write_rows(tmp_path / "d.jsonl", [row])
    assert load(file, kind="preference")["train"].to_list() == CHAT_PAIRS[:1]
    with pytest.raises(
        DatasetError, match='"prompt" must be the first or last user message of "chosen"'
    ):
        load(write_rows(tmp_path / "d.jsonl", [row | {"prompt": "Sea?"}]), kind="preference")


@pytest.mark.parametrize("gap", [" ", "\n "])
def test_lists_that_numpy_wrote_are_read(tmp_path: Path, gap: str) -> None:
    texts = [user("Is {1} {2} 'a' \"b\"?\n{x}\n {y}"), assistant("It's [1 2].")]
    without_commas = "[" + gap.join(map(repr, texts)) + "]"
    file = write_rows(tmp_path / "m.jsonl", [{"messages": without_commas}])
    assert load(file)["train"].to_list() == [{"prompt": texts[:1], "completion": texts[1:]}]
    row = {
        "prompt": "Sky?",
        "completions": "['Green.' 'Blue.' \"It's red.\"]",
        "ranks": "[3. 1. 2.]",
    }
    ranked = load(write_rows(tmp_path / "r.jsonl", [row]), kind="preference", pairs="best")["train"]
    assert [(r["chosen"], r["rejected"]) for r in ranked] == [
        ("Blue.", "Green."),
        ("Blue.", "It's red."),
    ]
