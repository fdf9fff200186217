"""Any row or file gives either well-formed rows or a DatasetError."""

import itertools
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from trl.scripts.utils import DatasetMixtureConfig, ScriptArguments

from tests.data.helpers import EXAMPLES, assistant, user
from toolkit.data import (
    FORMATS,
    KINDS,
    convert_row,
    convert_rows,
    detect_format,
    load_splits,
    ranked_to_pairs,
)
from toolkit.data.convert import Kind, check_conversion
from toolkit.data.messages import SPEAKERS
from toolkit.data.ranking import labels_of
from toolkit.data.reading import mixture_sizes
from toolkit.data.splits import hold_out
from toolkit.errors import DatasetError
from toolkit.options.arguments import DataArguments

TRANSCRIPT = "\n\nHuman: Sky?\n\nAssistant: Blue."
TEXTS = st.sampled_from(["", " ", "Hi", "The sky is", "The sky is blue", TRANSCRIPT, "\ud800"])
SPEAKER = st.sampled_from([*SPEAKERS, "robot"])
TURN = st.fixed_dictionaries({}, optional={"role": SPEAKER, "content": TEXTS}) | st.builds(
    lambda who, what: {"from": who, "value": what}, SPEAKER, TEXTS
)
RATING = st.sampled_from(["1", "5", 3, "N/A", None, float("inf"), True])
JUDGED = st.fixed_dictionaries(
    {},
    optional={
        "response": TEXTS,
        "overall_score": RATING,
        "fine-grained_score": RATING,
        "annotations": st.dictionaries(
            st.sampled_from("ab"), st.fixed_dictionaries({"Rating": RATING}) | RATING, max_size=2
        )
        | st.none(),
    },
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | TEXTS,
    lambda inner: (
        st.lists(inner | TURN | JUDGED, max_size=4) | st.dictionaries(st.text(max_size=3), inner)
    ),
    max_leaves=8,
)
CONVERSATION = st.integers(1, 4).map(
    lambda n: [(assistant if i % 2 else user)(f"turn {i}") for i in range(n)]
)
VALUES = (
    ANYTHING
    | st.lists(TURN, max_size=4)
    | CONVERSATION
    | st.lists(st.integers(-1, 3), max_size=3)
    | st.lists(JUDGED, max_size=3)
    | st.lists(st.lists(TEXTS, max_size=3), max_size=2)
)


@st.composite
def datasets(draw: st.DrawFn) -> tuple[str, list[Any]]:
    """A format and rows of it; some rows are damaged in a column or replaced by anything."""
    name = draw(st.sampled_from([*FORMATS]))
    columns = [*FORMATS[name].columns, *FORMATS[name].optional, "other", "group_id"]
    damage = st.dictionaries(st.sampled_from(columns), VALUES, max_size=2)
    right = st.just(EXAMPLES[name])
    rows = right | st.builds(lambda row, other: {**row, **other}, right, damage) | ANYTHING
    return name, draw(st.lists(rows, max_size=6))


def check_completion(value: Any, *, plain: bool) -> None:
    if not plain:
        assert [m["role"] for m in value] == ["assistant"]
        assert set(value[0]) == {"role", "content"}
        value = value[0]["content"]
    assert isinstance(value, str)
    assert value.strip()


def check_row(row: dict[str, Any], kind: Kind) -> None:
    if kind == "text":
        assert set(row) == {"text"}
        assert row["text"].strip()
        return
    plain = isinstance(row["prompt"], str)
    if not plain:
        spoken = [m["role"] for m in row["prompt"]]
        turns = spoken[1:] if spoken[0] == "system" else spoken
        assert turns[::2] == ["user"] * len(turns[::2])
        assert turns[1::2] == ["assistant"] * len(turns[1::2])
        assert turns[-1] == "user"
    if kind == "prompt-completion":
        assert set(row) - {"group_id"} == {"prompt", "completion"}
    if kind == "unpaired":
        assert row["label"] is True or row["label"] is False
    if kind in ("prompt-completion", "unpaired"):
        check_completion(row["completion"], plain=plain)
    if kind == "preference":
        check_completion(row["chosen"], plain=plain)
        check_completion(row["rejected"], plain=plain)
        assert row["chosen"] != row["rejected"]
    if kind == "answers":
        assert len(row["completions"]) > 1
        for completion in row["completions"]:
            check_completion(completion, plain=plain)


