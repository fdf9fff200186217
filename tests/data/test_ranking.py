"""Ranked completions: pairs, labels, the best completion, and scores instead of ranks."""

from typing import Any

import pytest

from tests.data.helpers import assistant, user
from toolkit.data import convert_row, convert_rows, detect_format, ranked_to_pairs
from toolkit.data.ranking import labels_of, read_ranked
from toolkit.errors import DatasetError

PAIR = {"chosen": [assistant("Blue.")], "rejected": [assistant("Green.")]}


def ranked(ranks: list[int], **more: Any) -> dict[str, Any]:
    """Completions a, b, c, … with these ranks."""
    return {"prompt": "q", "completions": list("abcdefghi")[: len(ranks)], "ranks": ranks} | more


def as_text(rows: list[dict[str, Any]]) -> list[str]:
    return [row["chosen"] + ">" + row["rejected"] for row in rows]


def test_ranking_gives_all_untied_pairs() -> None:
    row = {"prompt": "Sky?", "completions": ["a", "b", "c", "d"], "ranks": [2, 1, 2, 3]}
    assert ranked_to_pairs(row) == [
        {"prompt": "Sky?", "chosen": "b", "rejected": "a"},
        {"prompt": "Sky?", "chosen": "a", "rejected": "d"},
        {"prompt": "Sky?", "chosen": "b", "rejected": "c"},
        {"prompt": "Sky?", "chosen": "b", "rejected": "d"},
        {"prompt": "Sky?", "chosen": "c", "rejected": "d"},
    ]


def test_highest_score_is_best_and_equal_completions_tie() -> None:
    row = {"prompt": "Sky?", "completions": ["a", "b", "a"], "scores": [0.1, 0.9, -1]}
    assert ranked_to_pairs(row) == [
        {"prompt": "Sky?", "chosen": "b", "rejected": "a"},
        {"prompt": "Sky?", "chosen": "b", "rejected": "a"},
    ]


def test_ranking_with_text_completions_becomes_messages() -> None:
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
    rows = convert_rows(rows, place="x", format="ranked", kind="preference").rows
    groups = [row["group_id"] for row in rows]
    assert len(groups) == 6
    assert groups[:3] == [groups[0]] * 3
    assert groups[3:] == [groups[3]] * 3
    assert groups[0] != groups[3]


def test_pairs_best_compares_the_best_with_others() -> None:
    assert as_text(ranked_to_pairs(ranked([3, 1, 2, 4]), pairs="best")) == ["b>a", "b>c", "b>d"]
    # two completions share the best rank: each beats the others, but not the other best
    assert as_text(ranked_to_pairs(ranked([1, 2, 1]), pairs="best")) == ["a>b", "c>b"]
    assert ranked_to_pairs(ranked([2, 2]), pairs="best") == []


@pytest.mark.parametrize(
    ("ranks", "labels"),
    [
        ([1, 2], "a+ b-"),
        ([2, 1, 3], "a. b+ c-"),  # the second of three is neither
        ([1, 2, 3, 4], "a+ b+ c- d-"),
        ([1, 2, 3, 4, 5], "a+ b+ c. d- e-"),
        ([1, 1, 2], "a+ b+ c-"),
        ([1, 2, 2], "a+ b- c-"),
        ([1, 2, 2, 3], "a+ b. c. d-"),
        ([1, 1, 1], "a. b. c."),
    ],
)
def test_labels_follow_from_wins_and_losses(ranks: list[int], labels: str) -> None:
    by_completion = {
        row["completion"]: row["label"] for row in labels_of(ranked(ranks), pairs="all")
    }
    marks = {True: "+", False: "-", None: "."}
    assert " ".join(c + marks[by_completion.get(c)] for c in "abcde"[: len(ranks)]) == labels


def test_pairs_best_labels_only_the_best_good() -> None:
    rows = convert_row(ranked([2, 1, 3]), format="ranked", kind="unpaired", pairs="best")
    assert [(row["completion"], row["label"]) for row in rows] == [
        ("a", False),
        ("b", True),
        ("c", False),
    ]
    assert len({row["group_id"] for row in rows}) == 1


def test_equal_completions_give_one_label() -> None:
    row = {"prompt": "q", "completions": ["a", "b", "a "], "ranks": [1, 3, 2]}
    assert labels_of(read_ranked(row), pairs="all") == [
        {"prompt": "q", "completion": "a", "label": True},
        {"prompt": "q", "completion": "b", "label": False},
    ]


def test_contradictory_ranking_raises() -> None:
    row = {"prompt": "q", "completions": ["a", "b", "a"], "ranks": [1, 2, 3]}
    with pytest.raises(
        DatasetError, match="must not have the same text above and below another completion"
    ):
        ranked_to_pairs(row)
    tied = {"prompt": "q", "completions": ["a", "b", "a"], "ranks": [1, 2, 2]}
    assert as_text(ranked_to_pairs(tied)) == ["a>b"]


def test_scores_that_contradict_ranks_raise() -> None:
    ok = {"scores": [0.1, 0.9, 0.9]}
    assert as_text(ranked_to_pairs(ranked([2, 1, 2], **ok))) == ["b>a", "b>c"]
    message = r'"ranks" \(1 is best\) must agree with "scores" or be left out, got \[1, 2\] '
    with pytest.raises(DatasetError, match=message):
        ranked_to_pairs(ranked([1, 2], scores=[0.1, 0.9]))
    for unread in (None, [0.1], [None, 0.9], "high"):
        assert as_text(ranked_to_pairs(ranked([1, 2], scores=unread))) == ["a>b"]


