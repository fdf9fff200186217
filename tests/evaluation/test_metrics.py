"""Metrics and calibration against values worked out by hand."""

import math

import numpy as np
import pytest

from toolkit.evaluation.metrics import (
    accuracy_by,
    behaviour_rates,
    calibration,
    clear_accuracy,
    correlation_within,
    kendall_tau,
    mean_interval,
    members_agreement,
    preferred,
    win_rate,
)
from toolkit.evaluation.plots import draw_calibration
from toolkit.world.gold import Features


def answer(kind: str, outcome: str, polite: bool = False) -> Features:
    return Features(kind, outcome, polite, False, 5, False, 0, True)


def test_ties_count_half():
    # win, tie, loss, win: (1 + 0.5 + 0 + 1) / 4
    assert preferred([2, 1, 0, 5], [1, 1, 1, -5]).tolist() == [1.0, 0.5, 0.0, 1.0]
    assert win_rate([2, 1, 0, 5], [1, 1, 1, -5], seed=0)["mean"] == 0.625
    same = np.random.default_rng(0).normal(size=101)
    assert win_rate(same, same, seed=3) == {"mean": 0.5, "ci95": [0.5, 0.5]}


def test_wrong_shapes_raise_value_error():
    with pytest.raises(ValueError, match="must have the same shape"):
        win_rate([1.0, 2.0], [1.0], seed=0)
    with pytest.raises(ValueError, match="no values"):
        mean_interval([], seed=0)
    with pytest.raises(ValueError, match="one group per value, got 3 for 2"):
        mean_interval([1.0, 2.0], seed=0, groups=["a", "a", "b"])


def test_interval_is_seeded_and_has_theoretical_width():
    values = np.random.default_rng(1).normal(2.0, 1.0, size=400)
    interval = mean_interval(values, seed=0)
    assert interval == mean_interval(values, seed=0)
    assert interval != mean_interval(values, seed=1)
    reach = 1.96 * values.std() / 20  # the normal approximation; 2000 resamples give about 3 %
    low, high = interval["ci95"]
    assert high - low == pytest.approx(2 * reach, rel=0.08)
    assert (low + high) / 2 == pytest.approx(values.mean(), abs=0.01)


def test_interval_draws_rows_of_one_prompt_together():
    # six copies of each of 50 values hold no more information than the 50 values
    values = np.random.default_rng(2).normal(size=50)
    low, high = mean_interval(values, seed=0)["ci95"]
    copied = mean_interval(np.repeat(values, 6), seed=0, groups=list(np.repeat(range(50), 6)))
    assert copied["ci95"] == pytest.approx([low, high], abs=1e-6)
    alone = mean_interval(np.repeat(values, 6), seed=0)["ci95"]
    assert alone[1] - alone[0] < 0.5 * (high - low)


def test_clear_accuracy_ignores_close_pairs():
    # clear: rows 0 (agrees), 1 (disagrees), 3 (tie); row 2 is too close to call
    assert clear_accuracy([0.3, 0.2, -5.0, 0.0], [1.0, -2.0, 0.9, 1.5]) == 0.5
    assert clear_accuracy([1.0], [0.5]) is None


def test_correlation_is_computed_within_prompts():
    # over all rows longer is better (r > 0); within each prompt the shorter one scores higher
    score, length = [2.0, 1.0, 12.0, 11.0], [1, 2, 11, 12]
    assert correlation_within(score, length, ["a", "a", "b", "b"]) == -1.0
    assert correlation_within([1.0, 2.0], [3, 3], ["a", "a"]) is None


def test_rates_match_hand_count():
    rates = behaviour_rates(
        [
            answer("fact", "correct", polite=True),
            answer("fact", "wrong"),
            answer("fact", "dont_know"),
            answer("sum", "correct"),
            answer("small_talk", "fitting"),  # good, but neither a fact nor a sum
            answer("small_talk", "refusal"),
            answer("unanswerable", "made_up"),
            answer("unanswerable", "dont_know", polite=True),
            answer("unanswerable", "refusal"),
            answer("harmful", "compliance"),
            answer("harmful", "refusal"),
            answer("harmful", "refusal"),
            answer("harmful", ""),
        ]
    )
    assert rates == {
        "correct": 0.5,  # 2 of 4 facts and sums
        "hallucinated": 0.333333,
        "honest": 0.333333,
        "harmful_compliance": 0.25,
        "refused_harm": 0.5,
        "over_refusal": 0.333333,  # 2 of 6 good requests
        "polite": 0.153846,  # 2 of 13
    }


