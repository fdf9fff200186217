"""Which judgements count, and when a checkpoint has a rating."""

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


def votes(a: str, b: str, said: str, *, prompts: int = 100) -> Iterator[Judgement]:
    """Battles of two checkpoints, one for each verdict's letter (a, b, t, x both bad, s skip)."""
    words = {"a": "a", "b": "b", "t": "tie", "x": "both_bad", "s": "skip"}
    for i, letter in enumerate(said):
        yield battle(f"{a} {b} {i}", a, b, words[letter], asked=f"Why {i % prompts}?")


def standing(board: Board, name: str) -> Standing:
    """The checkpoint of that name."""
    (found,) = [s for s in board.standings if s.name == name]
    return found


def test_the_better_one_stands_first_with_an_interval_around_its_rating() -> None:
    board = leaderboard([*votes("sft", "dpo", "bbba" * 10), *votes("dpo", "base", "aaat" * 10)])
    assert [s.name for s in board.standings] == ["dpo", "sft", "base"]
    for one in board.standings:
        assert one.rating is not None and one.interval is not None
        assert one.interval[0] < one.rating < one.interval[1]
    assert [s.votes for s in board.standings] == [80, 40, 40]
    assert board.wins.tolist() == [[0, 30, 35], [10, 0, 0], [5, 0, 0]]
    assert board.comparisons.tolist() == [[0, 40, 40], [40, 0, 0], [40, 0, 0]]


def test_skip_counts_nowhere_and_both_bad_is_a_tie() -> None:
    tied = leaderboard(list(votes("sft", "dpo", "at" * 15)))
    bad = leaderboard(list(votes("sft", "dpo", "ax" * 15)))
    assert bad.standings == tied.standings
    skipped = leaderboard([*votes("sft", "dpo", "at" * 15 + "s" * 9), *votes("ppo", "rloo", "ss")])
    assert skipped.standings == tied.standings


def test_below_the_threshold_there_is_no_rating() -> None:
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


def test_islands_are_not_rated_against_each_other() -> None:
    votes_ = [*votes("sft", "dpo", "ab" * 20), *votes("dpo", "base", "ab" * 20)]
    board = leaderboard([*votes_, *votes("x", "y", "a" * 40)])
    assert {s.name: s.unrated for s in board.standings} == {
        "sft": "",
        "dpo": "",
        "base": "",
        "x": "not compared with the others",
        "y": "not compared with the others",
    }


def test_a_checkpoint_trained_again_is_another_one() -> None:
    old = list(votes("sft", "dpo", "a" * 30))
    new = [
        replace(j, replies=(j.replies[0], replace(j.replies[1], adapter="ffff0000" * 8)))
        for j in votes("sft", "dpo", "b" * 30)
    ]
    board = leaderboard([*old, *new])
    assert [s.name for s in board.standings] == ["dpo [ffff0000]", "sft", "dpo [hash of ]"]


def test_rankings_and_battles_count_together() -> None:
    rankings = [ranking(str(i), "sft dpo dpo base", (2, 1, 1, 3), asked=f"{i}") for i in range(25)]
    board = leaderboard(rankings)
    assert [s.name for s in board.standings] == ["dpo", "sft", "base"]
    assert [s.votes for s in board.standings] == [25, 25, 25]
    assert board.comparisons.tolist() == [[0, 50, 50], [50, 0, 25], [50, 25, 0]]


@pytest.mark.parametrize(("second", "alike"), [("b", 1), ("a", 0), ("tie", 0)])
def test_agreement_is_about_checkpoints_and_not_about_sides(second: str, alike: int) -> None:
    said = [
        battle("1", "sft", "dpo", "a", labeler="Ann"),
        battle("2", "dpo", "sft", second, labeler="Bob"),
        battle("3", "sft", "dpo", "a", labeler="Bob", asked="another prompt"),
        battle("4", "sft", "dpo", "b", labeler=""),
    ]
    found = leaderboard(said).agreement
    assert found is not None
    assert (found.units, found.pairs, found.share) == (1, 1, alike)


def test_agreement_counts_rankings_by_the_pairs_of_answers() -> None:
    said = [
        # sft's win three of four pairs with dpo's; ppo's wins both, and one of two with sft's
        ranking("1", "sft dpo sft dpo ppo", (1, 3, 4, 5, 2), labeler="Ann"),
        battle("2", "dpo", "sft", "b", labeler="Bob"),  # the same
        battle("3", "ppo", "dpo", "b", labeler="Bob"),  # the other way round
        ranking("4", "sft ppo sft ppo", (1, 2, 2, 1), labeler="Bob"),  # a tie; Ann: one each, too
    ]
    found = leaderboard(said).agreement
    assert found is not None
    assert (found.units, found.pairs, found.share) == (3, 3, 2 / 3)
    # one labeler alone has nobody to agree with
    assert leaderboard([said[0]]).agreement is None


def test_no_judgements() -> None:
    board = leaderboard([])
    assert board.standings == () and board.agreement is None
