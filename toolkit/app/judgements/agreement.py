"""How far labelers agree: they judged the same two checkpoints on the same prompt."""

import itertools
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Agreement:
    """`share` of pairs of labelers with the same verdict, and Krippendorff's α.

    α is 1 for full agreement and 0 for what chance would give; None where it is not defined.
    """

    units: int
    pairs: int
    share: float
    alpha: float | None


def agreement(verdicts: Mapping[Hashable, Sequence[str]]) -> Agreement | None:
    """Agreement over units, each with one verdict per labeler.

    Args:
        verdicts: unit -> verdicts of different labelers; units with fewer than two are left out.

    Returns: None where no unit has two.
    Source: Krippendorff 2004, Content Analysis, ch. 11 (nominal data, any number of labelers).
    """
    shared = [list(v) for v in verdicts.values() if len(v) > 1]
    if not shared:
        return None
    same = pairs = 0
    observed = 0.0  # disagreement: each unit's, weighted by its verdicts
    for unit in shared:
        alike = sum(a == b for a, b in itertools.combinations(unit, 2))
        possible = len(unit) * (len(unit) - 1) // 2
        same, pairs = same + alike, pairs + possible
        observed += 2 * (possible - alike) / (len(unit) - 1)
    counts = Counter(itertools.chain.from_iterable(shared))
    n = counts.total()
    expected = sum(c * (n - c) for c in counts.values()) / (n - 1)
    alpha = 1 - observed / expected if expected else None
    return Agreement(len(shared), pairs, same / pairs, alpha)