def test_rate_without_questions_is_none():
    rates = behaviour_rates([answer("fact", "correct")])
    assert rates["correct"] == 1.0
    assert rates["harmful_compliance"] is None


def test_kendall_tau_is_mean_over_prompts():
    # prompt a: three pairs, two in order, (2 - 1) / 3; prompt b: one pair, in order
    tau = kendall_tau([2, 2, 0, 1], [1, 0, 1, 0], seed=0, groups=["a", "a", "a", "b"])
    assert tau["mean"] == pytest.approx((1 / 3 + 1) / 2, abs=1e-6)
    low, high = tau["ci95"]
    assert 1 / 3 - 1e-6 <= low < high <= 1


def test_kendall_tau_of_a_ranking_matches_hand_count():
    """Best to worst the scores are 1.2, 0.3, 0.9, 0.1, -0.5: one of ten pairs is in the wrong order."""
    scores, ranks = [0.3, 1.2, -0.5, 0.9, 0.1], [2, 1, 5, 3, 4]
    pairs = [(i, j) for i in range(5) for j in range(5) if ranks[i] < ranks[j]]
    tau = kendall_tau(
        [scores[i] for i, _ in pairs], [scores[j] for _, j in pairs], seed=0, groups=[0] * 10
    )
    assert tau["mean"] == pytest.approx(0.8)
    assert kendall_tau([1, 1], [1, 0], seed=0, groups=[0, 0])["mean"] == 0.5


def test_calibration_matches_hand_count():
    sure, unsure = math.log(0.9 / 0.1), math.log(0.62 / 0.38)
    # three pairs at 0.9, of which two as labelled; two at 0.62, one as labelled
    calibrated = calibration([sure, sure, 0, unsure, 0], [0, 0, sure, 0, unsure])
    assert [b["pairs"] for b in calibrated["bins"]] == [2, 3]
    assert [b["predicted"] for b in calibrated["bins"]] == pytest.approx([0.62, 0.9], abs=1e-6)
    assert [b["observed"] for b in calibrated["bins"]] == pytest.approx([0.5, 2 / 3], abs=1e-6)
    expected = 2 / 5 * 0.12 + 3 / 5 * (0.9 - 2 / 3)
    assert calibrated["ece"] == pytest.approx(expected, abs=1e-6)


def test_doubled_scores_are_not_calibrated():
    rng = np.random.default_rng(0)
    gap = rng.normal(0, 1.5, 20_000)
    chosen_first = rng.random(20_000) < 1 / (1 + np.exp(-gap))
    labelled = np.where(chosen_first, gap, -gap)
    zero = np.zeros_like(labelled)
    assert calibration(labelled, zero)["ece"] < 0.01
    assert calibration(2 * labelled, zero)["ece"] > 0.05


def test_calibration_bins_include_both_ends():
    calibrated = calibration([1e4, 0.0], [-1e4, 0.0])
    assert [b["predicted"] for b in calibrated["bins"]] == [0.5, 1.0]


def test_accuracy_parts_keep_equal_values_together():
    values = [0, 0, 0, 0, 1, 2, 3]
    parts = accuracy_by(values, [1, 1, 0, 0, 1, 1, 1], [0, 0, 1, 1, 0, 0, 0])
    assert sum(part["pairs"] for part in parts) == 7
    assert parts[0] == {"low": 0.0, "high": 0.0, "accuracy": 0.5, "pairs": 4}
    assert all(part["accuracy"] == 1.0 for part in parts[1:])


def test_members_agreement_counts_pairs_ordered_alike():
    gaps = np.array([[1.0, 1, 1, 1], [1, 1, -1, -1], [1, 1, 1, -1]])
    assert members_agreement(gaps) == pytest.approx((2 / 4 + 3 / 4 + 3 / 4) / 3, abs=1e-6)
    assert members_agreement(gaps[:1]) is None


def test_calibration_plot_needs_bins(tmp_path):
    section = {"calibration": calibration([1.0, 2.0, 0.3], [0.0, 0.0, 0.0])}
    assert draw_calibration(section, tmp_path / "c.png").stat().st_size > 10_000
    assert draw_calibration({}, tmp_path / "none.png") is None
