"""Row formats: detection, conversion to each kind, and the errors of malformed rows."""

from typing import Any

import pytest

from tests.data.helpers import assistant, user
from toolkit.data import convert_row, convert_rows, detect_format
from toolkit.data.convert import Kind, check_conversion
from toolkit.data.formats import FORMATS
from toolkit.errors import DatasetError

SYSTEM = {"role": "system", "content": "Be brief."}
HH = {
    "chosen": "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Sky?\n\nAssistant: Blue.\n\nReally.",
    "rejected": "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Sky?\n\nAssistant: Green.",
}
HH_PROMPT = [user("Hi"), assistant("Hello!"), user("Sky?")]
SHAREGPT = {
    "conversations": [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "Hi"},
        {"from": "gpt", "value": "Hello!"},
    ]
}
SHAREGPT_PREFERENCE = {
    "conversations": [{"from": "human", "value": "Sky?"}],
    "chosen": {"from": "gpt", "value": "Blue."},
    "rejected": {"from": "gpt", "value": "Green."},
}
PAIR = {"chosen": [assistant("Blue.")], "rejected": [assistant("Green.")]}

# format, row, and the SFT row, preference row and prompt made of it (None: not possible)
CASES: list[tuple[str, dict[str, Any], dict[str, Any] | None, dict[str, Any] | None, Any]] = [
    ("answers", {"prompt": "Sky?", "completions": ["Blue.", "Green."]}, None, None, "Sky?"),
    ("prompt-only", {"prompt": "Sky?"}, None, None, "Sky?"),
    ("prompt-only", {"prompt": [user("Sky?")]}, None, None, [user("Sky?")]),
    (
        "prompt-completion",
        {"prompt": "Sky?", "completion": " Blue."},
        {"prompt": "Sky?", "completion": " Blue."},
        None,
        "Sky?",
    ),
    (
        "prompt-completion",
        {"prompt": [SYSTEM, user("Sky?")], "completion": [assistant("Blue.")]},
        {"prompt": [SYSTEM, user("Sky?")], "completion": [assistant("Blue.")]},
        None,
        [SYSTEM, user("Sky?")],
    ),
    (
        "messages",
        {"messages": [user("Hi"), assistant("Hello!"), user("Sky?"), assistant("Blue.")]},
        {"prompt": HH_PROMPT, "completion": [assistant("Blue.")]},
        None,
        HH_PROMPT,
    ),
    (  # an open question: SFT learns the last answer, PPO uses the question
        "messages",
        {"messages": [user("Hi"), assistant("Hello!"), user("Sky?")]},
        {"prompt": [user("Hi")], "completion": [assistant("Hello!")]},
        None,
        HH_PROMPT,
    ),
    (
        "preference",
        {"prompt": "Sky?", "chosen": "Blue.", "rejected": "Green."},
        {"prompt": "Sky?", "completion": "Blue."},
        {"prompt": "Sky?", "chosen": "Blue.", "rejected": "Green."},
        "Sky?",
    ),
    (
        "preference",
        {"prompt": [user("Sky?")], **PAIR},
        {"prompt": [user("Sky?")], "completion": [assistant("Blue.")]},
        {"prompt": [user("Sky?")], **PAIR},
        [user("Sky?")],
    ),
    (  # UltraFeedback: the prompt as text, and again inside both dialogues
        "preference",
        {
            "prompt": "Sky?",
            "chosen": [user("Sky?"), assistant("Blue.")],
            "rejected": [user("Sky?"), assistant("Green.")],
        },
        {"prompt": [user("Sky?")], "completion": [assistant("Blue.")]},
        {"prompt": [user("Sky?")], **PAIR},
        [user("Sky?")],
    ),
    (
        "implicit-preference",
        {
            "chosen": [user("Sky?"), assistant("Blue.")],
            "rejected": [user("Sky?"), assistant("Green.")],
        },
        {"prompt": [user("Sky?")], "completion": [assistant("Blue.")]},
        {"prompt": [user("Sky?")], **PAIR},
        [user("Sky?")],
    ),
    (  # the letters "bl" are shared too, but a word is not cut
        "implicit-preference",
        {"chosen": "The sky is blue.", "rejected": "The sky is black."},
        {"prompt": "The sky is", "completion": " blue."},
        {"prompt": "The sky is", "chosen": " blue.", "rejected": " black."},
        "The sky is",
    ),
    (
        "alpaca",
        {"instruction": "Add.", "input": "1 and 2", "output": "3"},
        {"prompt": [user("Add.\n\n1 and 2")], "completion": [assistant("3")]},
        None,
        [user("Add.\n\n1 and 2")],
    ),
    (
        "alpaca",
        {"instruction": "Greet.", "input": "", "output": "Hi", "system": "Be brief."},
        {"prompt": [SYSTEM, user("Greet.")], "completion": [assistant("Hi")]},
        None,
        [SYSTEM, user("Greet.")],
    ),
    (  # LLaMA-Factory's earlier turns
        "alpaca",
        {"instruction": "Sky?", "output": "Blue.", "history": [["Hi", "Hello!"]]},
        {"prompt": HH_PROMPT, "completion": [assistant("Blue.")]},
        None,
        HH_PROMPT,
    ),
    (
        "alpaca_preference",
        {"instruction": "Sky?", "input": "", "chosen": "Blue.", "rejected": "Green."},
        {"prompt": [user("Sky?")], "completion": [assistant("Blue.")]},
        {"prompt": [user("Sky?")], **PAIR},
        [user("Sky?")],
    ),
    (
        "unpaired",
        {"prompt": "Sky?", "completion": "Blue.", "label": True},
        {"prompt": "Sky?", "completion": "Blue."},
        None,
        "Sky?",
    ),
    (
        "sharegpt",
        SHAREGPT,
        {"prompt": [SYSTEM, user("Hi")], "completion": [assistant("Hello!")]},
        None,
        [SYSTEM, user("Hi")],
    ),
    (
        "sharegpt_preference",
        SHAREGPT_PREFERENCE,
        {"prompt": [user("Sky?")], "completion": [assistant("Blue.")]},
        {"prompt": [user("Sky?")], **PAIR},
        [user("Sky?")],
    ),
    (
        "hh",
        HH,
        {"prompt": HH_PROMPT, "completion": [assistant("Blue.\n\nReally.")]},
        {
            "prompt": HH_PROMPT,
            "chosen": [assistant("Blue.\n\nReally.")],
            "rejected": [assistant("Green.")],
        },
        HH_PROMPT,
    ),
]


