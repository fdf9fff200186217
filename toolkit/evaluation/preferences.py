"""How well scores order labelled pairs: per prompt, by margin, by length, and as probabilities."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from toolkit.evaluation.metrics import Floats, mean_interval, preferred

BINS = 10  # of calibration, from 0.5 to 1
PARTS = 3  # of margins and of length differences


def kendall_tau(
    chosen: ArrayLike, rejected: ArrayLike, *, seed: int, groups: Sequence[object]
) -> dict[str, Any]:
    """Kendall's τ between scores and labels, a mean over prompts with its interval.

    Per prompt (pairs ordered as labelled − pairs ordered against it) / labelled pairs. Pairs that
    the labels tie are no pairs, and a pair that the scores tie adds nothing to the numerator.

    Args:
        chosen, rejected: `(N,)`, scores of both sides of the pairs.
        groups: `(N,)`, the prompt of each pair.
    """
    agree = 2 * preferred(chosen, rejected) - 1  # 1, 0 or -1
    by_prompt: dict[object, list[float]] = {}
    for group, sign in zip(groups, agree.tolist(), strict=True):
        by_prompt.setdefault(group, []).append(sign)
    return mean_interval([float(np.mean(signs)) for signs in by_prompt.values()], seed=seed)


def calibration(chosen: ArrayLike, rejected: ArrayLike) -> dict[str, Any]:
    """Whether σ(score − score) is how often labels agree (Bradley-Terry's reading of a score).

    A pair is looked at from its better-scored side: the model's probability for that side, between
    0.5 and 1, against how often it is the labelled one.

    Args:
        chosen, rejected: `(N,)`, scores in nats of log-odds.

    Returns: `ece`, the expected calibration error: the mean over pairs of the gap between the two
        in the pair's bin; and `bins`, those of 0.05 that hold pairs, with `predicted`, `observed`
        and `pairs`.
    Source: Guo et al. 2017, arXiv:1706.04599.
    """
    gap = np.asarray(chosen, dtype=np.float64) - np.asarray(rejected, dtype=np.float64)
    predicted = 1 / (1 + np.exp(-np.abs(gap)))
    observed = preferred(gap, np.zeros_like(gap))
    number = np.minimum(((predicted - 0.5) * 2 * BINS).astype(int), BINS - 1)
    bins, error = [], 0.0
    for i in range(BINS):
        here = number == i
        if here.any():
            said, seen, count = predicted[here].mean(), observed[here].mean(), int(here.sum())
            error += count / len(gap) * abs(said - seen)
            bins.append({"predicted": _rounded(said), "observed": _rounded(seen), "pairs": count})
    return {"ece": _rounded(error), "bins": bins}


def accuracy_by(
    values: ArrayLike, chosen: ArrayLike, rejected: ArrayLike
) -> list[dict[str, float | int]]:
    """Accuracy where a property of the pairs is small, middling and large, in parts of about a third.

    Args:
        values: `(N,)`, such as the chosen answer's length minus the rejected one's. Equal values
            stay in one part.
        chosen, rejected: `(N,)`, scores.

    Returns: per part `low` and `high`, the values it reaches from and to, `accuracy` and `pairs`.
    """
    numbers, right = np.asarray(values, dtype=np.float64), preferred(chosen, rejected)
    inner = np.quantile(numbers, [i / PARTS for i in range(1, PARTS)])
    part = np.searchsorted(inner, numbers, side="left")
    found: list[dict[str, float | int]] = []
    for i in range(PARTS):
        here = part == i
        if here.any():
            low, high = numbers[here].min(), numbers[here].max()
            accuracy, count = _rounded(right[here].mean()), int(here.sum())
            found.append(
                {"low": _rounded(low), "high": _rounded(high), "accuracy": accuracy, "pairs": count}
            )
    return found


def members_agreement(gaps: Floats) -> float | None:
    """How often two members of an ensemble order a pair alike, over all pairs of members.

    Args:
        gaps: `(M, N)`, each member's score of the chosen side minus that of the rejected one.

    Returns: between 0 and 1; None for fewer than two members.
    """
    signs = np.sign(gaps)
    alike = [
        (signs[i] == signs[j]).mean() for i in range(len(signs)) for j in range(i + 1, len(signs))
    ]
    return _rounded(np.mean(alike)) if alike else None


def _rounded(value: Any) -> float:
    return round(float(value), 6)
