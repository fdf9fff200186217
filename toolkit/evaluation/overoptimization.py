"""How gold grows with the distance from SFT: Gao et al. 2022's curves (arXiv:2210.10760, section 3.2)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

BEST_OF_N = "best-of-n"  # `recipe` of best-of-n in a report
FORMS = {BEST_OF_N: "d (α − β d)", "policies": "d (α − β log d)"}


def gold_gains(report: Mapping[str, Any]) -> dict[str, dict[str, tuple[float, float]]]:
    """d and the gain in mean gold over SFT: "best-of-n" or "policies" -> checkpoint -> both numbers.

    d is the square root of the KL to SFT in nats. The base, checkpoints without gold, and those at d = 0
    are left out.
    """
    entries, start = report["checkpoints"], report.get("sft", "sft")
    sft = entries.get(start, {}).get("gold")
    gains: dict[str, dict[str, tuple[float, float]]] = {kind: {} for kind in FORMS}
    for name, entry in entries.items():
        kl, gold = entry["kl_to_sft"] or 0.0, entry.get("gold")
        if sft and gold and kl > 0 and name != start and entry["recipe"] != "base":
            kind = BEST_OF_N if entry["recipe"] == BEST_OF_N else "policies"
            gains[kind][name] = (float(np.sqrt(kl)), gold["mean"] - sft["mean"])
    return gains


def fit_curves(report: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The least-squares fit of each curve: `alpha`, `beta`, `rmse`, `points`.

    A curve needs at least three points, and the largest d must be at least twice the smallest: points that
    are close together do not determine it.
    """
    fits = {}
    for kind, points in gold_gains(report).items():
        distances = [d for d, _ in points.values()]
        if len(points) >= 3 and max(distances) >= 2 * min(distances):
            d, gain = map(np.array, zip(*points.values(), strict=True))
            terms = _terms(kind, d)
            (alpha, beta), *_ = np.linalg.lstsq(terms, gain, rcond=None)
            rmse = float(np.sqrt(np.mean((terms @ [alpha, beta] - gain) ** 2)))
            numbers = {"alpha": alpha, "beta": beta, "rmse": rmse}
            fits[kind] = {k: round(float(v), 4) for k, v in numbers.items()}
            fits[kind]["points"] = len(points)
    return fits


def curve(kind: str, fit: Mapping[str, float], d: Sequence[float]) -> Any:
    """The fitted gain at each d > 0."""
    return _terms(kind, np.asarray(d, dtype=float)) @ [fit["alpha"], fit["beta"]]


def _terms(kind: str, d: Any) -> Any:
    """The factors of α and β, `(n, 2)`."""
    return np.stack([d, -d * (d if kind == BEST_OF_N else np.log(d))], axis=1)