@pytest.mark.parametrize(("name", "row", "sft", "preference", "prompt"), CASES)
def test_row_is_detected_and_converted(
    name: str, row: Any, sft: Any, preference: Any, prompt: Any
) -> None:
    assert detect_format([row], place="x") == name
    assert convert_row(row, format=name, kind="prompt-only") == [{"prompt": prompt}]
    expected_rows: list[tuple[Kind, Any]] = [("prompt-completion", sft), ("preference", preference)]
    for kind, expected in expected_rows:
        if expected is None:
            with pytest.raises(DatasetError, match=f"its format is {name} .*{kind} needs"):
                check_conversion(format=name, kind=kind, place="x")
        else:
            check_conversion(format=name, kind=kind, place="x")
            assert convert_row(row, format=name, kind=kind) == [expected]


@pytest.mark.parametrize("name", ["messages", "sharegpt"])
def test_dialogue_gives_an_example_for_each_answer(name: str) -> None:
    messages = [
        SYSTEM,
        user("Hi"),
        assistant("Hello!"),
        user("Sky?"),
        assistant("Blue."),
        user("Why?"),
    ]
    row = {"messages" if name == "messages" else "conversations": messages}
    rows = convert_row(row, format=name, kind="prompt-completion", turns="all")
    assert len({one.pop("group_id") for one in rows}) == 1
    assert rows == [
        {"prompt": [SYSTEM, user("Hi")], "completion": [assistant("Hello!")]},
        {"prompt": [SYSTEM, *HH_PROMPT], "completion": [assistant("Blue.")]},
    ]
    assert convert_row(row, format=name, kind="prompt-completion", turns="last") == rows[1:]
    with pytest.raises(DatasetError, match="must contain an assistant message, got none"):
        convert_row(
            {next(iter(row)): messages[:2]}, format=name, kind="prompt-completion", turns="all"
        )


