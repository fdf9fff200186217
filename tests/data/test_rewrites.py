"""Widespread layouts are read in every recipe, and refused with a hint if their meaning is uncertain."""

from pathlib import Path
from typing import Any

import pytest

from tests.data.helpers import assistant, load, user, write_rows
from toolkit.errors import DatasetError

PAIR = {"prompt": "Sky?", "chosen": "Blue.", "rejected": "Green."}
TWO_TURNS = [user("Sky?"), assistant("Blue."), user("Sure?"), assistant("Yes.")]
CHAT_PAIR = {
    "prompt": [user("Sky?")],
    "chosen": [assistant("Blue.")],
    "rejected": [assistant("Green.")],
}


def rows(tmp_path: Path, data: list[Any], kind: str = "preference", **options: Any) -> list[Any]:
    table = load(write_rows(tmp_path / "d.jsonl", data), kind=kind, **options)["train"]
    names = [n for n in ("prompt", "completion", "chosen", "rejected", "label") if n in table[0]]
    return list(table.select_columns(names).to_list())


def two_answers(names: tuple[str, str], winner: str, values: Any, **more: Any) -> list[Any]:
    """Rows of the answers Blue and Green, for each value of the column that names the winner."""
    answers = dict(zip(names, ("Blue.", "Green."), strict=True))
    return [{"prompt": "Sky?", **answers, winner: value, **more} for value in values]