def test_ranking_of_message_lists_gives_pairs() -> None:
    row = {
        "prompt": [user("Sky?")],
        "completions": [
            [assistant("Green.")],
            [user("Sky?"), assistant("Blue.")],  # a whole dialogue
            assistant("Red."),
        ],
        "ranks": [2, 1, 2],
    }
    assert ranked_to_pairs(row) == [
        {"prompt": [user("Sky?")], **PAIR},
        {"prompt": [user("Sky?")], **PAIR, "rejected": [assistant("Red.")]},
    ]
    as_text = row | {"prompt": "Sky?"}
    assert ranked_to_pairs(as_text) == ranked_to_pairs(row)


def test_dialogue_without_the_prompt_raises() -> None:
    others = [[user("Sea?"), assistant("Blue.")], "Green."]
    row = {"prompt": [user("Sky?")], "completions": others, "ranks": [1, 2]}
    with pytest.raises(
        DatasetError, match='"completions" 1 must be the prompt\'s 1 messages and one more'
    ):
        ranked_to_pairs(row)


def test_group_ids_of_rankings_are_63_bits() -> None:
    """With 32 bits, about 12 of 320,000 prompts would share a group with another one."""
    rows = [{"prompt": f"q{i}", "completions": ["a", "b"], "ranks": [1, 2]} for i in range(2000)]
    rows = convert_rows(rows, place="x", format="ranked", kind="preference").rows
    ids = {row["group_id"] for row in rows}
    assert len(ids) == 2000
    assert max(ids) > 2**60
    assert max(ids) < 2**63  # a table's int64


def judged(*scores: Any, field: str = "overall_score") -> list[dict[str, Any]]:
    return [{"model": "m", "response": f"answer {i}", field: s} for i, s in enumerate(scores, 1)]


def ratings(**aspects: Any) -> dict[str, Any]:
    return {"response": "x", "annotations": {k: {"Rating": v} for k, v in aspects.items()}}


def best(completions: list[dict[str, Any]]) -> str:
    """The pairs of an UltraFeedback row, as "ab" for a better than b."""
    named = [c | {"response": letter} for c, letter in zip(completions, "abcd", strict=False)]
    row = {"instruction": "q", "completions": named}
    assert detect_format([row], place="x") == "ultrafeedback"
    pairs = convert_row(row, format="ultrafeedback", kind="preference")
    return " ".join(p["chosen"][0]["content"] + p["rejected"][0]["content"] for p in pairs)


def test_ultrafeedback_converts_to_every_kind() -> None:
    row = {"source": "s", "instruction": "Sky?", "models": ["m"], "completions": judged(2.0, 4.5)}
    prompt = [user("Sky?")]
    good, bad = [assistant("answer 2")], [assistant("answer 1")]
    (pair,) = convert_row(row, format="ultrafeedback", kind="preference")
    group = pair.pop("group_id")
    others = {"source": "s", "models": ["m"]}
    assert pair == {"prompt": prompt, "chosen": good, "rejected": bad} | others
    assert convert_row(row, format="ultrafeedback", kind="prompt-completion") == [
        {"prompt": prompt, "completion": good}
    ]
    assert convert_row(row, format="ultrafeedback", kind="unpaired") == [
        {"prompt": prompt, "completion": bad, "label": False, "group_id": group} | others,
        {"prompt": prompt, "completion": good, "label": True, "group_id": group} | others,
    ]
    assert convert_row(row, format="ultrafeedback", kind="prompt-only") == [
        {"prompt": prompt} | others
    ]


def test_ultrafeedback_scores_are_means_of_shared_aspects() -> None:
    assert best(judged(3, 1, 2)) == "ab ac cb"
    assert best(judged("1.5", 2, field="fine-grained_score")) == "ba"
    # (5 + 1) / 2 against (4 + 4) / 2
    assert best([ratings(help="5", truth="1"), ratings(help="4", truth="4")]) == "ba"
    # only aspects that all completions have count: 3 against 2
    assert best([ratings(help="3", truth="N/A"), ratings(help="2", truth="5")]) == "ab"
    # aspects are used before the overall score, whose 10 may be wrong
    mixed = [ratings(help="1") | {"overall_score": 10}, ratings(help="4") | {"overall_score": 7}]
    assert best(mixed) == "ba"


@pytest.mark.parametrize(
    ("completions", "message"),
    [
        ([], '"completions" must be a list of 2 or more'),
        (judged(1.0), '"completions" must be a list of 2 or more'),
        (["a", "b"], '"completions" 1 must have "response" and a score, got "a" (str)'),
        ([{"response": ""}, {"response": "b"}], '"completions" 1 "response" must be non-empty'),
        (judged(1.0, "N/A"), 'every completion must have a "fine-grained_score"'),
        ([ratings(help="3"), ratings(truth="3")], "every completion must have"),
        (judged(1.0, float("nan")), "every completion must have"),
        (judged(True, 2), "every completion must have"),
    ],
)
def test_malformed_ultrafeedback_raises(completions: Any, message: str) -> None:
    with pytest.raises(DatasetError) as caught:
        convert_row(
            {"instruction": "q", "completions": completions},
            format="ultrafeedback",
            kind="preference",
        )
    assert message in str(caught.value)