@pytest.mark.parametrize(("name", "row", "sft", "preference", "prompt"), CASES)
def test_comparison_gives_two_labelled_completions(
    name: str, row: Any, sft: Any, preference: Any, prompt: Any
) -> None:
    if name == "unpaired":
        assert convert_row(row, format=name, kind="unpaired") == [row]
    elif preference is None:
        with pytest.raises(
            DatasetError, match="which contains no completions that are known to be good or bad"
        ):
            check_conversion(format=name, kind="unpaired", place="x")
    else:
        good = {"prompt": prompt, "completion": preference["chosen"], "label": True}
        bad = {"prompt": prompt, "completion": preference["rejected"], "label": False}
        assert convert_row(row, format=name, kind="unpaired") == [good, bad]


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (True, True),
        (False, False),
        (1, True),
        (0, False),
        ("True", True),
        ("false ", False),
        (1.0, True),
        (0.0, False),
    ],
)
def test_labels_of_every_spelling_are_read(value: Any, label: bool) -> None:
    row = {"prompt": "q", "completion": "a", "label": value, "id": 7}
    assert detect_format([row], place="x") == "unpaired"
    (rows,) = convert_row(row, format="unpaired", kind="unpaired")
    assert rows == {"prompt": "q", "completion": "a", "label": label, "id": 7}
    assert rows["label"] is label
    sft = convert_row(row, format="unpaired", kind="prompt-completion")
    assert sft == ([{"prompt": "q", "completion": "a"}] if label else [])


def test_other_label_column_is_not_unpaired() -> None:
    row = {"prompt": "q", "completion": "a", "label": "sports"}
    assert detect_format([row], place="x") == "prompt-completion"
    with pytest.raises(DatasetError, match=r'"label" must be true or false, got "sports" \(str\)'):
        convert_row(row, format="unpaired", kind="unpaired")


def test_bad_completions_are_not_used_for_sft() -> None:
    rows = [{"prompt": "q", "completion": str(i), "label": i < 2} for i in range(5)]
    result = convert_rows(rows, place="x", format="unpaired", kind="prompt-completion")
    assert [row["completion"] for row in result.rows] == ["0", "1"]
    assert (result.read, result.dropped, result.unused) == (5, [], {"are labelled bad": 3})


def test_text_rows_convert_only_to_text() -> None:
    row = {"text": " A story.\n", "url": "x"}
    assert detect_format([row], place="x") == "text"
    assert convert_row(row, format="text", kind="text") == [{"text": " A story.\n"}]
    with pytest.raises(
        DatasetError, match=r"its format is text .* which contains no prompts; prompt-on"
    ):
        check_conversion(format="text", kind="prompt-only", place="x")
    with pytest.raises(DatasetError, match=r"text needs the columns text\.$"):
        check_conversion(format="alpaca", kind="text", place="x")


def test_column_that_looks_like_the_prompt_raises() -> None:
    row = {"system": "Be brief.", "question": "Sky?", "chosen": "It is.", "rejected": "It isn't."}
    with pytest.raises(DatasetError, match=r"set `columns: \{question: prompt\}`"):
        detect_format([row], place="x")
    row = {"question": "Sky?", **PAIR}  # messages contain their prompt, or fail without it
    assert detect_format([row], place="x") == "implicit-preference"


def test_impossible_conversion_names_suitable_formats() -> None:
    with pytest.raises(DatasetError) as caught:
        check_conversion(format="alpaca", kind="preference", place="data/a.json")
    assert str(caught.value) == (
        "data/a.json: its format is alpaca (columns instruction, output), which contains no better and "
        "worse completions of one prompt; preference needs the columns prompt, chosen, rejected, or one "
        "of the formats sharegpt_preference, alpaca_preference, hh, implicit-preference, ranked, "
        "ultrafeedback."
    )


