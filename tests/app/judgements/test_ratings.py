"""Strengths and intervals against closed forms, brute force and simulated labelers."""

import itertools
import math

import numpy as np
import pytest

from toolkit.app.judgements import ratings
from toolkit.app.judgements.leaderboard import agreement
from toolkit.app.judgements.ratings import (
    Order,
    collect,
    intervals,
    pair_table,
    points,
    resampled_strengths,
    strengths,
)

FLAT = 1e5  # nats; a prior without influence


def battles(results: dict[tuple[int, int, str], int]) -> list[Order]:
    """Orders from (first, second, "a" or "tie") -> count, each on its own prompt."""
    return [
        Order((i, j), (1, 1) if result == "tie" else (1, 2), (i, j, result, n))
        for (i, j, result), times in results.items()
        for n in range(times)
    ]


def test_two_strengths_differ_by_log_odds_of_wins() -> None:
    theta = strengths(collect(battles({(0, 1, "a"): 30, (1, 0, "a"): 10}), 2), prior_sd=FLAT)
    assert theta[0] - theta[1] == pytest.approx(math.log(3), abs=1e-6)
    # twenty ties are ten wins for each
    tied = battles({(0, 1, "a"): 30, (1, 0, "a"): 10, (0, 1, "tie"): 20})
    theta = strengths(collect(tied, 2), prior_sd=FLAT)
    assert theta[0] - theta[1] == pytest.approx(math.log(40 / 20), abs=1e-6)


def test_400_points_are_odds_of_ten_to_one() -> None:
    theta = strengths(collect(battles({(0, 1, "a"): 100, (1, 0, "a"): 10}), 2), prior_sd=FLAT)
    first, second = points(theta)
    assert first - second == pytest.approx(400, abs=1e-3)
    assert (first + second) / 2 == pytest.approx(1000)


def test_odds_multiply_along_a_chain() -> None:
    """0 beats 1 two to one, and 1 beats 2 three to one; 0 and 2 never met."""
    results = {(0, 1, "a"): 20, (1, 0, "a"): 10, (1, 2, "a"): 30, (2, 1, "a"): 10}
    theta = strengths(collect(battles(results), 3), prior_sd=FLAT)
    assert theta[0] - theta[2] == pytest.approx(math.log(6), abs=1e-5)


def test_unbeaten_player_has_finite_strength() -> None:
    """The posterior's slope is 0 where 5·σ(−2t) = t / sd², for strengths t and −t."""
    theta = strengths(collect(battles({(0, 1, "a"): 5}), 2))
    t = theta[0]
    assert 0.5 < t < 3
    assert 5 / (1 + math.exp(2 * t)) == pytest.approx(t / 4, abs=1e-6)
    assert theta[1] == pytest.approx(-t)


def slow_log_likelihood(theta: np.ndarray, orders: list[Order]) -> float:
    """Plackett-Luce with one draw after the other, and the mean over all orders of tied answers."""
    total = 0.0
    for order in orders:
        k = len(order.players)
        logs = []
        for row in itertools.permutations(range(k)):
            ranks = [order.ranks[i] for i in row]
            if ranks != sorted(ranks):
                continue
            left = [theta[order.players[i]] for i in row]
            log = 0.0
            while left:
                log += left[0] - math.log(sum(math.exp(x) for x in left))
                left = left[1:]
            logs.append(log)
        total += sum(logs) / len(logs)
    return total


def test_ties_equal_the_mean_over_all_orders() -> None:
    rng = np.random.default_rng(1)
    orders = [
        Order(
            tuple(int(p) for p in rng.integers(4, size=5)),  # a checkpoint may answer twice
            tuple(int(r) for r in rng.integers(1, 4, size=5)),
            n,
        )
        for n in range(30)
    ]
    theta = strengths(collect(orders, 4), prior_sd=1.0)

    def slow(at: np.ndarray) -> float:
        return slow_log_likelihood(at, orders) - float(at @ at) / 2

    step = 1e-4
    for direction in np.eye(4):
        slope = (slow(theta + step * direction) - slow(theta - step * direction)) / (2 * step)
        assert slope == pytest.approx(0, abs=1e-5)
    assert slow(theta) > slow(theta + 0.05) and np.ptp(theta) > 0.1


def test_order_of_players_in_a_battle_does_not_matter() -> None:
    as_battles = battles({(0, 1, "a"): 3, (1, 2, "tie"): 2, (2, 0, "a"): 1})
    turned = [Order(o.players[::-1], o.ranks[::-1], o.prompt) for o in as_battles]
    assert strengths(collect(as_battles, 3)) == pytest.approx(strengths(collect(turned, 3)))


def test_checkpoint_against_itself_is_ignored() -> None:
    orders = battles({(0, 1, "a"): 3, (1, 0, "a"): 2})
    alone = [*orders, Order((0, 0, 0, 0), (1, 2, 3, 4), "x"), Order((1, 1), (1, 1), "y")]
    assert strengths(collect(alone, 2)) == pytest.approx(strengths(collect(orders, 2)))


def simulated(theta: np.ndarray, *, n: int, k: int, seed: int) -> list[Order]:
    """Orders of k different players by Gumbel noise, each on its own prompt."""
    rng = np.random.default_rng(seed)
    orders = []
    for prompt in range(n):
        players = rng.permutation(len(theta))[:k]
        noisy = theta[players] + rng.gumbel(size=k)
        ranks = 1 + (noisy[:, None] < noisy[None, :]).sum(1)
        orders.append(Order(tuple(map(int, players)), tuple(map(int, ranks)), prompt))
    return orders


