"""Strengths of checkpoints from battles and rankings: Plackett-Luce, of which Bradley-Terry is K = 2.

A checkpoint has a strength θ in nats of log-odds, so that A beats B with probability
σ(θ_A − θ_B). Of a ranking, the best is drawn from all with probability ∝ exp θ, then the next from
the rest, and so on. Tied answers count as every order of them in equal shares; two tied answers
are half a win for each. A normal prior on θ keeps the strength of one who never lost finite.

Bradley & Terry 1952; Plackett 1975; Caron & Doucet 2012, arXiv:1011.1761 (with a prior).
"""

import functools
import itertools
import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

PRIOR_SD = 2.0  # nats; two thirds of all checkpoints within ±350 points before any vote
POINTS = 400 / math.log(10)  # per nat, Elo's scale: 400 points are odds of 10 to 1
MIDDLE = 1000.0  # where the mean checkpoint is
RESAMPLES = 300
TOGETHER = 50  # resamples that are worked out at once
MAX_STEPS = 100
FIXED_STEPS = 30  # with a curvature that stays, before Newton's method takes over
NEAR = 1e-8  # nats of log-posterior that a Newton step would gain


@dataclass(frozen=True, slots=True)
class Order:
    """One judgement as an order: who gave each answer, its rank (1 is best), and the prompt.

    `players` `(K,)` are indices, one of them perhaps several times; `ranks` `(K,)`.
    """

    players: tuple[int, ...]
    ranks: tuple[int, ...]
    prompt: Hashable


@dataclass(frozen=True)
class Votes:
    """Orders as the sums that the likelihood is made of.

    The log-likelihood of θ is Σ wins·θ − Σ_s weight_s · log Σ_i count_si · exp θ_i. `wins` is
    `(P, N)` per prompt; `counts` `(S, N)`, the sets from which somebody was drawn; `weights`
    `(W,)` with the prompt and the set of each.
    """

    wins: Floats
    counts: Floats
    weights: Floats
    prompt_of: NDArray[np.int64]
    set_of: NDArray[np.int64]

    def drawn(self, times: Floats) -> tuple[Floats, Floats]:
        """Wins `(N,)` and set weights `(S,)` where each prompt is counted so many `times` `(P,)`."""
        weights = self.weights * times[self.prompt_of]
        summed = np.bincount(self.set_of, weights=weights, minlength=len(self.counts))
        return times @ self.wins, summed.astype(np.float64)


def collect(orders: Sequence[Order], players: int) -> Votes:
    """The sums of the orders of `players` players."""
    prompts: dict[Hashable, int] = {}
    sets: dict[tuple[int, ...], int] = {}
    terms: dict[tuple[int, int], float] = {}
    wins: list[tuple[int, int]] = []

    @functools.cache  # most judgements are one of few battles
    def drawn(players: tuple[int, ...], ranks: tuple[int, ...]) -> list[tuple[int, float]]:
        return [(sets.setdefault(m, len(sets)), weight) for m, weight in _draws(players, ranks)]

    for order in orders:
        if len(set(order.players)) < 2:  # a checkpoint against itself says nothing of its strength
            continue
        prompt = prompts.setdefault(order.prompt, len(prompts))
        wins += [(prompt, winner) for winner in order.players]
        for s, weight in drawn(order.players, order.ranks):
            terms[prompt, s] = terms.get((prompt, s), 0.0) + weight
    table = np.zeros((len(prompts), players))
    np.add.at(table, tuple(np.array(wins, dtype=np.int64).reshape(-1, 2).T), 1.0)
    counts = np.zeros((len(sets), players))
    for members, s in sets.items():
        np.add.at(counts[s], list(members), 1.0)
    return Votes(
        table,
        counts,
        np.array(list(terms.values()), dtype=np.float64),
        np.array([p for p, _ in terms], dtype=np.int64),
        np.array([s for _, s in terms], dtype=np.int64),
    )


def _draws(players: tuple[int, ...], ranks: tuple[int, ...]) -> list[tuple[tuple[int, ...], float]]:
    """The sets that an order's answers were drawn from, best first, each with its weight.

    Of m tied answers all m! orders count alike, so before the (t+1)-th of them is drawn every
    choice of t of them may be gone: C(m, t) sets of weight 1 / C(m, t).
    """
    found: list[tuple[tuple[int, ...], float]] = []
    both = list(zip(players, ranks, strict=True))
    for rank in sorted(set(ranks)):
        tied = [p for p, r in both if r == rank]
        worse = [p for p, r in both if r > rank]
        for gone in range(len(tied)):
            kept = list(itertools.combinations(tied, len(tied) - gone))
            found += [(tuple(sorted((*k, *worse))), 1 / len(kept)) for k in kept]
    return found


