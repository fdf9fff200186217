"""Agreement of the judge with other verdicts on the same pairs: Cohen's kappa, Krippendorff's alpha."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.evaluation.metrics import RESAMPLES, rounded

Table = NDArray[np.float64]  # (3, 3): the first answer is better, a tie, the second is better
WAYS = (1.0, 0.5, 0.0)


def cohen_kappa(table: Table) -> float:
    """Cohen's kappa of two labelers from their contingency table; NaN if both give one verdict only.

    Source: Cohen 1960, A coefficient of agreement for nominal scales.
    """
    n = table.sum()
    expected = (table.sum(0) @ table.sum(1)) / n**2
    return float((np.trace(table) / n - expected) / (1 - expected)) if expected < 1 else np.nan


def krippendorff_alpha(coincidences: Table) -> float:
    """Krippendorff's alpha for nominal data from a coincidence table; NaN if all verdicts are equal.

    Source: Krippendorff 2004, Content Analysis, ch. 11.
    """
    totals = coincidences.sum(0)
    n = totals.sum()
    expected = n**2 - (totals**2).sum()
    observed = n - np.trace(coincidences)
    return float(1 - (n - 1) * observed / expected) if expected else np.nan


def coincidences(verdicts: Sequence[float]) -> Table:
    """The coincidence table of one unit, from the verdicts of its labelers."""
    counts = np.array([sum(v == way for v in verdicts) for way in WAYS], dtype=np.float64)
    if len(verdicts) < 2:
        return np.zeros((3, 3))
    return (np.outer(counts, counts) - np.diag(counts)) / (len(verdicts) - 1)


def agreement(
    judge: Mapping[Hashable, float],
    others: Mapping[Hashable, Sequence[float]],
    prompts: Mapping[Hashable, Hashable],
    *,
    seed: int,
) -> dict[str, Any] | None:
    """The judge's agreement with other labelers on the pairs that both judged.

    Args:
        judge: pair -> verdict of `WAYS`.
        others: pair -> the verdicts of the others, in the same order of the two answers.
        prompts: pair -> prompt; intervals resample prompts.

    Returns: `pairs`, `votes`, the share of `equal` verdicts, `kappa` and `alpha` with their 95 % intervals,
        and `alpha_of_others` among the others alone; None without a common pair. Unknown values are None.
    """
    common = [pair for pair in judge if others.get(pair)]
    if not common:
        return None
    tables: dict[Hashable, Table] = defaultdict(lambda: np.zeros((3, 3, 3)))
    for pair in common:
        votes = others[pair]
        contingency = np.zeros((3, 3))
        for vote in votes:
            contingency[WAYS.index(judge[pair]), WAYS.index(vote)] += 1
        together = coincidences([judge[pair], *votes])
        tables[prompts[pair]] += np.stack([contingency, together, coincidences(votes)])
    stacked = np.stack(list(tables.values()))  # (prompts, 3, 3, 3)
    rng = np.random.default_rng(seed)
    times = rng.multinomial(len(stacked), [1 / len(stacked)] * len(stacked), size=RESAMPLES)
    whole, drawn = stacked.sum(0), np.tensordot(times, stacked, 1)
    contingency = whole[0]
    return {
        "pairs": len(common),
        "votes": int(contingency.sum()),
        "equal": rounded(np.trace(contingency) / contingency.sum()),
        "kappa": _interval(cohen_kappa, contingency, drawn[:, 0]),
        "alpha": _interval(krippendorff_alpha, whole[1], drawn[:, 1]),
        "alpha_of_others": _number(krippendorff_alpha(whole[2])),
    }


def _interval(
    coefficient: Callable[[Table], float], whole: Table, drawn: Iterable[Table]
) -> dict[str, Any]:
    values = [coefficient(table) for table in drawn]
    low, high = (
        np.nanquantile(values, (0.025, 0.975)) if np.isfinite(values).any() else [np.nan] * 2
    )
    return {"mean": _number(coefficient(whole)), "ci95": [_number(low), _number(high)]}


def _number(value: float) -> float | None:
    return rounded(value) if np.isfinite(value) else None
