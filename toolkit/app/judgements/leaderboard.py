"""The leaderboard: ratings of the checkpoints and the labelers' agreement, from all judgements."""

import functools
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations

import numpy as np

from toolkit.app.judgements import ratings
from toolkit.app.judgements.judgement import BOTH_BAD, NAMED, SKIP, TIE, A, B, Judgement
from toolkit.app.judgements.ratings import Floats, Ints, Order, points

MIN_VOTES, MIN_PROMPTS = 20, 10
BATTLE_RANKS = {A: (1, 2), B: (2, 1), TIE: (1, 1), BOTH_BAD: (1, 1)}
Key = tuple[str, str]  # identifies a checkpoint: its name and its weights


@dataclass(frozen=True)
class Standing:
    """One checkpoint on the leaderboard.

    `rating` and its 95 % `interval` are in `ratings.points`. Both are None if there are too few
    votes; `unrated` is the reason. `votes` counts the judgements that compare the checkpoint with
    another, `prompts` their distinct prompts.
    """

    name: str
    votes: int
    prompts: int
    rating: float | None = None
    interval: tuple[float, float] | None = None
    unrated: str = ""


@dataclass(frozen=True)
class Agreement:
    """The agreement of labelers.

    A unit is a pair of checkpoints on one prompt that several labelers judged; `units` is their number.
    `pairs` is the number of pairs of labelers in all units, `share` the share of pairs with equal verdicts.
    `alpha` is Krippendorff's α: 1 is full agreement, 0 is chance; None if all verdicts are equal.
    """

    units: int
    pairs: int
    share: float
    alpha: float | None


@dataclass(frozen=True)
class Board:
    """The standings from best to worst, unrated checkpoints last; `wins`, `comparisons` in this order.

    `wins` `(N, N)` counts the row's wins over the column (ties half) among `comparisons` `(N, N)`.
    """

    standings: tuple[Standing, ...]
    wins: Floats
    comparisons: Ints
    agreement: Agreement | None


def leaderboard(judgements: Sequence[Judgement]) -> Board:
    """Rate every checkpoint that was compared with another.

    A checkpoint is identified by its name and its weights: a new run under an old name is another
    checkpoint. Skipped battles do not count; "both bad" counts as a tie. Votes on Compare do not count,
    because the labeler saw the names.
    """
    counted = [j for j in judgements if j.verdict != SKIP and NAMED not in j.sampling]
    prompts: dict[Hashable, int] = {}
    index: dict[Key, int] = {}
    orders = []
    for j in counted:
        prompt = tuple(tuple(sorted(message.items())) for message in j.prompt)
        players = tuple(index.setdefault(key, len(index)) for key in _keys(j))
        ranks = j.ranks or BATTLE_RANKS[str(j.verdict)]
        orders.append(Order(players, ranks, prompts.setdefault(prompt, len(prompts))))
    keys = list(index)
    compared = [order for order in orders if len(set(order.players)) > 1]
    wins, comparisons = ratings.pair_table(compared, len(keys))
    standings = _standings(compared, _names(keys), comparisons)
    best_first = sorted(
        range(len(keys)),
        key=lambda i: (standings[i].rating is None, -(standings[i].rating or 0), keys[i]),
    )
    place = np.array(best_first, dtype=np.int64)
    return Board(
        tuple(standings[i] for i in best_first),
        wins[np.ix_(place, place)],
        comparisons[np.ix_(place, place)],
        agreement(_verdicts_by_unit(counted, orders, keys)),
    )


def agreement(verdicts: Mapping[Hashable, Sequence[str]]) -> Agreement | None:
    """The labelers' agreement over units; a unit has one verdict per labeler.

    Args:
        verdicts: unit -> verdicts of different labelers; units with fewer than two are ignored.

    Returns: None if no unit has two verdicts.
    Source: Krippendorff 2004, Content Analysis, ch. 11 (nominal data, any number of labelers).
    """
    units = [list(unit) for unit in verdicts.values() if len(unit) > 1]
    if not units:
        return None
    equal = pairs = 0
    disagreement = 0.0
    for unit in units:
        unit_equal = sum(a == b for a, b in combinations(unit, 2))
        unit_pairs = len(unit) * (len(unit) - 1) // 2
        equal, pairs = equal + unit_equal, pairs + unit_pairs
        disagreement += 2 * (unit_pairs - unit_equal) / (len(unit) - 1)
    counts = Counter(chain.from_iterable(units))
    n = counts.total()
    by_chance = sum(c * (n - c) for c in counts.values()) / (n - 1)
    alpha = 1 - disagreement / by_chance if by_chance else None
    return Agreement(len(units), pairs, equal / pairs, alpha)


