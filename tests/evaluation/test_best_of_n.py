"""Ranked lists: the training data and the numbers that are made from them, by hand."""

import math

import numpy as np
import pytest

from toolkit.data.messages import assistant, user
from toolkit.errors import CheckpointError
from toolkit.evaluation.best_of_n import (
    append_rows,
    best_of_n_kl,
    comparisons,
    count_finished,
    demonstrations,
    ranked_row,
    read_rows,
    seeds_of,
    summarize,
)
from toolkit.sampling.generation import Completion

# score 3 did not end, 2.5 is blank, and the two answers "b" are one
ANSWERS = [("b", 1.0), ("a", 2.0), ("long", 3.0), ("c", 0.5), ("b ", 1.0), (" ", 2.5), ("d", 0.5)]
ROW = ranked_row(
    "Why?",
    [Completion([1] * 3, text, text != "long") for text, _ in ANSWERS],
    [s for _, s in ANSWERS],
)
EQUAL = ranked_row([user("Who?")], [Completion([1], t, True) for t in "xy"], [4.0, 4.0])
CUT = ranked_row("How?", [Completion([1], t, False) for t in "xy"], [1.0, 0.0])


def test_row_has_all_answers_from_best_to_worst():
    assert ROW["completions"] == ["long", " ", "a", "b", "b ", "c", "d"]
    assert ROW["scores"] == [3.0, 2.5, 2.0, 1.0, 1.0, 0.5, 0.5]
    assert ROW["ended"] == [False, *[True] * 6]


def test_best_answer_has_ended_and_is_not_blank():
    assert list(demonstrations([ROW, CUT, EQUAL])) == [
        {"prompt": "Why?", "completion": "a", "score": 2.0},
        {"prompt": [user("Who?")], "completion": [assistant("x")], "score": 4.0},
    ]


@pytest.mark.parametrize(
    ("pairs", "expected"), [("extremes", ["ad"]), ("all", ["ab", "ac", "ad", "bc", "bd"])]
)
def test_pairs_differ_in_score_and_text(pairs, expected):
    rows = list(comparisons([ROW, CUT, EQUAL], pairs))
    assert [row["chosen"] + row["rejected"] for row in rows] == expected
    assert rows[0]["score_chosen"] == 2.0
    assert all(row["score_chosen"] > row["score_rejected"] for row in rows)


def test_numbers_of_the_lists_match_hand_arithmetic():
    two = [EQUAL, CUT | {"ended": [True, False], "tokens": [5, 7]}]
    numbers = summarize(two)
    assert numbers == {
        "prompts": 2,
        "answers": 4,
        "score_mean": 2.25,  # of 4, 4, 1, 0
        "score_std": 1.785357,  # the root of (1.75² + 1.75² + 1.25² + 2.25²) / 4
        "score_std_within": 0.25,  # of 0 and 0.5
        "best_score_mean": 2.5,
        "no_spread": 2,  # equal scores, and a single answer that ended
        "no_usable": 0,
        "ended": 0.75,
        "tokens": 14,
        "kl_best_of_n": 0.193147,  # log 2 - 1/2
    }
    assert summarize([CUT])["best_score_mean"] is None


@pytest.mark.parametrize("n", [1, 4, 64])
def test_kl_of_best_of_n_matches_its_integral(n):
    """The best of n uniform scores has the density n·uⁿ⁻¹; its KL from the uniform one, by quadrature."""
    u = (np.arange(1_000_000) + 0.5) / 1_000_000
    density = n * u ** (n - 1)
    assert best_of_n_kl(n) == pytest.approx(
        float((density * np.log(np.maximum(density, 1e-300))).mean()), abs=1e-3
    )
    assert math.isclose(best_of_n_kl(1), 0.0)


def test_seeds_depend_on_the_prompt_only():
    assert seeds_of(0, 7, 4) == seeds_of(0, 7, 9)[:4]
    assert len({*seeds_of(0, 7, 4), *seeds_of(0, 8, 4), *seeds_of(1, 7, 4)}) == 12


@pytest.mark.parametrize(
    ("tail", "batch", "finished"),
    [("", 1, 3), ('{"prompt": "p3', 1, 3), ("", 2, 2), ('{"prompt": "p3"}\n', 3, 3), ("", 5, 0)],
)
def test_rows_of_incomplete_batch_are_removed(tmp_path, tail, batch, finished):
    file, prompts = tmp_path / "answers.jsonl", [f"p{i}" for i in range(6)]
    append_rows(file, [{"prompt": prompt} for prompt in prompts[:3]])
    with file.open("a") as stream:
        stream.write(tail)
    assert count_finished(file, prompts, batch) == finished
    assert [row["prompt"] for row in read_rows(file)] == prompts[:finished]
    assert count_finished(file, prompts, batch) == finished


@pytest.mark.parametrize("line", ['{"prompt": "p5"}\n', "no JSON\n", '{"prompt": "p0"}\n' * 3])
def test_rows_of_other_prompts_are_rejected(tmp_path, line):
    file = tmp_path / "answers.jsonl"
    file.write_text('{"prompt": "p0"}\n' + line)
    with pytest.raises(CheckpointError, match="line 2: expected the answers to prompt 2 of 2, got"):
        count_finished(file, ["p0", "p1"], 1)