@pytest.mark.parametrize(("n", "k"), [(6000, 2), (1500, 5)])
def test_simulated_strengths_are_recovered(n: int, k: int) -> None:
    theta = np.array([1.5, 0.8, 0.1, -0.2, -0.7, -1.5])
    fitted = strengths(collect(simulated(theta, n=n, k=k, seed=2), 6))
    assert fitted == pytest.approx(theta - theta.mean(), abs=0.15)


def test_intervals_cover_the_truth() -> None:
    """30 simulations of 4 players: 95 % of 120 are 114; 105 is beyond three deviations' reach."""
    theta, inside, widths = np.array([0.8, 0.2, -0.3, -0.7]), 0, []
    for seed in range(30):
        votes = collect(simulated(theta, n=250, k=2, seed=seed), 4)
        ends = intervals(votes, seed=seed, resamples=100)
        inside += int(((ends[:, 0] <= theta) & (theta <= ends[:, 1])).sum())
        widths.append(np.diff(ends).mean())
    assert 105 <= inside <= 120
    assert 0.3 < np.mean(widths) < 1.2  # not because they are huge


def test_repeated_votes_on_a_prompt_do_not_narrow_intervals() -> None:
    rng = np.random.default_rng(0)
    single = [Order((0, 1), (1, 2) if rng.random() < 0.6 else (2, 1), p) for p in range(60)]
    repeated = [order for order in single for _ in range(10)]
    independent = [Order(o.players, o.ranks, n) for n, o in enumerate(repeated)]

    def width(orders: list[Order]) -> float:
        low, high = intervals(collect(orders, 2), seed=0, prior_sd=FLAT)[0]
        return float(high - low)

    assert width(repeated) == pytest.approx(width(single), abs=1e-6)
    assert width(independent) == pytest.approx(width(single) / math.sqrt(10), rel=0.25)


@pytest.mark.parametrize(("n", "k"), [(400, 2), (60, 4), (3, 2)])
def test_batched_resamples_equal_single_fits(n: int, k: int) -> None:
    orders = simulated(np.array([2.0, 0.5, -0.5, -2.0]), n=n, k=k, seed=3)
    votes = collect([Order(o.players, o.ranks, int(o.prompt) % 50) for o in orders], 4)
    p = len(votes.wins)
    times = np.random.default_rng(4).multinomial(p, [1 / p] * p, size=20).astype(float)
    times[0], times[1] = 0, np.eye(p)[0] * 1000  # no prompt, and a single prompt
    whole = strengths(votes)
    alone = [strengths(votes, times=one) for one in times]
    together = resampled_strengths(votes, times, prior_sd=2.0, start=whole)
    assert np.abs(np.subtract(together, alone)).max() < 1e-6


def test_resamples_are_computed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    votes = collect(simulated(np.array([1.0, 0.0, -1.0]), n=300, k=2, seed=5), 3)
    fits = []
    monkeypatch.setattr(ratings, "strengths", lambda *a, **k: fits.append(1) or strengths(*a, **k))
    intervals(votes, seed=0)
    assert len(fits) == 1  # the fit of all votes


def test_equal_orders_are_expanded_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn, draws = [], ratings._draws
    monkeypatch.setattr(ratings, "_draws", lambda *a: drawn.append(a) or draws(*a))
    collect([Order((n % 3, 3), (1, 2), n) for n in range(1000)], 4)
    assert len(drawn) == 3


def test_pair_table_counts_ties_half() -> None:
    orders = [Order((0, 1), (1, 2), "p"), Order((1, 0), (1, 1), "p")]
    orders.append(Order((0, 0, 1, 2), (1, 3, 2, 2), "q"))
    wins, comparisons = pair_table(orders, 3)
    assert wins.tolist() == [[0, 2.5, 1], [1.5, 0, 0.5], [1, 0.5, 0]]
    assert comparisons.tolist() == [[0, 4, 2], [4, 0, 1], [2, 1, 0]]


def test_agreement_of_two_labelers() -> None:
    """Krippendorff's α of three units, from the coincidence matrix.

    aa, ab, bb: n_a = n_b = 3; observed disagreement 2/6, expected 2·3·3/(6·5) = 0.6.
    """
    result = agreement({1: ["a", "a"], 2: ["a", "b"], 3: ["b", "b"], 4: ["a"]})
    assert result is not None
    assert (result.units, result.pairs) == (3, 3)
    assert result.share == pytest.approx(2 / 3)
    assert result.alpha == pytest.approx(1 - (1 / 3) / 0.6)


def test_agreement_of_three_labelers() -> None:
    """aab and bb: coincidences aa 1, ab and ba 1 each, bb 2 → D_o = 2/5, D_e = 2·2·3/(5·4)."""
    result = agreement({1: ["a", "a", "b"], 2: ["b", "b"]})
    assert result is not None
    assert (result.pairs, result.share) == (4, 0.5)
    assert result.alpha == pytest.approx(1 - 0.4 / 0.6)


def test_agreement_without_pairs_is_none() -> None:
    assert agreement({}) is None
    assert agreement({1: ["a"]}) is None
    result = agreement({1: ["a", "a"]})
    assert result is not None and result.share == 1 and result.alpha is None
