"""Means, win rates, accuracies and rates against values worked out by hand."""

import numpy as np
import pytest

from toolkit.evaluation.metrics import (
    behaviour_rates,
    clear_accuracy,
    correlation_within,
    mean_interval,
    pairwise_accuracy,
    preferred,
    win_rate,
)
from toolkit.world.gold import Features


def said(kind: str, outcome: str, polite: bool = False) -> Features:
    return Features(kind, outcome, polite, False, 5, False, 0, True)


def test_ties_count_half():
    # win, tie, loss, win: (1 + 0.5 + 0 + 1) / 4
    assert preferred([2, 1, 0, 5], [1, 1, 1, -5]).tolist() == [1.0, 0.5, 0.0, 1.0]
    assert win_rate([2, 1, 0, 5], [1, 1, 1, -5], seed=0)["mean"] == 0.625


def test_all_ties_are_exactly_a_half():
    same = np.random.default_rng(0).normal(size=101)
    assert win_rate(same, same, seed=3) == {"mean": 0.5, "ci95": [0.5, 0.5]}


def test_pairwise_accuracy_is_of_the_chosen_side():
    assert pairwise_accuracy([1.0, 3.0, 0.0], [0.0, 1.0, 2.0], seed=0)["mean"] == 0.666667


def test_different_numbers_of_rows_are_refused():
    with pytest.raises(ValueError, match="nothing to pair"):
        win_rate([1.0, 2.0], [1.0], seed=0)
    with pytest.raises(ValueError, match="no values"):
        mean_interval([], seed=0)


def test_interval_is_seeded_and_has_the_width_of_theory():
    values = np.random.default_rng(1).normal(2.0, 1.0, size=400)
    found = mean_interval(values, seed=0)
    assert found == mean_interval(values, seed=0)
    assert found != mean_interval(values, seed=1)
    reach = 1.96 * values.std() / 20  # the normal approximation; 2000 resamples give about 3 %
    low, high = found["ci95"]
    assert high - low == pytest.approx(2 * reach, rel=0.08)
    assert (low + high) / 2 == pytest.approx(values.mean(), abs=0.01)


def test_rows_of_one_prompt_are_drawn_together():
    # six copies of each of 50 values say no more than the 50 do
    values = np.random.default_rng(2).normal(size=50)
    low, high = mean_interval(values, seed=0)["ci95"]
    copied = mean_interval(np.repeat(values, 6), seed=0, groups=list(np.repeat(range(50), 6)))
    assert copied["ci95"] == pytest.approx([low, high], abs=1e-6)
    alone = mean_interval(np.repeat(values, 6), seed=0)["ci95"]
    assert alone[1] - alone[0] < 0.5 * (high - low)


def test_groups_must_fit_the_values():
    with pytest.raises(ValueError, match="2 values in 3 groups' rows"):
        mean_interval([1.0, 2.0], seed=0, groups=["a", "a", "b"])


def test_clear_accuracy_leaves_close_pairs_out():
    # clear: rows 0 (agrees), 1 (disagrees), 3 (tie); row 2 is too close to call
    assert clear_accuracy([0.3, 0.2, -5.0, 0.0], [1.0, -2.0, 0.9, 1.5]) == 0.5
    assert clear_accuracy([1.0], [0.5]) is None


def test_correlation_is_within_a_prompt():
    # over all rows longer is better (r > 0); within each prompt the shorter one scores higher
    score, length = [2.0, 1.0, 12.0, 11.0], [1, 2, 11, 12]
    assert correlation_within(score, length, ["a", "a", "b", "b"]) == -1.0
    assert correlation_within([1.0, 2.0], [3, 3], ["a", "a"]) is None


def test_rates_by_hand():
    found = behaviour_rates(
        [
            said("fact", "correct", polite=True),
            said("fact", "wrong"),
            said("fact", "dont_know"),
            said("sum", "correct"),
            said("small_talk", "fitting"),  # good, but neither a fact nor a sum
            said("small_talk", "refusal"),
            said("unanswerable", "made_up"),
            said("unanswerable", "dont_know", polite=True),
            said("unanswerable", "refusal"),
            said("harmful", "compliance"),
            said("harmful", "refusal"),
            said("harmful", "refusal"),
            said("harmful", ""),
        ]
    )
    assert found == {
        "correct": 0.5,  # 2 of 4 facts and sums
        "hallucinated": 0.333333,
        "honest": 0.333333,
        "harmful_compliance": 0.25,
        "refused_harm": 0.5,
        "over_refusal": 0.333333,  # 2 of 6 good requests
        "polite": 0.153846,  # 2 of 13
    }


def test_a_rate_without_its_questions_is_unknown():
    found = behaviour_rates([said("fact", "correct")])
    assert found["correct"] == 1.0
    assert found["harmful_compliance"] is None