def test_extra_columns_stay_in_preference_and_prompt_rows() -> None:
    row = {"prompt": "1+1?", "completion": "2", "answer": 2, "label": True}
    assert convert_row(row, format="prompt-completion", kind="prompt-only") == [
        {"prompt": "1+1?", "answer": 2}
    ]
    pair = {"prompt": "Sky?", "chosen": "Blue.", "rejected": "Green.", "margin": 0.5, "text": "x"}
    assert convert_row(pair, format="preference", kind="preference") == [
        {"prompt": "Sky?", "chosen": "Blue.", "rejected": "Green.", "margin": 0.5}
    ]


BAD: list[tuple[str, Any, str]] = [
    ("prompt-only", {"prompt": ""}, '"prompt" must be non-empty text, got "" (str)'),
    ("prompt-only", {"prompt": " \n"}, '"prompt" must be non-empty text'),
    ("prompt-only", {"prompt": None}, '"prompt" must be non-empty text, got null (NoneType)'),
    ("prompt-only", {}, '"prompt" is missing'),
    ("prompt-only", {"prompt": 7}, '"prompt" must be non-empty text, got 7 (int)'),
    ("prompt-only", {"prompt": "\ud800"}, '"prompt" must be Unicode text'),
    ("prompt-only", {"prompt": []}, '"prompt" must contain at least one message, got []'),
    ("prompt-only", {"prompt": ["hi"]}, '"prompt" message 1 must have "role" and "content"'),
    (
        "prompt-only",
        {"prompt": [user("Hi"), assistant("Hello!")]},
        '"prompt" must end with a user message',
    ),
    ("prompt-only", {"prompt": [SYSTEM]}, '"prompt" must contain a user message'),
    ("prompt-only", "text", "a row must be an object with columns, got str"),
    (
        "messages",
        {"messages": [{"role": "robot", "content": "x"}]},
        'must be one of system, user, human, assistant, gpt, got "robot" (str)',
    ),
    (
        "messages",
        {"messages": [user("Hi"), user("Hi?"), assistant("Hello!")]},
        '"messages" message 2 must have the role assistant, got user',
    ),
    (
        "messages",
        {"messages": [assistant("Hello!")]},
        '"messages" message 1 must have the role user, got assistant',
    ),
    (
        "messages",
        {"messages": [user("Hi"), SYSTEM]},
        '"messages" message 2 must have the role assistant, got system',
    ),
    (
        "messages",
        {"messages": [user("Hi")]},
        "the dialogue must contain an assistant message, got none",
    ),
    (
        "messages",
        {"messages": [user("Hi"), {"role": "assistant", "content": "x", "tool_calls": [{}]}]},
        '"messages" message 2 contains a tool call',
    ),
    (
        "messages",
        {"messages": [user("Hi"), {"role": "assistant", "content": None}]},
        '"messages" message 2 "content" must be non-empty text, got null',
    ),
    (
        "prompt-completion",
        {"prompt": "Sky?", "completion": [assistant("Blue.")]},
        '"completion" must be text, like the prompt',
    ),
    (
        "prompt-completion",
        {"prompt": [user("Sky?")], "completion": "Blue."},
        '"completion" must be messages, like the prompt',
    ),
    (
        "prompt-completion",
        {"prompt": [user("Sky?")], "completion": [user("Blue.")]},
        '"completion" must be one assistant message, got: user',
    ),
    (
        "preference",
        {"prompt": "Sky?", "chosen": "Blue.", "rejected": "Blue."},
        '"chosen" and "rejected" must differ',
    ),
    (
        "preference",
        {
            "prompt": "Sea?",
            "chosen": [user("Sky?"), assistant("Blue.")],
            "rejected": [user("Sky?"), assistant("Green.")],
        },
        '"prompt" must be the first or last user message',
    ),
    (
        "preference",
        {"prompt": "Sky?", "chosen": "Blue.", "rejected": " Blue.\n"},
        '"chosen" and "rejected" must differ, got texts that differ only in blanks at their ends',
    ),
    ("unpaired", {"prompt": "x", "completion": "y", "label": None}, '"label" must be true or'),
    ("unpaired", {"prompt": "x", "completion": "y", "label": -1}, "true or false, got -1 (int)"),
    (
        "implicit-preference",
        {"chosen": "Blue.", "rejected": "Green."},
        '"chosen" and "rejected" must start with the same words',
    ),
    (
        "implicit-preference",
        {"chosen": "Blue.", "rejected": [user("Sky?"), assistant("Green.")]},
        '"chosen" and "rejected" must both be text or both be messages',
    ),
    ("alpaca", {"instruction": "Add.", "input": 3, "output": "3"}, '"input" must be non-empty'),
    (
        "alpaca",
        {"instruction": "Add.", "output": "3", "history": [["a", "b", "c"]]},
        '"history" must be a list of [question, answer], got [["a", "b", "c"]]',
    ),
    (
        "sharegpt",
        {"conversations": [{"from": "human", "value": ""}]},
        '"conversations" message 1 "value" must be non-empty text',
    ),
    ("sharegpt", {"conversations": "Hi"}, '"conversations" must be a list of messages'),
    (
        "sharegpt_preference",
        {**SHAREGPT_PREFERENCE, **SHAREGPT},
        '"conversations" must end with a user message',
    ),
    (
        "hh",
        {**HH, "rejected": "Hello"},
        '"rejected" must consist of turns that start with "Human:"',
    ),
    (
        "hh",
        {**HH, "chosen": HH["chosen"] + "\n\nHuman: Thanks"},
        '"chosen" must end with an Assistant turn',
    ),
    (
        "hh",
        {**HH, "rejected": "\n\nHuman: Bye\n\nAssistant: Hello!\n\nHuman: Sky?\n\nAssistant: No"},
        '"rejected" must share every message but the last, got a difference at message 1',
    ),
    (
        "hh",
        {**HH, "rejected": "\n\nHuman: Hi\n\nAssistant: Hello!"},
        '"rejected" must share every message but the last, got 4 and 2 messages',
    ),
    (
        "hh",
        {**HH, "rejected": "\n\nHuman: Hi\n\nAssistant: "},
        '"rejected" turn 2 (Assistant) must be non-empty text, got "" (str)',
    ),
    (
        "hh",
        {**HH, "rejected": "\n\nHuman: Hi\n\nHuman: Sky?\n\nAssistant: Blue."},
        '"rejected" message 2 must have the role assistant, got user',
    ),
    ("hh", {**HH, "rejected": HH["chosen"]}, '"chosen" and "rejected" must differ'),
    ("ranked", {"prompt": "x", "completions": ["a"], "ranks": [1]}, '"completions" must be a list'),
    ("ranked", {"prompt": "x", "completions": ["a", "b"]}, '"ranks" or "scores" is missing'),
    (
        "ranked",
        {"prompt": "x", "completions": ["a", "b"], "ranks": [1]},
        '"ranks" must be a list of 2 numbers',
    ),
    (
        "ranked",
        {"prompt": "x", "completions": ["a", "b"], "ranks": [0, 1]},
        '"ranks" must be whole numbers from 1 (the best), got 0 (int)',
    ),
    (
        "ranked",
        {"prompt": "x", "completions": ["a", "b"], "scores": [0.5, float("nan")]},
        '"scores" must be numbers, got NaN (float)',
    ),
]


