"""Which judgements count, and when a checkpoint is rated."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.app.judgements.judgements import battle, ranking
from toolkit.app.judgements.judgement import Judgement
from toolkit.app.judgements.leaderboard import (
    MIN_PROMPTS,
    MIN_VOTES,
    Board,
    Standing,
    leaderboard,
)


def votes(a: str, b: str, letters: str, *, prompts: int = 100) -> Iterator[Judgement]:
    """Battles of two checkpoints, one for each verdict's letter (a, b, t, x both bad, s skip)."""
    words = {"a": "a", "b": "b", "t": "tie", "x": "both_bad", "s": "skip"}
    for i, letter in enumerate(letters):
        yield battle(f"{a} {b} {i}", a, b, words[letter], prompt=f"Why {i % prompts}?")


def standing(board: Board, name: str) -> Standing:
    """The checkpoint of that name."""
    return next(s for s in board.standings if s.name == name)


def test_best_checkpoint_is_first_with_an_interval() -> None:
    board = leaderboard([*votes("sft", "dpo", "bbba" * 10), *votes("dpo", "base", "aaat" * 10)])
    assert [s.name for s in board.standings] == ["dpo", "sft", "base"]
    for s in board.standings:
        assert s.rating is not None and s.interval is not None
        assert s.interval[0] < s.rating < s.interval[1]
    assert [s.votes for s in board.standings] == [80, 40, 40]
    assert board.wins.tolist() == [[0, 30, 35], [10, 0, 0], [5, 0, 0]]
    assert board.comparisons.tolist() == [[0, 40, 40], [40, 0, 0], [40, 0, 0]]


def test_skip_is_ignored_and_both_bad_is_a_tie() -> None:
    tied = leaderboard(list(votes("sft", "dpo", "at" * 15)))
    bad = leaderboard(list(votes("sft", "dpo", "ax" * 15)))
    assert bad.standings == tied.standings
    skipped = leaderboard([*votes("sft", "dpo", "at" * 15 + "s" * 9), *votes("ppo", "rloo", "ss")])
    assert skipped.standings == tied.standings


def test_too_few_votes_or_prompts_give_no_rating() -> None:
    few = leaderboard(list(votes("sft", "dpo", "a" * (MIN_VOTES - 1))))
    assert [s.unrated for s in few.standings] == ["not enough votes"] * 2
    assert all(s.rating is None and s.interval is None for s in few.standings)
    narrow = votes("sft", "dpo", "ab" * MIN_VOTES, prompts=MIN_PROMPTS - 1)
    assert [s.unrated for s in leaderboard(list(narrow)).standings] == ["not enough votes"] * 2
    enough = leaderboard(list(votes("sft", "dpo", "a" * MIN_VOTES)))
    assert [s.unrated for s in enough.standings] == ["", ""]
    some = leaderboard([*votes("sft", "dpo", "ab" * 20), *votes("ppo", "dpo", "aaa")])
    assert standing(some, "ppo").unrated == "not enough votes"
    assert some.standings[-1].name == "ppo"
    assert standing(some, "sft").rating is not None


def test_unconnected_group_is_not_rated() -> None:
    connected = [*votes("sft", "dpo", "ab" * 20), *votes("dpo", "base", "ab" * 20)]
    board = leaderboard([*connected, *votes("x", "y", "a" * 40)])
    assert {s.name: s.unrated for s in board.standings} == {
        "sft": "",
        "dpo": "",
        "base": "",
        "x": "not compared with the others",
        "y": "not compared with the others",
    }


def test_retrained_checkpoint_is_another_one() -> None:
    old = list(votes("sft", "dpo", "a" * 30))
    new = [
        replace(j, replies=(j.replies[0], replace(j.replies[1], adapter="ffff0000" * 8)))
        for j in votes("sft", "dpo", "b" * 30)
    ]
    board = leaderboard([*old, *new])
    assert [s.name for s in board.standings] == ["dpo [ffff0000]", "sft", "dpo [hash of ]"]


def test_rankings_are_rated() -> None:
    rankings = [ranking(str(i), "sft dpo dpo base", (2, 1, 1, 3), prompt=f"{i}") for i in range(25)]
    board = leaderboard(rankings)
    assert [s.name for s in board.standings] == ["dpo", "sft", "base"]
    assert [s.votes for s in board.standings] == [25, 25, 25]
    assert board.comparisons.tolist() == [[0, 50, 50], [50, 0, 25], [50, 25, 0]]


@pytest.mark.parametrize(("second", "share"), [("b", 1), ("a", 0), ("tie", 0)])
def test_agreement_compares_checkpoints_not_sides(second: str, share: int) -> None:
    judgements = [
        battle("1", "sft", "dpo", "a", labeler="Ann"),
        battle("2", "dpo", "sft", second, labeler="Bob"),
        battle("3", "sft", "dpo", "a", labeler="Bob", prompt="another prompt"),
        battle("4", "sft", "dpo", "b", labeler=""),
    ]
    agreement = leaderboard(judgements).agreement
    assert agreement is not None
    assert (agreement.units, agreement.pairs, agreement.share) == (1, 1, share)


def test_agreement_splits_rankings_into_pairs() -> None:
    judgements = [
        # sft's win three of four pairs with dpo's; ppo's wins both, and one of two with sft's
        ranking("1", "sft dpo sft dpo ppo", (1, 3, 4, 5, 2), labeler="Ann"),
        battle("2", "dpo", "sft", "b", labeler="Bob"),  # the same
        battle("3", "ppo", "dpo", "b", labeler="Bob"),  # the other way round
        ranking("4", "sft ppo sft ppo", (1, 2, 2, 1), labeler="Bob"),  # a tie; Ann: one each, too
    ]
    agreement = leaderboard(judgements).agreement
    assert agreement is not None
    assert (agreement.units, agreement.pairs, agreement.share) == (3, 3, 2 / 3)
    assert leaderboard(judgements[:1]).agreement is None  # a single labeler


def test_leaderboard_without_judgements_is_empty() -> None:
    board = leaderboard([])
    assert board.standings == () and board.agreement is None