def strengths(
    votes: Votes,
    *,
    prior_sd: float = PRIOR_SD,
    times: Floats | None = None,
    start: Floats | None = None,
) -> Floats:
    """The most probable strengths `(N,)` in nats, their mean 0.

    Args:
        prior_sd: of the normal prior, nats.
        times: `(P,)`, how often each prompt counts; once by default.
        start: `(N,)`, strengths near those looked for, to be there sooner.

    By Newton's method: the log-posterior is strictly concave.
    """
    wins, weights = votes.drawn(np.ones(len(votes.wins)) if times is None else times)
    counts, weights = votes.counts[weights > 0], weights[weights > 0]
    theta = np.zeros(counts.shape[1]) if start is None else start
    precision = prior_sd**-2
    value = _log_posterior(theta, wins, weights, counts, precision)
    for _ in range(MAX_STEPS):
        share = counts * np.exp(theta - theta.max())
        share /= share.sum(1, keepdims=True)
        drawn = weights @ share  # how often each is expected to be drawn
        slope = wins - drawn - precision * theta
        step = np.linalg.solve(_curvature(share, weights, precision), slope)
        if slope @ step < NEAR:  # within √NEAR posterior deviations; this step lands on the top
            theta = theta + step
            break
        for _ in range(40):  # a full step may overshoot far from the top
            tried = _log_posterior(theta + step, wins, weights, counts, precision)
            if tried >= value:
                break
            step /= 2
        theta, value = theta + step, tried
    centred: Floats = theta - theta.mean()
    return centred


def _curvature(share: Floats, weights: Floats, precision: float) -> Floats:
    """Minus the second derivatives `(N, N)` of the log-posterior.

    Args:
        share: `(S, N)`, the probability that each is drawn from each set.
        weights: `(S,)`.
    """
    weighted = share * weights[:, None]
    curve: Floats = np.diag(weighted.sum(0) + precision) - weighted.T @ share
    return curve


def _log_posterior(
    theta: Floats, wins: Floats, weights: Floats, counts: Floats, precision: float
) -> float:
    top = theta.max(initial=-np.inf)
    drawn_from = np.log(counts @ np.exp(theta - top)) + top
    return float(wins @ theta - weights @ drawn_from - precision / 2 * theta @ theta)


def intervals(
    votes: Votes, *, seed: int, resamples: int = RESAMPLES, prior_sd: float = PRIOR_SD
) -> Floats:
    """95 % bootstrap intervals `(N, 2)` of the strengths, in nats.

    Prompts are drawn with replacement, each with all of its judgements: two verdicts on one prompt
    are not independent. Percentiles.
    """
    rng, p = np.random.default_rng(seed), len(votes.wins)
    whole = strengths(votes, prior_sd=prior_sd)
    found: list[Floats] = []
    while len(found) < resamples:
        size = min(TOGETHER, resamples - len(found))
        times = rng.multinomial(p, [1 / p] * p, size=size).astype(float)
        found += resampled(votes, times, prior_sd=prior_sd, start=whole)
    ends: Floats = np.quantile(found, (0.025, 0.975), axis=0).T
    return ends


def resampled(votes: Votes, times: Floats, *, prior_sd: float, start: Floats) -> list[Floats]:
    """`strengths` `(N,)` for each row of `times` `(R, P)`, all rows in one product.

    Args:
        start: `(N,)`, the strengths where every prompt counts once.

    Every row goes by the curvature at `start`: a resample's is much like it, and is not worked out.
    Rows whose prompts are too few for that are left to `strengths`.
    """
    wins, weights = (np.stack(sums) for sums in zip(*map(votes.drawn, times), strict=True))
    counts, precision = votes.counts, prior_sd**-2
    share = counts * np.exp(start - start.max())
    share /= share.sum(1, keepdims=True)
    _, once = votes.drawn(np.ones(times.shape[1]))
    uphill = np.linalg.inv(_curvature(share, once, precision))
    theta = np.tile(start, (len(times), 1))  # (R, N)
    with np.errstate(all="ignore"):  # a row that runs away
        for _ in range(FIXED_STEPS):
            odds = np.exp(theta - theta.max(1, keepdims=True))
            drawn = odds * ((weights / (odds @ counts.T)) @ counts)
            slope = wins - drawn - precision * theta
            step = slope @ uphill
            theta += step
            there = (slope * step).sum(1) < NEAR**2
            if there.all():
                break
    theta -= theta.mean(1, keepdims=True)
    return [
        row if found else strengths(votes, prior_sd=prior_sd, times=drawn, start=start)
        for row, found, drawn in zip(theta, there, times, strict=True)
    ]


def points(nats: Floats) -> Floats:
    """Strengths on an Elo-like scale: the mean is 1000, and 400 more are odds of 10 to 1."""
    return MIDDLE + POINTS * nats


def pair_table(orders: Sequence[Order], players: int) -> tuple[Floats, NDArray[np.int64]]:
    """Wins of the row over the column `(N, N)`, ties half, and comparisons of the two `(N, N)`.

    A ranking compares each two of its answers that are of different checkpoints.
    """
    wins, seen = np.zeros((players, players)), np.zeros((players, players), dtype=np.int64)
    alike = Counter((order.players, order.ranks) for order in orders)
    for (who, ranks), times in alike.items():
        for (i, of_i), (j, of_j) in itertools.combinations(zip(who, ranks, strict=True), 2):
            if i != j:
                won = 0.5 if of_i == of_j else float(of_i < of_j)
                wins[i, j] += won * times
                wins[j, i] += (1 - won) * times
                seen[i, j] += times
                seen[j, i] += times
    return wins, seen
