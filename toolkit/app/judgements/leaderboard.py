"""The leaderboard: what all judgements together say of the checkpoints."""

import functools
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from toolkit.app.judgements.agreement import Agreement, agreement
from toolkit.app.judgements.judgement import BATTLE, BOTH_BAD, SKIP, TIE, A, B, Judgement
from toolkit.app.judgements.ratings import (
    Floats,
    Order,
    collect,
    intervals,
    pair_table,
    points,
    strengths,
)

ENOUGH_VOTES, ENOUGH_PROMPTS = 20, 10
BATTLE_RANKS = {A: (1, 2), B: (2, 1), TIE: (1, 1), BOTH_BAD: (1, 1)}
SEED = 0
Key = tuple[str, str]  # of a checkpoint: its name and its weights


@dataclass(frozen=True)
class Standing:
    """One checkpoint's place.

    `rating` and `interval` are on the scale of `ratings.points`; None where there are not enough
    votes, for the reason in `lacks`. `votes` are judgements that compare it with another.
    """

    name: str
    votes: int
    prompts: int
    rating: float | None = None
    interval: tuple[float, float] | None = None
    lacks: str = ""


@dataclass(frozen=True)
class Board:
    """Standings, best first and those without a rating last; the tables are in their order.

    `wins` `(N, N)` counts the row's wins over the column, ties half, of `seen` `(N, N)`.
    """

    standings: tuple[Standing, ...]
    wins: Floats
    seen: NDArray[np.int64]
    agreement: Agreement | None
    judgements: int
    skipped: int


def leaderboard(judgements: Sequence[Judgement]) -> Board:
    """Rate every checkpoint that was compared with another.

    A checkpoint is its name and its weights: one that was trained again under its old name is
    another one. Skipped battles count nowhere, and "both bad" counts as a tie.
    """
    used = [j for j in judgements if j.verdict != SKIP]
    prompts = _numbered(tuple(tuple(sorted(m.items())) for m in j.prompt) for j in used)
    given = [_keys(j) for j in used]
    keys = list(dict.fromkeys(key for each in given for key in each))
    index = {key: i for i, key in enumerate(keys)}
    said = [
        Order(tuple(index[key] for key in each), _ranks(j), prompt)
        for j, each, prompt in zip(used, given, prompts, strict=True)
    ]
    orders = [order for order in said if len(set(order.players)) > 1]
    wins, seen = pair_table(orders, len(keys))
    standings = _standings(orders, _names(keys), seen)
    by_rating = sorted(
        range(len(keys)),
        key=lambda i: (standings[i].rating is None, -(standings[i].rating or 0), keys[i]),
    )
    order = np.array(by_rating, dtype=np.int64)
    return Board(
        tuple(standings[i] for i in by_rating),
        wins[np.ix_(order, order)],
        seen[np.ix_(order, order)],
        agreement(_units(used, said, keys)),
        len(judgements),
        len(judgements) - len(used),
    )


def _standings(
    orders: Sequence[Order], names: Sequence[str], seen: NDArray[np.int64]
) -> list[Standing]:
    counted = Counter(i for order in orders for i in set(order.players))
    asked: list[set[Hashable]] = [set() for _ in names]
    for order in orders:
        for i in order.players:
            asked[i].add(order.prompt)
    prompts = [len(each) for each in asked]
    rated = _compared(seen)
    lacks = []
    for i in range(len(names)):
        if counted[i] < ENOUGH_VOTES or prompts[i] < ENOUGH_PROMPTS:
            lacks.append("not enough votes")
        else:
            lacks.append("" if i in rated else "not compared with the others")
    found = [Standing(n, counted[i], prompts[i], lacks=lacks[i]) for i, n in enumerate(names)]
    if all(lacks):
        return found
    # all votes count, also those of checkpoints that have too few to be shown
    votes = collect(orders, len(names))
    at, ends = points(strengths(votes)), points(intervals(votes, seed=SEED))
    return [
        one
        if one.lacks
        else Standing(
            *(one.name, one.votes, one.prompts),
            rating=float(at[i]),
            interval=(float(ends[i, 0]), float(ends[i, 1])),
        )
        for i, one in enumerate(found)
    ]


def _compared(seen: NDArray[np.int64]) -> set[int]:
    """The largest group of checkpoints that votes connect, directly or through others."""
    groups: list[set[int]] = []
    left = set(range(len(seen)))
    while left:
        group, edge = set(), {min(left)}
        while edge:
            group |= edge
            edge = {int(j) for i in edge for j in np.flatnonzero(seen[i])} - group
        groups.append(group)
        left -= group
    return max(groups, key=len, default=set())


def _keys(judgement: Judgement) -> tuple[Key, ...]:
    """What makes each checkpoint itself: name and weights; of the base its fingerprint's."""
    base, quantization = (judgement.base.get(n, "") for n in ("weights", "quantization"))
    return tuple(
        (r.name, f"{r.adapter or f'base {base}'} {quantization}") for r in judgement.replies
    )


def _names(keys: Sequence[tuple[str, str]]) -> list[str]:
    """Names to show, with the start of the weights' hash where two checkpoints share one."""
    shared = Counter(name for name, _ in keys)
    return [
        name if shared[name] == 1 else f"{name} [{weights.removeprefix('base ')[:8]}]"
        for name, weights in keys
    ]


def _ranks(judgement: Judgement) -> tuple[int, ...]:
    if judgement.kind == BATTLE:
        return BATTLE_RANKS[str(judgement.verdict)]
    assert judgement.ranks is not None
    return judgement.ranks


def _units(
    judgements: Sequence[Judgement], orders: Sequence[Order], keys: Sequence[Key]
) -> dict[Hashable, list[str]]:
    """(prompt, two checkpoints) -> what each named labeler said last of the two."""
    of_pairs = functools.cache(functools.partial(_of_pairs, keys=keys))  # few are different
    last: dict[Hashable, dict[str, str]] = defaultdict(dict)
    for j, order in zip(judgements, orders, strict=True):
        if not j.labeler:
            continue
        for pair, said in of_pairs(order.players, order.ranks, j.verdict == BOTH_BAD):
            last[order.prompt, pair][j.labeler] = said
    return {unit: list(said.values()) for unit, said in last.items()}


def _of_pairs(
    players: tuple[int, ...], ranks: tuple[int, ...], both_bad: bool, *, keys: Sequence[Key]
) -> list[tuple[tuple[int, int], str]]:
    """What a judgement says of each two checkpoints, whichever was shown first.

    A ranking prefers the one that wins more of the pairs of their answers, for a checkpoint may
    have given several.
    """
    both = list(zip(players, ranks, strict=True))
    found = []
    for one, other in combinations(sorted(set(players), key=keys.__getitem__), 2):
        won = sum((b > a) - (b < a) for i, a in both if i == one for j, b in both if j == other)
        said = TIE if won == 0 else str(one if won > 0 else other)
        found.append(((one, other), BOTH_BAD if both_bad else said))
    return found


def _numbered(values: Iterable[Hashable]) -> list[int]:
    """Equal values as equal numbers, from 0 in the order in which they come."""
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(value, len(numbers)) for value in values]