@given(dataset=datasets(), detect=st.booleans(), drop=st.booleans())
def test_any_rows_convert_or_raise_dataset_error(
    dataset: tuple[str, list[Any]], detect: bool, drop: bool
) -> None:
    name, rows = dataset
    for kind in KINDS:
        try:
            format = detect_format(rows, place="x") if detect else name
            check_conversion(format=format, kind=kind, place="x")
            result = convert_rows(rows, place="x", format=format, kind=kind, drop_bad_rows=drop)
        except DatasetError as error:
            str(error).encode()  # can be printed
            continue
        for row in result.rows:
            check_row(row, kind)
        styles = {isinstance(row.get("prompt", row.get("text")), str) for row in result.rows}
        assert len(styles) < 2
        assert result.read == len(rows)
        used, unused = len(result.converted), result.unused.total()
        assert used + len(result.dropped) + unused == len(rows)
        if format not in ("ranked", "ultrafeedback") and not format.endswith("unpaired"):
            assert unused == 0


TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30).filter(str.strip)
# a speaker's name ends a turn of a transcript, and blanks around a turn are removed
TURN_TEXT = TEXT.map(str.strip).filter(lambda t: "Human:" not in t and "Assistant:" not in t)


@given(question=TEXT, good=TEXT, bad=TEXT)
def test_conversion_keeps_every_text_unchanged(question: str, good: str, bad: str) -> None:
    if good.strip() == bad.strip():
        return
    messages = {"prompt": [user(question)], "good": [assistant(good)], "bad": [assistant(bad)]}
    text = {"prompt": question, "good": good, "bad": bad}
    gpt = {"conversations": [{"from": "human", "value": question}]}
    both = {"chosen": {"from": "gpt", "value": good}, "rejected": {"from": "gpt", "value": bad}}
    judged = [{"response": bad, "overall_score": 1}, {"response": good, "overall_score": 2}]
    rows: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("preference", {"prompt": question, "chosen": good, "rejected": bad}, text),
        (
            "preference",
            {"prompt": messages["prompt"], "chosen": messages["good"], "rejected": messages["bad"]},
            messages,
        ),
        (
            "implicit-preference",
            {
                "chosen": messages["prompt"] + messages["good"],
                "rejected": messages["prompt"] + messages["bad"],
            },
            messages,
        ),
        ("alpaca_preference", {"instruction": question, "chosen": good, "rejected": bad}, messages),
        ("sharegpt_preference", gpt | both, messages),
        ("ranked", {"prompt": question, "completions": [bad, good], "ranks": [2, 1]}, text),
        ("ultrafeedback", {"instruction": question, "completions": judged}, messages),
    ]
    for name, row, parts in rows:
        assert detect_format([row], place="x") == name
        check_all_kinds(name, row, parts)
    for name, row, parts in [
        ("prompt-completion", {"prompt": question, "completion": good}, text),
        ("messages", {"messages": messages["prompt"] + messages["good"]}, messages),
        ("sharegpt", {"conversations": [*gpt["conversations"], both["chosen"]]}, messages),
        ("alpaca", {"instruction": question, "output": good}, messages),
        ("unpaired", {"prompt": question, "completion": good, "label": True}, text),
    ]:
        assert detect_format([row], place="x") == name
        new_rows = convert_row(row, format=name, kind="prompt-completion")
        assert new_rows == [{"prompt": parts["prompt"], "completion": parts["good"]}]
        assert convert_row(row, format=name, kind="prompt-only") == [{"prompt": parts["prompt"]}]
    assert convert_row({"text": question}, format="text", kind="text") == [{"text": question}]


@given(question=TURN_TEXT, good=TURN_TEXT, bad=TURN_TEXT)
def test_conversion_keeps_transcripts_unchanged(question: str, good: str, bad: str) -> None:
    if good == bad:
        return
    start = f"\n\nHuman: {question}\n\nAssistant: "
    parts = {"prompt": [user(question)], "good": [assistant(good)], "bad": [assistant(bad)]}
    check_all_kinds("hh", {"chosen": start + good, "rejected": start + bad}, parts)


def check_all_kinds(name: str, row: dict[str, Any], parts: dict[str, Any]) -> None:
    prompt = {"prompt": parts["prompt"]}
    expected: dict[Kind, list[dict[str, Any]]] = {
        "prompt-completion": [prompt | {"completion": parts["good"]}],
        "preference": [prompt | {"chosen": parts["good"], "rejected": parts["bad"]}],
        "prompt-only": [prompt],
        "unpaired": [
            prompt | {"completion": parts["good"], "label": True},
            prompt | {"completion": parts["bad"], "label": False},
        ],
    }
    for kind, rows in expected.items():
        new_rows = convert_row(row, format=name, kind=kind)
        for one in new_rows:
            one.pop("group_id", None)
        assert sorted(map(str, new_rows)) == sorted(map(str, rows)), (name, kind)


