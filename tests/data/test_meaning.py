"""Columns and keys that change what a row means are read, or the row is malformed; metadata is not."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.helpers import assistant, load, user, write_rows
from toolkit.data.convert import Kind
from toolkit.errors import DatasetError

FRENCH = {"role": "system", "content": "Answer in French."}
PAIR = {"prompt": "Sky?", "chosen": "Blue.", "rejected": "Green."}
ANSWER = {"prompt": "Sky?", "completion": "Blue."}
DIALOGUE = [user("Sky?"), assistant("Blue.")]
KINDS: tuple[Kind, ...] = ("prompt-completion", "preference", "unpaired", "prompt-only")
CONVERSATION = [
    user("Capital of Peru?"),
    assistant("Quito."),
    user("Are you sure?"),
    assistant("No: it is Lima."),
]


def rows(tmp_path: Path, data: list[Any], kind: str = "prompt-completion", **options: Any) -> Any:
    return load(write_rows(tmp_path / "d.jsonl", data), kind=kind, **options)["train"].to_list()


@pytest.mark.parametrize(
    "no_loss",
    [
        {"weight": 0},
        {"weight": 0.0},
        {"train": False},
        {"train": "false"},
        {"training": 0},
        {"loss_mask": 0},
        {"mask": True},
        {"masked": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("turns", ["all", "last"])
def test_answer_without_loss_is_only_context(tmp_path: Path, no_loss: Any, turns: Any) -> None:
    first_off = [CONVERSATION[0], CONVERSATION[1] | no_loss, *CONVERSATION[2:]]
    last_off = [*CONVERSATION[:3], CONVERSATION[3] | no_loss]
    data = [{"messages": first_off}, {"messages": last_off}]
    assert rows(tmp_path, data, turns=turns) == [
        {"prompt": CONVERSATION[:3], "completion": CONVERSATION[3:]},
        {"prompt": CONVERSATION[:1], "completion": CONVERSATION[1:2]},
    ]


def test_dialogue_without_an_answer_to_learn_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    off = [user("Sky?"), assistant("Red.") | {"weight": 0}]
    assert len(rows(tmp_path, [{"messages": off}, {"messages": DIALOGUE}])) == 1
    assert "; 1 rows have only answers of weight 0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("row", "kind", "message"),
    [
        ({"messages": [DIALOGUE[0], DIALOGUE[1] | {"weight": 0.5}]}, None, '"weight" must be 0 or'),
        ({"messages": [DIALOGUE[0], DIALOGUE[1] | {"mask": 1}]}, None, '"mask" must be true or'),
        (
            {"messages": [DIALOGUE[0], DIALOGUE[1] | {"loss_mask": [0, 1]}]},
            None,
            '"loss_mask" must',
        ),
        ({"prompt": DIALOGUE[:1], "completion": [DIALOGUE[1] | {"weight": 0}]}, None, "weight 0"),
        (
            {"messages": [DIALOGUE[0], DIALOGUE[1] | {"weight": 0}], "label": True},
            "unpaired",
            "weight 0",
        ),
        (
            {"messages": [DIALOGUE[0], DIALOGUE[1] | {"function_call": {"name": "f"}}]},
            None,
            "message 2 contains a tool call",
        ),
        ({"messages": [DIALOGUE[0] | {"images": ["x"]}, DIALOGUE[1]]}, None, 'contains "images"'),
        ({"messages": DIALOGUE, "tools": [{"name": "f"}]}, None, '"tools" is'),
        (ANSWER | {"images": ["x.png"]}, None, "training supports only text"),
        (PAIR | {"image": "x.png"}, "preference", "training supports only text"),
        (PAIR | {"chat_template_kwargs": {"enable_thinking": False}}, "preference", "only text"),
        (ANSWER | {"weight": 0}, None, "rows cannot have weights"),
        (ANSWER | {"train": False}, None, "rows cannot have weights"),
        (ANSWER | {"loss_mask": [0, 1]}, None, "rows cannot have weights"),
        (PAIR | {"sample_weight": 2.0}, "preference", "rows cannot have weights"),
        (ANSWER | {"is_safe": False}, None, "set `columns: {is_safe: label}`"),
        (ANSWER | {"rejected": True}, None, "a bad answer would be learned as a good one"),
        (ANSWER | {"label": "thumbs_down"}, None, "a bad answer would be learned"),
        (ANSWER | {"label": -1}, None, "a bad answer would be learned as a good one"),
        (
            {"messages": [DIALOGUE[0], DIALOGUE[1] | {"rejected": True}]},
            None,
            "marks the answer as",
        ),
        ({"messages": [DIALOGUE[0], DIALOGUE[1] | {"label": False}]}, None, "marks the answer as"),
        ({"messages": DIALOGUE, "prompt": "Sea?"}, None, "the prompt does not contain it"),
        (PAIR | {"scores": {"chosen": 1, "rejected": 3}}, "preference", "must not be worse"),
        (ANSWER | {"context": "The sea is blue."}, None, "the prompt does not contain it"),
        (PAIR | {"chosen_score": 1.0, "rejected_score": 4.0}, "preference", "must not be worse"),
        (PAIR | {"score_chosen": "1", "score_rejected": "4"}, "unpaired", "must not be worse"),
        (PAIR | {"chosen-rating": 1, "rejected-rating": 4}, None, "must not be worse"),
        (PAIR | {"chosen_rank": 2, "rejected_rank": 1}, None, "must not be worse"),
        (PAIR | {"winner": "tie"}, "preference", "would be learned as the better one"),
        (ANSWER | {"deleted": True}, None, "this value marks the row as deleted"),
        (PAIR | {"exclude": 1}, "preference", "this value marks the row as deleted"),
        (ANSWER | {"is_good": 0}, None, "set `columns: {is_good: label}`"),
        (ANSWER | {"is_toxic": 1}, None, "a bad answer would be learned as a good one"),
        (ANSWER | {"passage": "The sea."}, None, "the prompt does not contain it"),
        (ANSWER | {"documents": ["Sky?", "The sea."]}, None, "the prompt does not contain it"),
        (PAIR | {"label": False}, "preference", "would be learned as the better one"),
        (PAIR | {"margin": -0.5}, "preference", "would be learned as the better one"),
        (PAIR | {"margin": "-1"}, None, "would be learned as the better one"),
        (ANSWER | {"label": "negative"}, None, "write true or false"),
        # as a European spreadsheet writes them
        (ANSWER | {"weight": "0,5"}, None, "rows cannot have weights"),
        (
            ANSWER | {"weight": "0,500"},
            None,
            '"weight" must be a clear number: write 0.500 or 0500, got "0,500"',
        ),
        (ANSWER | {"train": "No"}, None, "rows cannot have weights"),
        (ANSWER | {"deleted": " Yes"}, None, "marks the row as deleted"),
        (ANSWER | {"deleted": "x"}, None, "must be true, yes, y, 1, false, no, n or 0"),
        (PAIR | {"skip": 2}, "preference", "must be true, yes, y, 1, false, no, n or 0"),
        (ANSWER | {"is_safe": "No"}, None, "set `columns: {is_safe: label}`"),
        (ANSWER | {"is_safe": "0"}, None, "set `columns: {is_safe: label}`"),
        (ANSWER | {"is_safe": "x"}, None, "must be true, yes, y, 1, false, no, n or 0"),
        (ANSWER | {"is_toxic": 0.8}, None, "must be true, yes, y, 1, false, no, n or 0"),
        (ANSWER | {"flagged": "x"}, None, "must be true, yes, y, 1, false, no, n or 0"),
        (ANSWER | {"label": "no"}, None, "write true or false"),
        (
            {"messages": [DIALOGUE[0], DIALOGUE[1] | {"is_safe": "x"}]},
            None,
            '"messages" message 2 "is_safe" must be true, yes',
        ),
        (PAIR | {"preferred": "no"}, "preference", "would be learned as the better one"),
        (PAIR | {"margin": "-0,5"}, "preference", "would be learned as the better one"),
        (
            PAIR | {"chosen_score": "1,5", "rejected_score": "4,5"},
            "preference",
            "must not be worse",
        ),
        (
            PAIR | {"chosen_score": "1,5", "rejected_score": "1,250"},
            "preference",
            '"chosen_score" must be a clear number: write 1.250',
        ),
    ],
)
def test_column_that_changes_the_meaning_raises_or_is_dropped(
    tmp_path: Path, row: Any, kind: str | None, message: str
) -> None:
    good = {"messages": DIALOGUE} if "messages" in row else ANSWER
    if "chosen" in row:
        good = PAIR
    if isinstance(row.get("prompt"), list):
        good = {"prompt": DIALOGUE[:1], "completion": DIALOGUE[1:]}
    if row.get("label") is True:
        good = {"messages": DIALOGUE, "label": True}
    kind = kind or "prompt-completion"
    with pytest.raises(DatasetError) as caught:
        rows(tmp_path, [good, good, row], kind)
    assert "row 3 of 3: " in str(caught.value)
    assert message in str(caught.value)
    data = [good, good | {"id": 1}, row]
    kept = rows(tmp_path, data, kind, drop_bad_rows=True, drop_duplicates=True)
    per_row = 2 if kind == "unpaired" and "chosen" in row else 1
    assert len(kept) == per_row


@pytest.mark.parametrize("kind", KINDS)
def test_metadata_stops_no_recipe(tmp_path: Path, kind: str) -> None:
    more = {
        "id": "a1",
        "meta": {"x": 1},
        "language": "en",
        "weight": 1,
        "images": [],
        "tools": None,
        "context": "Sky?",
        "winner": "gpt-4",
        "chosen_score": 4.0,
        "rejected_score": 3.0,
        "chosen_model": "b",
        "rejected_model": "a",
        "is_safe": True,
        "is_good": 1,
        "deleted": False,
        "skip": "n",
        "toxic": 0.2,
        "correct": "B",
        "thumbs_up": "17",
        "documents": ["?"],
        "system": "",
    }
    mixed = PAIR | more | {"prompt": "Snow?", "context": "", "id": 7, "meta": [1], "weight": "5 kg"}
    data = rows(tmp_path, [PAIR | more, mixed], kind)
    assert [row["prompt"] for row in data][:: 2 if kind == "unpaired" else 1] == ["Sky?", "Snow?"]


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ({"messages": DIALOGUE, "label": True}, {"label": False}),
        ({"messages": DIALOGUE, "label": 1}, {"label": 0}),
        ({"messages": DIALOGUE, "label": "good"}, {"label": "bad"}),
        ({"messages": DIALOGUE, "label": "Yes"}, {"label": "no"}),
        ({"conversations": DIALOGUE, "kto_tag": True}, {"kto_tag": False}),
        (
            {"instruction": "Sky?", "input": "", "output": "Blue.", "kto_tag": "true"},
            {"kto_tag": "false"},
        ),
        ({"prompt": DIALOGUE[:1], "completion": DIALOGUE[1:], "kto_tag": 1}, {"kto_tag": 0}),
    ],
)
def test_labels_are_read_in_every_format(tmp_path: Path, good: Any, bad: Any) -> None:
    data = [good, good | bad, good]
    chat = {"prompt": DIALOGUE[:1], "completion": DIALOGUE[1:]}
    kto = rows(tmp_path, data, "unpaired")
    labels = [row.pop("label") for row in kto]
    assert (kto, labels) == ([chat] * 3, [True, False, True])
    assert rows(tmp_path, data) == [chat] * 2  # SFT learns only good answers
    assert rows(tmp_path, data, "prompt-only") == [{"prompt": DIALOGUE[:1]}] * 3


CHAT_PAIR = {"chosen": [assistant("Bleu.")], "rejected": [assistant("Blue.")]}
HH = "\n\nHuman: Sky?\n\nAssistant: "


@pytest.mark.parametrize(
    "name", ["system", "system_prompt", "system_message", "system_instruction"]
)
@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Sky?", "chosen": "Bleu.", "rejected": "Blue."},
        {"prompt": [user("Sky?")], **CHAT_PAIR},
        {"prompt": [FRENCH, user("Sky?")], **CHAT_PAIR},
        {"instruction": "Sky?", "chosen": "Bleu.", "rejected": "Blue."},
        {"conversations": [user("Sky?")], "chosen": CHAT_PAIR["chosen"][0], "rejected": "Blue."},
        {"chosen": HH + "Bleu.", "rejected": HH + "Blue."},
        {"prompt": "Sky?", "completions": ["Blue.", "Bleu."], "scores": [1, 2]},
    ],
    ids=lambda row: "-".join(row),
)
def test_system_column_becomes_the_system_message(tmp_path: Path, row: Any, name: str) -> None:
    data = [row | {name: FRENCH["content"]}]
    prompt = [FRENCH, user("Sky?")]
    (pair,) = rows(tmp_path, data, "preference")
    assert {key: pair[key] for key in PAIR} == {"prompt": prompt, **CHAT_PAIR}
    assert rows(tmp_path, data) == [{"prompt": prompt, "completion": CHAT_PAIR["chosen"]}]
    assert [one["prompt"] for one in rows(tmp_path, data, "prompt-only")] == [prompt]


def test_rows_without_system_message_become_messages_too(tmp_path: Path) -> None:
    data = [PAIR | {"system": FRENCH["content"]}, PAIR, PAIR | {"system": " "}]
    prompts = [row["prompt"] for row in rows(tmp_path, data, "preference")]
    assert prompts == [[FRENCH, user("Sky?")], [user("Sky?")], [user("Sky?")]]
    rendered = [{"prompt": "Answer in French.\nSky?", "completion": "Bleu."}]
    assert rows(tmp_path, [rendered[0] | {"system": "Answer in French."}]) == rendered


def test_orca_hint_keeps_the_system_message(tmp_path: Path) -> None:
    row = {"system": FRENCH["content"], "question": "Sky?", "chosen": "Bleu.", "rejected": "Blue."}
    with pytest.raises(
        DatasetError, match=r"set `columns: \{question: prompt\}`, and a column `sys"
    ):
        rows(tmp_path, [row], "preference")
    assert rows(tmp_path, [row], "preference", columns={"question": "prompt"}) == [
        {"prompt": [FRENCH, user("Sky?")], **CHAT_PAIR}
    ]


def test_two_system_messages_raise(tmp_path: Path) -> None:
    bot = {"role": "system", "content": "You are a bot."}
    data = [{"messages": [bot, *DIALOGUE], "system": FRENCH["content"]}]
    with pytest.raises(DatasetError, match=r"must have one system message; .* got .* and "):
        rows(tmp_path, data)
    data = [ANSWER | {"system": "One.", "system_prompt": "Two."}]
    with pytest.raises(DatasetError, match="system and system_prompt must be the same"):
        rows(tmp_path, data)


def test_blank_system_message_is_left_out(tmp_path: Path) -> None:
    for content in ("", " \n", None):
        blank = {"role": "system", "content": content}
        data = [{"messages": [blank, *CONVERSATION]}]
        assert len(rows(tmp_path, data, turns="all")) == 2
        assert rows(tmp_path, data)[0]["prompt"] == CONVERSATION[:3]
    data = [{"system": " ", "instruction": "Sky?", "input": " ", "output": "Blue."}]
    assert rows(tmp_path, data)[0]["prompt"] == [user("Sky?")]


def test_trees_of_messages_raise(tmp_path: Path) -> None:
    node = {"message_id": "a", "parent_id": None, "text": "Sky?", "role": "prompter", "rank": None}
    reply = node | {"message_id": "b", "parent_id": "a", "role": "assistant", "rank": 0}
    for kind in KINDS:
        with pytest.raises(DatasetError, match="each row is one message of a tree"):
            rows(tmp_path, [node, reply], kind, texts=True)
    with pytest.raises(DatasetError, match="write each dialogue as one row of `messages`"):
        rows(
            tmp_path,
            [{"role": "user", "text": "Sky?"}, {"role": "assistant", "text": "B"}],
            texts=True,
        )


def test_documented_script_reads_trees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.conftest import ROOT

    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    script = page.split("### Trees of messages")[1].split("```python\n")[1].split("```")[0]
    nodes = [
        ("a", None, "prompter", "Egg?", None),
        ("b", "a", "assistant", "Boil it.", 0),
        ("c", "a", "assistant", "No idea.", 1),
        ("d", "b", "prompter", "How long?", None),
        ("e", "d", "assistant", "Seven minutes.", None),
    ]
    names = ("message_id", "parent_id", "role", "text", "rank")
    data = [dict(zip(names, node, strict=True)) for node in nodes]
    monkeypatch.chdir(tmp_path)
    script = script.replace(
        'load_dataset("OpenAssistant/oasst1", split="train").to_list()', repr(data)
    )
    exec(compile(script.replace("from datasets import load_dataset", ""), "script", "exec"), {})
    assert [json.loads(line) for line in Path("oasst.jsonl").read_text().splitlines()] == [
        {"prompt": [user("Egg?")], "completions": ["Boil it.", "No idea."], "ranks": [1, 2]}
    ]
    assert load("oasst.jsonl", kind="preference")["train"][0]["chosen"] == [assistant("Boil it.")]


@pytest.mark.parametrize("kind", KINDS)
def test_empty_columns_do_not_decide_the_format(tmp_path: Path, kind: str) -> None:
    from datasets import Dataset, Features, Value

    names = ("prompt", "chosen", "rejected", "completion")
    features = Features({name: Value("string") for name in names})
    data = [ANSWER | {"chosen": None, "rejected": None}] * 2
    Dataset.from_list(data, features=features).to_parquet(tmp_path / "d.parquet")
    (tmp_path / "d.csv").write_text(
        "prompt,chosen,rejected,completion\nSky?,,,Blue.\nSky?, ,,Blue.\n"
    )
    for name in ("d.parquet", "d.csv"):
        if kind in ("preference", "unpaired"):
            with pytest.raises(DatasetError, match="its format is prompt-completion"):
                load(str(tmp_path / name), kind=kind)
        else:
            assert load(str(tmp_path / name), kind=kind)["train"][0]["prompt"] == "Sky?"


@pytest.mark.parametrize(
    "prompt",
    [
        "Capital of Peru?",
        "Are you sure?",
        CONVERSATION[:1],
        CONVERSATION[:3],
    ],
    ids=["first", "last", "first-message", "messages"],
)
def test_whole_dialogues_may_repeat_a_part_of_the_prompt(tmp_path: Path, prompt: Any) -> None:
    worse = [assistant("Yes.")]
    data = [{"prompt": prompt, "chosen": CONVERSATION, "rejected": [*CONVERSATION[:3], *worse]}]
    chat = {"prompt": CONVERSATION[:3], "chosen": CONVERSATION[3:], "rejected": worse}
    assert rows(tmp_path, data, "preference") == [chat]
    assert rows(tmp_path, data) == [{"prompt": chat["prompt"], "completion": chat["chosen"]}]
    assert [row["label"] for row in rows(tmp_path, data, "unpaired")] == [True, False]
    assert rows(tmp_path, data, "prompt-only") == [{"prompt": chat["prompt"]}]
    if isinstance(prompt, list):  # the completions continue the prompt
        for name in ("chosen", "rejected"):
            data[0][name] = data[0][name][len(prompt) :]
        if len(prompt) == 1:
            assert rows(tmp_path, data, "preference") == [chat]


@pytest.mark.parametrize("tools", ["[]", " [ ]", "{}", "null", ""])
def test_text_none_as_tools_means_no_tools(tmp_path: Path, tools: str) -> None:
    turns = [DIALOGUE[0], DIALOGUE[1] | {"tool_calls": tools}]
    data = [{"messages": turns, "tools": tools}]
    assert rows(tmp_path, data) == [{"prompt": DIALOGUE[:1], "completion": DIALOGUE[1:]}]


def test_blank_parts_of_system_message_are_left_out(tmp_path: Path) -> None:
    blank = {"role": "system", "content": [{"type": "text", "text": " "}]}
    data = [{"messages": [blank, *DIALOGUE]}]
    assert rows(tmp_path, data) == [{"prompt": DIALOGUE[:1], "completion": DIALOGUE[1:]}]


@pytest.mark.parametrize(
    ("answers", "winner", "values"),
    [
        (("human_ref_A", "human_ref_B"), "labels", [1, 0]),  # SHP
        (("response_0", "response_1"), "better_response_id", [0, 1]),  # PKU-SafeRLHF
        (("response_1", "response_2"), "preference_strength", [-2, 3]),  # HelpSteer2
        (("output_1", "output_2"), "preference", [1, 2]),  # AlpacaFarm
        (("conversation_a", "conversation_b"), "winner", ["model_a", "model_b"]),  # Arena
    ],
)
def test_renamed_answers_without_their_winner_raise(
    tmp_path: Path, answers: tuple[str, str], winner: str, values: list[Any]
) -> None:
    data = [{"prompt": "Sky?", answers[0]: "A.", answers[1]: "B.", winner: v} for v in values]
    columns = {answers[0]: "chosen", answers[1]: "rejected"}
    with pytest.raises(DatasetError, match=f'"{winner}" has .* and seems to name'):
        rows(tmp_path, data, "preference", columns=columns)
    unused = columns | {winner: f"{winner}_unused"}
    assert len(rows(tmp_path, data, "preference", columns=unused)) == 2
    assert len(rows(tmp_path, data[:1], "preference", columns=columns)) == 1


def test_renamed_answers_that_are_in_order_are_read(tmp_path: Path) -> None:
    row = {"prompt": "Sky?", "better": "Blue.", "worse": "Red."}
    data = [row | {"preference_strength": s, "winner": w} for s, w in ((1, "x"), (3, "y"))]
    assert rows(tmp_path, data, "preference", columns={"better": "chosen", "worse": "rejected"})


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("preference", ["A", "B"]),
        ("preference", ["B", "B"]),
        ("winner", ["model_a", "model_b"]),
        ("winner", [1, 2]),
        ("label", [0, 1]),
        ("labels", [1, -1]),
        ("better_answer", [True, False]),
        ("better_answer", ["yes", "no"]),
        ("preferred", ["chosen", "rejected"]),
    ],
)
def test_column_that_names_the_better_of_the_pair_raises(
    tmp_path: Path, name: str, values: list[Any]
) -> None:
    data = [PAIR | {name: value} for value in values]
    for kind in KINDS:
        with pytest.raises(DatasetError, match=f'"{name}" has .* and seems to name the better'):
            rows(tmp_path, data, kind)
    unused = {name: f"{name}_unused"}
    assert len(rows(tmp_path, data, "preference", columns=unused)) == 2
    # the columns from which chosen and rejected were made
    data = [row | {"response_a": "Blue.", "response_b": "Green."} for row in data]
    if name in ("preference", "winner", "label", "labels"):
        assert len(rows(tmp_path, data, "preference")) == 2


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("preference", ["A", "A"]),
        ("winner", ["gpt-4", "llama"]),
        ("preference_strength", [1, 2]),
        ("label", ["math", "code"]),
        ("label", [0, 5]),
        ("preferred_language", ["en", "fr"]),
        ("margin", [0, 0.5]),
    ],
)
def test_column_that_does_not_contradict_the_pair_is_kept(
    tmp_path: Path, name: str, values: list[Any]
) -> None:
    data = [PAIR | {name: value} for value in values]
    assert len(rows(tmp_path, data, "preference")) == 2


@pytest.mark.parametrize("streaming", [False, True])
def test_pair_of_equal_scores_is_a_tie(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], streaming: bool
) -> None:
    ties: list[dict[str, Any]] = [
        {"chosen_score": "2.0", "rejected_score": 2},
        {"scores": {"chosen": 4, "rejected": 4}},
        {"rating": [9.0, 9.0], "status": "tie"},  # distilabel's Orca pairs
        {"rating": [9.0, 9.0]},
        {"status": "tie"},
    ]
    pairs: list[dict[str, Any]] = [
        {"chosen_score": 4, "rejected_score": 3, "score": {"chosen": 2, "rejected": 2}},
        {"chosen_score": None, "rejected_score": 1},
        {"rating": [8.0, 9.0], "status": "swapped"},
        {"rejected_ratings": [3, 3]},
    ]
    data = [PAIR | {"prompt": f"q{i}"} | more for i, more in enumerate([*ties, *pairs])]
    script = {"dataset_streaming": streaming}
    for kind, count in (("preference", 4), ("unpaired", 8), ("prompt-completion", 9)):
        assert len(rows(tmp_path, data, kind, script=script)) == count
        assert ("; 5 rows contain only ties" in capsys.readouterr().out) == (count != 9)
