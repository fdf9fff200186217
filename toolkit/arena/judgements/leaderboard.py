"""The leaderboard: what all judgements together say of the checkpoints."""

import json
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from toolkit.arena.judgements.agreement import Agreement, agreement
from toolkit.arena.judgements.judgement import BATTLE, BOTH_BAD, SKIP, TIE, A, B, Judgement, Reply
from toolkit.arena.judgements.ratings import (
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
    prompts = [json.dumps(j.prompt, sort_keys=True) for j in used]
    players = [tuple(_key(r, j) for r in j.replies) for j in used]
    keys = list(dict.fromkeys(key for each in players for key in each))
    index = {key: i for i, key in enumerate(keys)}
    orders = [
        Order(tuple(index[key] for key in each), _ranks(j), prompt)
        for j, each, prompt in zip(used, players, prompts, strict=True)
    ]
    orders = [order for order in orders if len(set(order.players)) > 1]
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
        agreement(_units(used, prompts)),
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


def _key(reply: Reply, judgement: Judgement) -> Key:
    """What makes a checkpoint itself: name and weights; of the base its fingerprint's."""
    weights = reply.adapter or "base " + str(judgement.base.get("weights", ""))
    return reply.name, f"{weights} {judgement.base.get('quantization', '')}"


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


def _units(judgements: Sequence[Judgement], prompts: Sequence[str]) -> dict[Hashable, list[str]]:
    """(prompt, two checkpoints) -> what each named labeler said last of the two."""
    last: dict[Hashable, dict[str, str]] = {}
    for j, prompt in zip(judgements, prompts, strict=True):
        for pair, said in _of_pairs(j) if j.labeler else ():
            last.setdefault((prompt, *pair), {})[j.labeler] = said
    return {unit: list(said.values()) for unit, said in last.items()}


def _of_pairs(judgement: Judgement) -> Iterator[tuple[tuple[Key, Key], str]]:
    """What a judgement says of each two checkpoints, whichever was shown first.

    A ranking prefers the one that wins more of the pairs of their answers, for a checkpoint may
    have given several.
    """
    if judgement.verdict == BOTH_BAD:
        first, second = sorted(_key(r, judgement) for r in judgement.replies)
        yield (first, second), BOTH_BAD
        return
    ranks: dict[Key, list[int]] = {}
    for reply, rank in zip(judgement.replies, _ranks(judgement), strict=True):
        ranks.setdefault(_key(reply, judgement), []).append(rank)
    for one, other in combinations(sorted(ranks), 2):
        won = sum((b > a) - (b < a) for a in ranks[one] for b in ranks[other])
        yield (one, other), TIE if won == 0 else str(one if won > 0 else other)