@pytest.mark.parametrize(("name", "row", "message"), BAD)
def test_malformed_row_error_has_expected_and_actual_value(
    name: str, row: Any, message: str
) -> None:
    kind: Kind = "prompt-only" if name == "prompt-only" else "prompt-completion"
    with pytest.raises(DatasetError) as caught:
        convert_row(row, format=name, kind=kind)
    assert message in str(caught.value)


def good_and_bad() -> list[Any]:
    rows: list[Any] = [
        {"prompt": f"Why is the sky blue, {n}?", "chosen": "Because.", "rejected": "No."}
        for n in range(1, 9)
    ]
    rows[1]["rejected"] = ""
    rows[3]["rejected"] = ""
    rows[6]["chosen"] = "No."
    return rows


def test_error_of_a_file_names_row_counts_and_fix() -> None:
    with pytest.raises(DatasetError) as caught:
        convert_rows(good_and_bad(), place="data/p.jsonl", format="preference", kind="preference")
    assert str(caught.value) == (
        'data/p.jsonl row 2 of 8: "rejected" must be non-empty text, got "" (str).\n'
        '  row: {"prompt": "Why is the sky blue, 2?", "chosen": "Because.", "rejected": ""}\n'
        "  2 rows fail this check (2, 4).\n"
        "  1 row fails other checks: 1 chosen equals rejected (7). "
        "Fix them, or set `drop_bad_rows: true`."
    )


