"""Row contracts: what each format is detected as, becomes, and is refused for."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.data import FORMATS, convert_row, convert_rows, detect_format, ranked_to_pairs
from toolkit.data.formats import KINDS, Kind, check_conversion
from toolkit.data.messages import SPEAKERS
from toolkit.errors import DatasetError


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


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

# name, row, and the one row of each kind it becomes (None: it cannot)
CASES: list[tuple[str, dict[str, Any], dict[str, Any] | None, dict[str, Any] | None, Any]] = [
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
    (  # an open question: SFT learns the last answer, PPO asks the question
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


@pytest.mark.parametrize(("name", "row", "sft", "preference", "asked"), CASES)
def test_each_format_becomes_each_kind(
    name: str, row: Any, sft: Any, preference: Any, asked: Any
) -> None:
    assert detect_format([row], place="x") == name
    assert convert_row(row, format=name, kind="prompt-only") == [{"prompt": asked}]
    wanted: list[tuple[Kind, Any]] = [("prompt-completion", sft), ("preference", preference)]
    for kind, expected in wanted:
        if expected is None:
            with pytest.raises(DatasetError, match=f"its format is {name} .*{kind} needs"):
                check_conversion(format=name, kind=kind, place="x")
        else:
            check_conversion(format=name, kind=kind, place="x")
            assert convert_row(row, format=name, kind=kind) == [expected]


def test_every_format_has_a_case() -> None:
    assert {name for name, *_ in CASES} | {"ranked"} == set(FORMATS)


def test_impossible_conversion_names_format_kind_and_columns() -> None:
    with pytest.raises(DatasetError) as caught:
        check_conversion(format="alpaca", kind="preference", place="data/a.json")
    assert str(caught.value) == (
        "data/a.json: its format is alpaca (columns instruction, output), which has no better and "
        "worse answers; preference needs the columns prompt, chosen, rejected, or one of the "
        "formats sharegpt_preference, hh, implicit-preference, ranked."
    )


def test_other_columns_stay_where_trainers_and_reward_functions_read_them() -> None:
    row = {"prompt": "1+1?", "completion": "2", "answer": 2, "label": True}
    assert convert_row(row, format="prompt-completion", kind="prompt-only") == [
        {"prompt": "1+1?", "answer": 2}
    ]
    pair = {"prompt": "Sky?", "chosen": "Blue.", "rejected": "Green.", "margin": 0.5, "text": "x"}
    assert convert_row(pair, format="preference", kind="preference") == [
        {"prompt": "Sky?", "chosen": "Blue.", "rejected": "Green.", "margin": 0.5}
    ]


def test_ranked_gives_all_pairs_that_are_not_tied() -> None:
    row = {"prompt": "Sky?", "completions": ["a", "b", "c", "d"], "ranks": [2, 1, 2, 3]}
    assert ranked_to_pairs(row) == [
        {"prompt": "Sky?", "chosen": "b", "rejected": "a"},
        {"prompt": "Sky?", "chosen": "a", "rejected": "d"},
        {"prompt": "Sky?", "chosen": "b", "rejected": "c"},
        {"prompt": "Sky?", "chosen": "b", "rejected": "d"},
        {"prompt": "Sky?", "chosen": "c", "rejected": "d"},
    ]


def test_ranked_by_scores_highest_first_and_equal_completions_are_tied() -> None:
    row = {"prompt": "Sky?", "completions": ["a", "b", "a"], "scores": [0.1, 0.9, -1]}
    assert ranked_to_pairs(row) == [
        {"prompt": "Sky?", "chosen": "b", "rejected": "a"},
        {"prompt": "Sky?", "chosen": "b", "rejected": "a"},
    ]


def test_ranked_kinds_and_style() -> None:
    row = {"prompt": [user("Sky?")], "completions": ["Green.", "Blue."], "ranks": [2, 1]}
    assert detect_format([row], place="x") == "ranked"
    (pair,) = convert_row(row, format="ranked", kind="preference")
    assert isinstance(pair.pop("group_id"), int)
    assert pair == {"prompt": [user("Sky?")], **PAIR}
    assert convert_row(row, format="ranked", kind="prompt-completion") == [
        {"prompt": [user("Sky?")], "completion": [assistant("Blue.")]}
    ]


def test_pairs_of_one_ranking_share_a_group() -> None:
    rows = [
        {"prompt": p, "completions": ["a", "b", "c"], "ranks": [1, 2, 3]} for p in ("Sky?", "Sea?")
    ]
    made = convert_rows(rows, place="x", format="ranked", kind="preference").rows
    groups = [row["group_id"] for row in made]
    assert len(groups) == 6
    assert groups[:3] == [groups[0]] * 3
    assert groups[3:] == [groups[3]] * 3
    assert groups[0] != groups[3]


BAD: list[tuple[str, Any, str]] = [
    ("prompt-only", {"prompt": ""}, '"prompt" must be non-empty text, got "" (str)'),
    ("prompt-only", {"prompt": " \n"}, '"prompt" must be non-empty text'),
    ("prompt-only", {"prompt": None}, '"prompt" must be non-empty text, got null (NoneType)'),
    ("prompt-only", {}, '"prompt" is missing'),
    ("prompt-only", {"prompt": 7}, '"prompt" must be non-empty text, got 7 (int)'),
    ("prompt-only", {"prompt": "\ud800"}, '"prompt" must be Unicode text'),
    ("prompt-only", {"prompt": []}, '"prompt" must hold at least one message, got []'),
    ("prompt-only", {"prompt": ["hi"]}, '"prompt" message 1 must have "role" and "content"'),
    (
        "prompt-only",
        {"prompt": [user("Hi"), assistant("Hello!")]},
        '"prompt" must end with a user message',
    ),
    ("prompt-only", {"prompt": [SYSTEM]}, '"prompt" must hold a user message'),
    ("prompt-only", "text", "a row must be an object with columns, got str"),
    (
        "messages",
        {"messages": [{"role": "robot", "content": "x"}]},
        'must be one of system, user, human, assistant, gpt, got "robot" (str)',
    ),
    (
        "messages",
        {"messages": [user("Hi"), user("Hi?"), assistant("Hello!")]},
        "\"messages\" message 2 must be the assistant's, got the user's",
    ),
    (
        "messages",
        {"messages": [assistant("Hello!")]},
        "\"messages\" message 1 must be the user's, got the assistant's",
    ),
    (
        "messages",
        {"messages": [user("Hi"), SYSTEM]},
        "\"messages\" message 2 must be the assistant's, got the system's",
    ),
    ("messages", {"messages": [user("Hi")]}, "the messages must hold an assistant's, got none"),
    (
        "messages",
        {"messages": [user("Hi"), {"role": "assistant", "content": "x", "tool_calls": [{}]}]},
        '"messages" message 2 holds a tool call',
    ),
    (
        "messages",
        {"messages": [user("Hi"), {"role": "assistant", "content": None}]},
        '"messages" message 2 "content" must be non-empty text, got null',
    ),
    (
        "prompt-completion",
        {"prompt": "Sky?", "completion": [assistant("Blue.")]},
        '"completion" must be text, as the prompt is',
    ),
    (
        "prompt-completion",
        {"prompt": [user("Sky?")], "completion": "Blue."},
        '"completion" must be messages, as the prompt is',
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
        '"prompt" must be the last user message',
    ),
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
        {"instruction": "Add.", "output": "3", "history": [["a", "b"]]},
        '"history" must be empty',
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
    ("hh", {**HH, "rejected": "Hello"}, '"rejected" must be turns that start with "Human:"'),
    (
        "hh",
        {**HH, "chosen": HH["chosen"] + "\n\nHuman: Thanks"},
        '"chosen" must end with an Assistant turn',
    ),
    (
        "hh",
        {**HH, "rejected": "\n\nHuman: Bye\n\nAssistant: Hello!\n\nHuman: Sky?\n\nAssistant: No"},
        '"rejected" must share every message but the last, got: they differ at message 1',
    ),
    (
        "hh",
        {**HH, "rejected": "\n\nHuman: Hi\n\nAssistant: Hello!"},
        '"rejected" must share every message but the last, got: 4 and 2',
    ),
    (
        "hh",
        {**HH, "rejected": "\n\nHuman: Hi\n\nAssistant: "},
        '"rejected" turn 2 (Assistant) must be non-empty text, got "" (str)',
    ),
    (
        "hh",
        {**HH, "rejected": "\n\nHuman: Hi\n\nHuman: Sky?\n\nAssistant: Blue."},
        "\"rejected\" message 2 must be the assistant's, got the user's",
    ),
    ("hh", {**HH, "rejected": HH["chosen"]}, '"chosen" and "rejected" must differ'),
    ("ranked", {"prompt": "x", "completions": ["a"], "ranks": [1]}, '"completions" must be a list'),
    ("ranked", {"prompt": "x", "completions": ["a", "b"]}, '"ranks" is missing'),
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
def test_malformed_row_says_what_was_expected_and_found(name: str, row: Any, message: str) -> None:
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


def test_error_names_place_row_check_counts_and_fix() -> None:
    with pytest.raises(DatasetError) as caught:
        convert_rows(good_and_bad(), place="data/p.jsonl", format="preference", kind="preference")
    assert str(caught.value) == (
        'data/p.jsonl row 2 of 8: "rejected" must be non-empty text, got "" (str).\n'
        '  row: {"prompt": "Why is the sky blue, 2?", "chosen": "Because.", "rejected": ""}\n'
        "  2 rows fail this check (2, 4).\n"
        "  1 row fails others: 1 chosen equals rejected (7). "
        "Fix them, or set `drop_bad_rows: true`."
    )


def test_dropping_accounts_for_every_row() -> None:
    result = convert_rows(
        good_and_bad(), place="x", format="preference", kind="preference", drop_bad_rows=True
    )
    assert result.read == 8
    assert [f.number for f in result.dropped] == [2, 4, 7]
    assert [row["prompt"][-2] for row in result.rows] == ["1", "3", "5", "6", "8"]


def test_dropping_everything_is_an_error() -> None:
    with pytest.raises(DatasetError, match="no row is left"):
        convert_rows(
            [{"prompt": ""}],
            place="x",
            format="prompt-only",
            kind="prompt-only",
            drop_bad_rows=True,
        )


def test_all_ties_are_counted_and_not_malformed() -> None:
    rows = [
        {"prompt": "Sky?", "completions": ["a", "b"], "ranks": [1, 1]},
        {"prompt": "Sea?", "completions": ["a", "b"], "ranks": [1, 2]},
    ]
    result = convert_rows(rows, place="x", format="ranked", kind="preference")
    assert (result.read, len(result.rows), result.tied, result.dropped) == (2, 1, 1, [])


def test_text_among_messages_is_refused() -> None:
    rows = [{"prompt": [user("a")]}, {"prompt": "b"}, {"prompt": [user("c")]}]
    with pytest.raises(DatasetError, match="row 2 of 3: the prompt must be messages, as in most"):
        convert_rows(rows, place="x", format="prompt-only", kind="prompt-only")


def test_long_lists_of_rows_are_cut_short() -> None:
    rows = [{"prompt": ""}] * 12 + [{"prompt": "x"}]
    with pytest.raises(DatasetError, match=r"12 rows fail this check \(1, .*, 10 and 2 more\)"):
        convert_rows(rows, place="x", format="prompt-only", kind="prompt-only")


def test_detection_goes_by_what_most_rows_have() -> None:
    rows = [{"prompt": "x", "completion": "y"}, {"prompt": "x"}, {"prompt": "x", "completion": "y"}]
    assert detect_format(rows, place="x") == "prompt-completion"
    with pytest.raises(DatasetError, match=r"x: the columns answer, question are of no known form"):
        detect_format([{"question": "a", "answer": "b"}], place="x")


TEXTS = st.sampled_from(["", " ", "Hi", "The sky is", "The sky is blue", HH["chosen"], "\ud800"])
SPEAKER = st.sampled_from([*SPEAKERS, "robot"])
TURN = st.fixed_dictionaries({}, optional={"role": SPEAKER, "content": TEXTS}) | st.builds(
    lambda who, what: {"from": who, "value": what}, SPEAKER, TEXTS
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | TEXTS,
    lambda inner: st.lists(inner | TURN, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)
CONVERSATION = st.integers(1, 4).map(
    lambda n: [(assistant if i % 2 else user)(f"turn {i}") for i in range(n)]
)
VALUES = ANYTHING | st.lists(TURN, max_size=4) | CONVERSATION | st.lists(st.integers(), max_size=3)
RANKED = {"prompt": "Sky?", "completions": ["a", "b", "c"], "ranks": [2, 1, 2]}
RIGHT = [(name, row) for name, row, *_ in CASES] + [("ranked", RANKED)]


@st.composite
def datasets(draw: st.DrawFn) -> tuple[str, list[Any]]:
    """A format, and rows of it of which some are damaged in a column or replaced by anything."""
    name = draw(st.sampled_from([*FORMATS]))
    columns = [*FORMATS[name].columns, *FORMATS[name].optional, "other"]
    damage = st.dictionaries(st.sampled_from(columns), VALUES, max_size=2)
    right = st.sampled_from([row for case, row in RIGHT if case == name])
    rows = right | st.builds(lambda row, other: {**row, **other}, right, damage) | ANYTHING
    return name, draw(st.lists(rows, max_size=6))


def check_completion(value: Any, *, plain: bool) -> None:
    if not plain:
        assert [m["role"] for m in value] == ["assistant"]
        assert set(value[0]) == {"role", "content"}
        value = value[0]["content"]
    assert isinstance(value, str)
    assert value.strip()


def check_right(row: dict[str, Any], kind: Kind) -> None:
    plain = isinstance(row["prompt"], str)
    if not plain:
        spoken = [m["role"] for m in row["prompt"]]
        turns = spoken[1:] if spoken[0] == "system" else spoken
        assert turns[::2] == ["user"] * len(turns[::2])
        assert turns[1::2] == ["assistant"] * len(turns[1::2])
        assert turns[-1] == "user"
    if kind == "prompt-completion":
        assert set(row) == {"prompt", "completion"}
        check_completion(row["completion"], plain=plain)
    if kind == "preference":
        check_completion(row["chosen"], plain=plain)
        check_completion(row["rejected"], plain=plain)
        assert row["chosen"] != row["rejected"]


@given(dataset=datasets(), detect=st.booleans(), drop=st.booleans())
def test_any_rows_become_right_rows_or_a_dataset_error(
    dataset: tuple[str, list[Any]], detect: bool, drop: bool
) -> None:
    name, rows = dataset
    for kind in KINDS:
        try:
            found = detect_format(rows, place="x") if detect else name
            check_conversion(format=found, kind=kind, place="x")
            result = convert_rows(rows, place="x", format=found, kind=kind, drop_bad_rows=drop)
        except DatasetError as error:
            str(error).encode()  # can be printed
            continue
        for row in result.rows:
            check_right(row, kind)
        assert len({isinstance(row["prompt"], str) for row in result.rows}) < 2
        assert result.read == len(rows)
        if found != "ranked" or kind != "preference":
            assert len(result.rows) + len(result.dropped) == len(rows)