@given(st.lists(st.integers(1, 4), min_size=2, max_size=7))
def test_ranking_agrees_with_a_slow_loop(ranks: list[int]) -> None:
    row = {"prompt": "q", "completions": [f"c{i}" for i in range(len(ranks))], "ranks": ranks}
    wins: Counter[tuple[str, str]] = Counter()
    for (i, a), (j, b) in itertools.permutations(enumerate(ranks), 2):
        if a < b:
            wins[f"c{i}", f"c{j}"] += 1
    comparisons = [(pair["chosen"], pair["rejected"]) for pair in ranked_to_pairs(row)]
    assert Counter(comparisons) == wins
    top = {f"c{i}" for i, rank in enumerate(ranks) if rank == min(ranks)}
    comparisons = [
        (pair["chosen"], pair["rejected"]) for pair in ranked_to_pairs(row, pairs="best")
    ]
    assert set(comparisons) == {pair for pair in wins if pair[0] in top}
    labels = {one["completion"]: one["label"] for one in labels_of(row, pairs="all")}
    for i in range(len(ranks)):
        better = sum(rank > ranks[i] for rank in ranks)  # how many it beats
        worse = sum(rank < ranks[i] for rank in ranks)
        assert labels.get(f"c{i}") == (None if better == worse else better > worse)


@given(
    rows=st.lists(
        st.builds(
            lambda p, g: {"prompt": p, "group_id": g},
            st.sampled_from("abcdefgh"),
            st.none() | st.integers(0, 3),
        ),
        min_size=2,
        max_size=20,
    ),
    size=st.floats(0.05, 0.9),
)
def test_split_keeps_prompts_and_groups_on_one_side(rows: list[Any], size: float) -> None:
    try:
        train, test = hold_out(rows, size, seed=0, place="x")
    except DatasetError:
        return
    assert sorted(train + test) == list(range(len(rows)))
    assert train and test
    for name in ("prompt", "group_id"):
        sides = [{rows[i][name] for i in side} - {None} for side in (train, test)]
        assert not sides[0] & sides[1]


@given(
    st.lists(
        st.tuples(st.integers(1, 1000), st.floats(0.01, 10)),
        min_size=1,
        max_size=5,
    )
)
def test_mixture_sizes_keep_shares_without_repeats(sources: list[tuple[int, float]]) -> None:
    sizes, shares = [s for s, _ in sources], [f for _, f in sources]
    counts = mixture_sizes(sizes, shares)
    assert all(count <= size for count, size in zip(counts, sizes, strict=True))
    assert any(count == size for count, size in zip(counts, sizes, strict=True))  # none larger
    total = sum(counts)
    for count, share in zip(counts, shares, strict=True):
        assert abs(count - total * share / sum(shares)) <= len(sources)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
CONTENT = (
    st.binary(max_size=60)
    | st.text(max_size=60).map(lambda t: t.encode("utf-8", "surrogatepass"))
    | st.lists(JSON | st.sampled_from([*EXAMPLES.values()]), max_size=4).map(
        lambda rows: "\n".join(map(json.dumps, rows)).encode()
    )
    | st.lists(JSON | st.sampled_from([*EXAMPLES.values()]), max_size=4).map(
        lambda rows: json.dumps(rows).encode()
    )
    | st.lists(st.lists(st.sampled_from(["a", '"b', "", "é"])), max_size=4).map(
        lambda rows: "\n".join(["prompt,completion", *map(",".join, rows)]).encode()
    )
)


@settings(max_examples=150, deadline=None)
@given(
    content=CONTENT,
    name=st.sampled_from(["d.jsonl", "d.json", "d.csv", "d.parquet", "d.jsonl.gz"]),
    kind=st.sampled_from(KINDS),
    drop=st.booleans(),
)
def test_any_file_is_read_or_raises(content: bytes, name: str, kind: Kind, drop: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / name
        file.write_bytes(content)
        try:
            splits = load_splits(
                ScriptArguments(dataset_name=str(file)),
                DatasetMixtureConfig(),
                DataArguments(drop_bad_rows=drop, drop_duplicates=drop),
                kind=kind,
                seed=0,
                folder=Path(folder),
            )
        except DatasetError as error:
            str(error).encode()  # can be printed
            if str(file) not in str(error):
                raise
            return
        assert len(splits["train"]) == len(splits.origins["train"]) > 0
        for row in splits["train"]:
            check_row(row, kind)