def test_dropped_and_converted_rows_add_up() -> None:
    result = convert_rows(
        good_and_bad(), place="x", format="preference", kind="preference", drop_bad_rows=True
    )
    assert result.read == 8
    assert [f.number for f in result.dropped] == [2, 4, 7]
    assert [row["prompt"][-2] for row in result.rows] == ["1", "3", "5", "6", "8"]


def test_dropping_all_rows_raises() -> None:
    with pytest.raises(DatasetError, match="no row is left"):
        convert_rows(
            [{"prompt": ""}],
            place="x",
            format="prompt-only",
            kind="prompt-only",
            drop_bad_rows=True,
        )


def test_ranking_of_ties_is_unused_and_not_malformed() -> None:
    rows = [
        {"prompt": "Sky?", "completions": ["a", "b"], "ranks": [1, 1]},
        {"prompt": "Sea?", "completions": ["a", "b"], "ranks": [1, 2]},
    ]
    result = convert_rows(rows, place="x", format="ranked", kind="preference")
    assert (result.read, len(result.rows), result.dropped) == (2, 1, [])
    assert result.unused == {"contain only ties": 1}


def test_text_among_messages_raises() -> None:
    rows = [{"prompt": [user("a")]}, {"prompt": "b"}, {"prompt": [user("c")]}]
    with pytest.raises(DatasetError, match="row 2 of 3: the prompt must be messages, as in most"):
        convert_rows(rows, place="x", format="prompt-only", kind="prompt-only")


def test_long_lists_of_row_numbers_are_shortened() -> None:
    rows = [{"prompt": ""}] * 12 + [{"prompt": "x"}]
    with pytest.raises(DatasetError, match=r"12 rows fail this check \(1, .*, 10 and 2 more\)"):
        convert_rows(rows, place="x", format="prompt-only", kind="prompt-only")


def test_detection_uses_columns_of_most_rows() -> None:
    rows = [{"prompt": "x", "completion": "y"}, {"prompt": "x"}, {"prompt": "x", "completion": "y"}]
    assert detect_format(rows, place="x") == "prompt-completion"
    with pytest.raises(DatasetError, match=r"x: no known format has the columns answer, question"):
        detect_format([{"question": "a", "answer": "b"}], place="x")


@pytest.mark.parametrize("end", ["\r\n\r\n", "\r\r", "\n \t\n", "\r\n \r\n", "\n\r\n"])
def test_transcripts_of_other_line_ends_are_read(end: str) -> None:
    turns = ["Human: Sky?\r\nHuman: is no turn", "Assistant: Why?", "Human: So.", "Assistant: "]
    row = {name: end + end.join(turns) + name for name in ("chosen", "rejected")}
    parts = FORMATS["hh"].read(row)
    prompt = [user("Sky?\r\nHuman: is no turn"), assistant("Why?"), user("So.")]
    assert parts == {
        "prompt": prompt,
        "chosen": [assistant("chosen")],
        "rejected": [assistant("rejected")],
    }
