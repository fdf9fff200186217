"""Numbers on labelled pairs, against values worked out by hand."""

import math

import numpy as np
import pytest

from toolkit.evaluation.plots import draw_calibration
from toolkit.evaluation.preferences import accuracy_by, calibration, kendall_tau, members_agreement


def test_kendall_is_a_mean_over_prompts_and_not_over_pairs():
    # prompt a: three pairs, two in order, (2 - 1) / 3; prompt b: one pair, in order
    found = kendall_tau([2, 2, 0, 1], [1, 0, 1, 0], seed=0, groups=["a", "a", "a", "b"])
    assert found["mean"] == pytest.approx((1 / 3 + 1) / 2, abs=1e-6)
    low, high = found["ci95"]
    assert 1 / 3 - 1e-6 <= low < high <= 1


def test_kendall_of_a_ranking_by_hand():
    """Best to worst the scores are 1.2, 0.3, 0.9, 0.1, -0.5: one of ten pairs is the wrong way round."""
    scores, ranks = [0.3, 1.2, -0.5, 0.9, 0.1], [2, 1, 5, 3, 4]
    pairs = [(i, j) for i in range(5) for j in range(5) if ranks[i] < ranks[j]]
    found = kendall_tau(
        [scores[i] for i, _ in pairs], [scores[j] for _, j in pairs], seed=0, groups=[0] * 10
    )
    assert found["mean"] == pytest.approx(0.8)


def test_tied_scores_count_for_neither_side():
    assert kendall_tau([1, 1], [1, 0], seed=0, groups=[0, 0])["mean"] == 0.5


def test_calibration_by_hand():
    sure, unsure = math.log(0.9 / 0.1), math.log(0.62 / 0.38)
    # three pairs at 0.9, of which two as labelled; two at 0.62, one as labelled
    found = calibration([sure, sure, 0, unsure, 0], [0, 0, sure, 0, unsure])
    assert [b["pairs"] for b in found["bins"]] == [2, 3]
    assert [b["predicted"] for b in found["bins"]] == pytest.approx([0.62, 0.9], abs=1e-6)
    assert [b["observed"] for b in found["bins"]] == pytest.approx([0.5, 2 / 3], abs=1e-6)
    expected = 2 / 5 * 0.12 + 3 / 5 * (0.9 - 2 / 3)
    assert found["ece"] == pytest.approx(expected, abs=1e-6)


def test_labels_drawn_from_the_scores_are_calibrated_and_doubled_scores_are_not():
    rng = np.random.default_rng(0)
    gap = rng.normal(0, 1.5, 20_000)
    chosen_first = rng.random(20_000) < 1 / (1 + np.exp(-gap))
    labelled = np.where(chosen_first, gap, -gap)
    zero = np.zeros_like(labelled)
    assert calibration(labelled, zero)["ece"] < 0.01
    assert calibration(2 * labelled, zero)["ece"] > 0.05


def test_a_certain_model_falls_into_the_last_bin():
    found = calibration([1e4, 0.0], [-1e4, 0.0])
    assert [b["predicted"] for b in found["bins"]] == [0.5, 1.0]


def test_parts_keep_equal_values_together_and_lose_no_pair():
    values = [0, 0, 0, 0, 1, 2, 3]
    found = accuracy_by(values, [1, 1, 0, 0, 1, 1, 1], [0, 0, 1, 1, 0, 0, 0])
    assert sum(part["pairs"] for part in found) == 7
    assert found[0] == {"low": 0.0, "high": 0.0, "accuracy": 0.5, "pairs": 4}
    assert all(part["accuracy"] == 1.0 for part in found[1:])


def test_members_agree_on_the_pairs_that_they_order_alike():
    gaps = np.array([[1.0, 1, 1, 1], [1, 1, -1, -1], [1, 1, 1, -1]])
    assert members_agreement(gaps) == pytest.approx((2 / 4 + 3 / 4 + 3 / 4) / 3, abs=1e-6)
    assert members_agreement(gaps[:1]) is None


def test_the_picture_of_calibration_is_drawn_and_needs_numbers(tmp_path):
    section = {"calibration": calibration([1.0, 2.0, 0.3], [0.0, 0.0, 0.0])}
    assert draw_calibration(section, tmp_path / "c.png").stat().st_size > 10_000
    assert draw_calibration({}, tmp_path / "none.png") is None