@pytest.mark.parametrize(
    ("names", "winner", "first", "second", "tie"),
    [
        (("response_a", "response_b"), "winner", "a", "b", "tie"),
        (("response_a", "response_b"), "winner", "model_a", "model_b", "both"),
        (("response_a", "response_b"), "preference", "response_a", "response_b", "TIE"),
        (("response_A", "response_B"), "chosen", "A", "B", "equal"),
        (("responseA", "responseB"), "verdict", "[[A]]", "[[B]]", "tie"),
        (("response_0", "response_1"), "better_response_id", 0, 1, "tie"),
        (("answer_0", "answer_1"), "better_answer", "0", "1", "tie"),
        (("output_1", "output_2"), "preference", 1, 2, "same"),
        (("output_1", "output_2"), "preference", 1.0, 2.0, "same"),
        (("response1", "response2"), "overall_preference", -3, 1, 0),
        (("response_1", "response_2"), "preference_strength", -1, 3, 0),
    ],
)
def test_two_answers_and_their_winner_are_read(
    tmp_path: Path,
    names: tuple[str, str],
    winner: str,
    first: Any,
    second: Any,
    tie: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = two_answers(names, winner, [first, second, tie], id=7)
    swapped = PAIR | {"chosen": "Green.", "rejected": "Blue."}
    assert rows(tmp_path, data) == [PAIR, swapped]
    note = f"{names[0]} and {names[1]} are the answers, {winner} names the better one"
    output = capsys.readouterr().out
    assert note in output
    assert "1 rows contain only ties; columns not read: id;" in output
    labels = [row["label"] for row in rows(tmp_path, data, "unpaired")]
    assert labels == [True, False, False, True]  # Blue, Green, twice
    best = [row["completion"] for row in rows(tmp_path, data[:2], "prompt-completion")]
    assert best == ["Blue.", "Green."]
    assert rows(tmp_path, data, "prompt-only") == [{"prompt": "Sky?"}] * 3
    for bad in (None, "neither", "x", True):
        worse = [*data, *data, *data, *data, data[0] | {winner: bad}]
        with pytest.raises(DatasetError, match=rf'row 13 of 13: "{winner}" must name .*, got'):
            rows(tmp_path, worse)
        assert len(rows(tmp_path, worse, drop_bad_rows=True)) == 8


def test_prompt_of_two_answers_may_have_another_name(tmp_path: Path) -> None:
    data = two_answers(("response1", "response2"), "overall_preference", [-1, 2])
    for row in data:
        row["context"] = [user(row.pop("prompt"))]
    assert rows(tmp_path, data)[0] == CHAT_PAIR
    arena = [
        {
            "conversation_a": [user("Sky?"), assistant("Blue.")],
            "conversation_b": [user("Sky?"), assistant("Green.")],
            "winner": winner,
            "model_a": "m",
            "model_b": "n",
        }
        for winner in ("model_a", "model_b")
    ]
    assert rows(tmp_path, arena)[0] == CHAT_PAIR
    arena[1]["conversation_b"][0] = user("Snow?")
    with pytest.raises(DatasetError, match=r"row 2 of 2: .*do not start with the prompt"):
        rows(tmp_path, arena)
    data = two_answers(
        ("output_1", "output_2"), "preference", [1, 2], instruction="Say.", input="x"
    )
    for row in data:
        row.pop("prompt")
    with pytest.raises(DatasetError, match=r'"output_1" and "output_2" need a `prompt`'):
        rows(tmp_path, data)


@pytest.mark.parametrize(
    ("names", "winner", "values", "reason"),
    [
        (("human_ref_A", "human_ref_B"), "labels", [0, 1], '"labels" has [0, 1]'),  # 1 is A
        (("response_0", "response_1"), "label", [0, 1], '"label" has [0, 1]'),
        (("response_1", "response_2"), "winner", [0, 1], '"winner" has [0, 1]'),
        (("response_0", "response_1"), "winner", [1, 1], '"winner" has [1]'),  # perhaps "yes"
        *(
            (("answer_0", "answer_1"), name, [0, 1], f'"{name}" has [0, 1]')  # 1 means "yes"
            for name in (
                "answer_0_preferred",
                "is_answer_0_better",
                "prefer_answer0",
                "winner_is_first",
            )
        ),
        (("response_a", "response_b"), "winner", [True, False], '"winner" has [false, true]'),
        (("response1", "response2"), "overall_preference", [1, 2], "has [1, 2]"),
        (("response_a", "response_b"), "winner", ["gpt-4", "llama"], "no column names it"),
        (("response_a", "response_b"), "id", [1, 2], "no column names it"),
    ],
)
def test_uncertain_winner_raises(
    tmp_path: Path, names: tuple[str, str], winner: str, values: list[Any], reason: str
) -> None:
    data = two_answers(names, winner, values)
    with pytest.raises(DatasetError) as caught:
        rows(tmp_path, data)
    assert f'which of "{names[0]}" and "{names[1]}" is better: ' in str(caught.value)
    assert reason in str(caught.value)
    assert "Write the better one as `chosen`" in str(caught.value)
    assert len(rows(tmp_path, data, "prompt-only")) == 2  # needs no winner


def test_two_winners_raise_if_they_differ(tmp_path: Path) -> None:
    names = ("response_0", "response_1")
    data = [
        two_answers(names, "better_response_id", [v], safer_response_id=w)[0]
        for v, w in ((0, 0), (1, 0), (0, 1))
    ]
    with pytest.raises(DatasetError, match="name different better answers") as caught:
        rows(tmp_path, data)
    assert "`columns: {safer_response_id: safer_response_id_unused}`" in str(caught.value)
    columns = {"safer_response_id": "safer_response_id_unused"}
    assert [row["chosen"] for row in rows(tmp_path, data, columns=columns)] == [
        "Blue.",
        "Green.",
        "Blue.",
    ]


@pytest.mark.parametrize("name", ["answers", "responses", "completions"])
@pytest.mark.parametrize(
    ("text", "number", "values"),
    [
        ("answer", "rank", [2.0, 1.0]),
        ("response", "score", [0.1, 0.7]),
        ("text", "rating", ["1", "5"]),
    ],
)
def test_list_of_judged_answers_is_a_ranking(
    tmp_path: Path, name: str, text: str, number: str, values: list[Any]
) -> None:
    judged = [
        {text: answer, number: value, "model": "m"}
        for answer, value in zip(("Green.", "Blue."), values, strict=True)
    ]
    if number == "rating":
        judged = [item | {number: float(item[number])} for item in judged]
    data = [{"prompt": "Sky?", name: judged, "turns": 1}] * 2
    assert rows(tmp_path, data) == [PAIR] * 2
    transposed = {key: [item[key] for item in judged] for key in judged[0]}
    assert rows(tmp_path, [{"question": "Sky?", name: transposed}]) == [PAIR]
    with pytest.raises(DatasetError, match=f'row 3 of 3: "{name}" must be a list of objects'):
        rows(tmp_path, [*data, {"prompt": "Snow?", name: [{text: "White."}]}])


@pytest.mark.parametrize(
    ("row", "renaming"),
    [
        ({"prompt": "Sky?", "response": "Blue."}, "{response: completion}"),
        ({"question": "Sky?", "answer": "Blue."}, "{question: prompt, answer: completion}"),
    ],
)
def test_one_question_and_answer_raise_with_their_renaming(
    tmp_path: Path, row: dict[str, str], renaming: str
) -> None:
    with pytest.raises(DatasetError, match=f"set `columns: {renaming}`"):
        rows(tmp_path, [row], "prompt-completion")


def test_answers_without_a_judgement_are_rejected(tmp_path: Path) -> None:
    data = [{"prompt": "Sky?", "answers": [{"text": "Blue.", "start": 3}]}]
    with pytest.raises(DatasetError, match="its format is prompt-only"):
        rows(tmp_path, data)


@pytest.mark.parametrize("name", ["conversation", "conversations", "turns"])
@pytest.mark.parametrize(
    "keys", [("input", "output"), ("human", "assistant"), ("prompt", "response")]
)
def test_questions_and_answers_become_messages(
    tmp_path: Path, name: str, keys: tuple[str, str]
) -> None:
    turns = [dict(zip(keys, t, strict=True)) for t in (("Sky?", "Blue."), ("Sure?", "Yes."))]
    data = [{"source": "s", name: turns}]
    expected = [
        {"prompt": TWO_TURNS[:1], "completion": TWO_TURNS[1:2]},
        {"prompt": TWO_TURNS[:3], "completion": TWO_TURNS[3:]},
    ]
    assert rows(tmp_path, data, "prompt-completion", turns="all") == expected
    weighted = [{name: [turns[0] | {"weight": 0}, turns[1]]}]
    assert rows(tmp_path, weighted, "prompt-completion", turns="all") == expected[1:]
    (labelled,) = rows(tmp_path, [data[0] | {"label": False}], "unpaired")
    assert labelled == expected[1] | {"label": False}
    with pytest.raises(DatasetError, match=f'"{name}" must be a list of questions'):
        rows(tmp_path, [data[0], data[0], {name: [{keys[0]: "Sky?"}]}], "prompt-completion")


def test_messages_in_a_column_of_another_name_are_read(tmp_path: Path) -> None:
    data = [{"conversation": TWO_TURNS, "id": 1}]
    assert rows(tmp_path, data, "prompt-completion") == [
        {"prompt": TWO_TURNS[:3], "completion": TWO_TURNS[3:]}
    ]
    data = [{"conversation": TWO_TURNS[:1], "chosen": "Blue.", "rejected": "Green."}]
    assert rows(tmp_path, data) == [CHAT_PAIR]


def test_lists_in_one_object_become_messages(tmp_path: Path) -> None:
    from datasets import Dataset

    def transposed(messages: list[dict[str, str]]) -> dict[str, list[str]]:
        return {key: [message[key] for message in messages] for key in ("role", "content")}

    data: list[dict[str, Any]] = [{"messages": transposed(TWO_TURNS)}]
    Dataset.from_list(data).to_parquet(tmp_path / "d.parquet")
    expected = [{"prompt": TWO_TURNS[:3], "completion": TWO_TURNS[3:]}]
    assert load(str(tmp_path / "d.parquet"))["train"].to_list() == expected
    assert rows(tmp_path, data, "prompt-completion") == expected
    green = [*TWO_TURNS[:1], assistant("Green.")]
    pair = {"chosen": transposed(TWO_TURNS[:2]), "rejected": transposed(green)}
    assert rows(tmp_path, [pair]) == [CHAT_PAIR]
    assert rows(tmp_path, [PAIR | pair]) == [CHAT_PAIR]
    uneven = {"messages": {"role": ["user", "assistant"], "content": ["Sky?"]}}
    with pytest.raises(DatasetError, match='row 3 of 3: "messages" must be a list of messages'):
        rows(tmp_path, [*data, *data, uneven], "prompt-completion")
