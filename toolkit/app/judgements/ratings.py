"""Ratings from battles and rankings with the Plackett-Luce model; for two answers it is Bradley-Terry.

A checkpoint has a strength θ in nats of log-odds: A beats B with probability σ(θ_A − θ_B). For a ranking,
the best answer is drawn from all answers with probability ∝ exp θ, the next one from the remaining answers,
and so on. Tied answers count as all their orders in equal shares; two tied answers are half a win for each.
A normal prior on θ keeps the strength of an unbeaten checkpoint finite.

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
Ints = NDArray[np.int64]

PRIOR_SD = 2.0  # nats; without votes, two thirds of all checkpoints lie within ±350 points
POINTS = 400 / math.log(10)  # per nat, as in Elo: 400 points are odds of 10 to 1
MEAN_POINTS = 1000.0
RESAMPLES = 300
RESAMPLE_BATCH = 50  # stays in the CPU cache
MAX_STEPS = 100
FIXED_CURVATURE_STEPS = 30  # before a resample falls back to Newton's method
TOLERANCE = 1e-8  # nats of log-posterior that one more Newton step would gain


@dataclass(frozen=True, slots=True)
class Order:
    """One judgement as an order: the answers' `players` `(K,)` and `ranks` `(K,)`; 1 is best.

    Players are indices; a player may appear several times.
    """

    players: tuple[int, ...]
    ranks: tuple[int, ...]
    prompt: Hashable


@dataclass(frozen=True)
class Votes:
    """The sufficient statistics of a list of orders.

    The log-likelihood of θ is Σ wins·θ − Σ_s weight_s · log Σ_i count_si · exp θ_i. `wins` is
    `(P, N)` per prompt. `counts` `(S, N)` are the sets of answers that a winner was drawn from.
    `weights` `(W,)` belong to prompts `prompt_of` `(W,)` and sets `set_of` `(W,)`.
    """

    wins: Floats
    counts: Floats
    weights: Floats
    prompt_of: Ints
    set_of: Ints

    def resampled(self, times: Floats) -> tuple[Floats, Floats]:
        """Wins `(N,)` and set weights `(S,)` if prompt p counts `times[p]` times; `times` is `(P,)`."""
        weights = self.weights * times[self.prompt_of]
        summed = np.bincount(self.set_of, weights=weights, minlength=len(self.counts))
        return times @ self.wins, summed.astype(np.float64)


def collect(orders: Sequence[Order], players: int) -> Votes:
    """The votes of `players` players."""
    prompts: dict[Hashable, int] = {}
    sets: dict[tuple[int, ...], int] = {}
    terms: dict[tuple[int, int], float] = {}
    wins: list[tuple[int, int]] = []

    @functools.cache  # many judgements, few distinct pairs
    def draws(players: tuple[int, ...], ranks: tuple[int, ...]) -> list[tuple[int, float]]:
        return [(sets.setdefault(m, len(sets)), weight) for m, weight in _draws(players, ranks)]

    for order in orders:
        if len(set(order.players)) < 2:  # a checkpoint against itself carries no information
            continue
        prompt = prompts.setdefault(order.prompt, len(prompts))
        wins += [(prompt, winner) for winner in order.players]
        for s, weight in draws(order.players, order.ranks):
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
    """The sets that the answers of an order were drawn from, best first, each with its weight.

    All m! orders of m tied answers count equally. So before the (t+1)-th of them is drawn, any t of them
    may have been drawn: C(m, t) sets of weight 1 / C(m, t).
    """
    draws: list[tuple[tuple[int, ...], float]] = []
    for rank in sorted(set(ranks)):
        tied = [p for p, r in zip(players, ranks, strict=True) if r == rank]
        worse = [p for p, r in zip(players, ranks, strict=True) if r > rank]
        for gone in range(len(tied)):
            remaining = list(itertools.combinations(tied, len(tied) - gone))
            draws += [(tuple(sorted((*r, *worse))), 1 / len(remaining)) for r in remaining]
    return draws


def strengths(
    votes: Votes,
    *,
    prior_sd: float = PRIOR_SD,
    times: Floats | None = None,
    start: Floats | None = None,
) -> Floats:
    """The most probable strengths `(N,)` in nats, with mean 0.

    Newton's method; the log-posterior is strictly concave.

    Args:
        prior_sd: standard deviation of the normal prior, nats.
        times: `(P,)`, how often each prompt counts (default: once).
        start: `(N,)`, an initial guess.
    """
    wins, weights = votes.resampled(np.ones(len(votes.wins)) if times is None else times)
    counts, weights = votes.counts[weights > 0], weights[weights > 0]
    theta = np.zeros(counts.shape[1]) if start is None else start
    precision = prior_sd**-2
    value = _log_posterior(theta, wins, weights, counts, precision)
    for _ in range(MAX_STEPS):
        share = _shares(theta, counts)
        slope = wins - weights @ share - precision * theta
        step = np.linalg.solve(_curvature(share, weights, precision), slope)
        if slope @ step < TOLERANCE:  # within √TOLERANCE posterior deviations of the maximum
            theta = theta + step
            break
        for _ in range(40):  # a full step may overshoot far from the maximum
            next_value = _log_posterior(theta + step, wins, weights, counts, precision)
            if next_value >= value:
                break
            step /= 2
        theta, value = theta + step, next_value
    centred: Floats = theta - theta.mean()
    return centred


def _shares(theta: Floats, counts: Floats) -> Floats:
    """The probability `(S, N)` that each player is drawn from each set."""
    share = counts * np.exp(theta - theta.max())
    normalized: Floats = share / share.sum(1, keepdims=True)
    return normalized


def _curvature(share: Floats, weights: Floats, precision: float) -> Floats:
    """The negative Hessian `(N, N)` of the log-posterior from `_shares` `(S, N)` and weights `(S,)`."""
    weighted = share * weights[:, None]
    return np.diag(weighted.sum(0) + precision) - weighted.T @ share


def _log_posterior(
    theta: Floats, wins: Floats, weights: Floats, counts: Floats, precision: float
) -> float:
    top = theta.max(initial=-np.inf)
    log_sums = np.log(counts @ np.exp(theta - top)) + top
    return float(wins @ theta - weights @ log_sums - precision / 2 * theta @ theta)


def intervals(
    votes: Votes, *, seed: int, resamples: int = RESAMPLES, prior_sd: float = PRIOR_SD
) -> Floats:
    """95 % bootstrap intervals `(N, 2)` of the strengths, in nats (percentiles).

    Prompts are drawn with replacement, each with all of its judgements, because two verdicts on one
    prompt are not independent.
    """
    rng, p = np.random.default_rng(seed), len(votes.wins)
    full_fit = strengths(votes, prior_sd=prior_sd)
    times = rng.multinomial(p, [1 / p] * p, size=resamples).astype(float)
    fits: list[Floats] = []
    for batch in np.array_split(times, -(-resamples // RESAMPLE_BATCH)):
        fits += resampled_strengths(votes, batch, prior_sd=prior_sd, start=full_fit)
    return np.quantile(fits, (0.025, 0.975), axis=0).T


def resampled_strengths(
    votes: Votes, times: Floats, *, prior_sd: float, start: Floats
) -> list[Floats]:
    """The `strengths` `(R, N)` for all rows of `times` `(R, P)`, computed together.

    All rows use the curvature at `start`, because a resample's own curvature is close to it. If a row does
    not converge, because it has too few prompts, it is computed with `strengths`.

    Args:
        start: `(N,)`, the strengths if every prompt counts once.
    """
    wins, weights = (np.stack(sums) for sums in zip(*map(votes.resampled, times), strict=True))
    counts, precision = votes.counts, prior_sd**-2
    _, full_weights = votes.resampled(np.ones(times.shape[1]))
    inverse = np.linalg.inv(_curvature(_shares(start, counts), full_weights, precision))
    theta = np.tile(start, (len(times), 1))  # (R, N)
    with np.errstate(all="ignore"):  # a row may diverge
        for _ in range(FIXED_CURVATURE_STEPS):
            odds = np.exp(theta - theta.max(1, keepdims=True))
            expected_wins = odds * ((weights / (odds @ counts.T)) @ counts)
            slope = wins - expected_wins - precision * theta
            step = slope @ inverse
            theta += step
            converged = (slope * step).sum(1) < TOLERANCE**2
            if converged.all():
                break
    theta -= theta.mean(1, keepdims=True)
    return [
        row if done else strengths(votes, prior_sd=prior_sd, times=counted, start=start)
        for row, done, counted in zip(theta, converged, times, strict=True)
    ]


def points(nats: Floats) -> Floats:
    """Strengths on an Elo-like scale: the mean is 1000; a lead of 400 points means odds of 10 to 1."""
    return MEAN_POINTS + POINTS * nats


def pair_table(orders: Sequence[Order], players: int) -> tuple[Floats, Ints]:
    """Two tables `(N, N)`: wins of the row over the column (ties are half), and comparisons of the two.

    A ranking compares each pair of its answers that come from different checkpoints.
    """
    wins, comparisons = np.zeros((players, players)), np.zeros((players, players), dtype=np.int64)
    distinct = Counter((order.players, order.ranks) for order in orders)
    for (who, ranks), times in distinct.items():
        for (i, rank_i), (j, rank_j) in itertools.combinations(zip(who, ranks, strict=True), 2):
            if i != j:
                won = 0.5 if rank_i == rank_j else float(rank_i < rank_j)
                wins[i, j] += won * times
                wins[j, i] += (1 - won) * times
                comparisons[i, j] += times
                comparisons[j, i] += times
    return wins, comparisons