def _standings(orders: Sequence[Order], names: Sequence[str], comparisons: Ints) -> list[Standing]:
    votes = Counter(i for order in orders for i in set(order.players))
    prompts: list[set[Hashable]] = [set() for _ in names]
    for order in orders:
        for i in order.players:
            prompts[i].add(order.prompt)
    connected = _largest_group(comparisons)
    standings = []
    for i, name in enumerate(names):
        unrated = "" if i in connected else "not compared with the others"
        if votes[i] < MIN_VOTES or len(prompts[i]) < MIN_PROMPTS:
            unrated = "not enough votes"
        standings.append(Standing(name, votes[i], len(prompts[i]), unrated=unrated))
    if all(standing.unrated for standing in standings):
        return standings
    # the fit uses all votes, also those of unrated checkpoints
    fit = ratings.collect(orders, len(names))
    values, ends = points(ratings.strengths(fit)), points(ratings.intervals(fit, seed=0))
    return [
        s if s.unrated else replace(s, rating=float(rating), interval=(float(low), float(high)))
        for s, rating, (low, high) in zip(standings, values, ends, strict=True)
    ]


def _largest_group(comparisons: Ints) -> set[int]:
    """The largest group of checkpoints that are connected by votes, directly or indirectly."""
    groups: list[set[int]] = []
    left = set(range(len(comparisons)))
    while left:
        group, edge = set(), {min(left)}
        while edge:
            group |= edge
            edge = {int(j) for i in edge for j in np.flatnonzero(comparisons[i])} - group
        groups.append(group)
        left -= group
    return max(groups, key=len, default=set())


def _keys(judgement: Judgement) -> tuple[Key, ...]:
    """Name and weights of each reply's checkpoint; the base's weights are in its fingerprint."""
    base, quantization = (judgement.base.get(n, "") for n in ("weights", "quantization"))
    return tuple(
        (r.name, f"{r.adapter or f'base {base}'} {quantization}") for r in judgement.replies
    )


def _names(keys: Sequence[Key]) -> list[str]:
    """Names for display, with the start of the weights' hash if two checkpoints share a name."""
    shared = Counter(name for name, _ in keys)
    return [
        name if shared[name] == 1 else f"{name} [{weights.removeprefix('base ')[:8]}]"
        for name, weights in keys
    ]


def _verdicts_by_unit(
    judgements: Sequence[Judgement], orders: Sequence[Order], keys: Sequence[Key]
) -> dict[Hashable, list[str]]:
    """(prompt, two checkpoints) -> the last verdict of each named labeler on the two."""
    pair_verdicts = functools.cache(functools.partial(_pair_verdicts, keys=keys))
    last: dict[Hashable, dict[str, str]] = defaultdict(dict)
    for judgement, order in zip(judgements, orders, strict=True):
        if judgement.labeler:
            both_bad = judgement.verdict == BOTH_BAD
            for pair, verdict in pair_verdicts(order.players, order.ranks, both_bad):
                last[order.prompt, pair][judgement.labeler] = verdict
    return {unit: list(by_labeler.values()) for unit, by_labeler in last.items()}


def _pair_verdicts(
    players: tuple[int, ...], ranks: tuple[int, ...], both_bad: bool, *, keys: Sequence[Key]
) -> list[tuple[tuple[int, int], str]]:
    """One judgement's verdict on each pair of checkpoints, independent of the display order.

    A checkpoint may have several answers in a ranking. The ranking prefers the checkpoint of a pair that
    wins more pairs of their answers.
    """
    answers = list(zip(players, ranks, strict=True))
    verdicts = []
    for one, other in combinations(sorted(set(players), key=keys.__getitem__), 2):
        won = sum(
            (b > a) - (b < a) for i, a in answers if i == one for j, b in answers if j == other
        )
        preferred = TIE if won == 0 else str(one if won > 0 else other)
        verdicts.append(((one, other), BOTH_BAD if both_bad else preferred))
    return verdicts
