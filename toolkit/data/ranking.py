"""Ranked completions: K answers to one prompt in a labeler's order, expanded to pairs."""

import itertools
import json
import math
import zlib
from typing import Any

from toolkit.data.messages import BadRow, Row, answer, column, prompt, shown


def read_ranked(row: Row) -> Row:
    """`{"prompt", "completions", "ranks"}` of a row that has ranks, or scores in their place.

    Ranks are whole numbers, 1 is best, ties are allowed; of scores the highest is best. A
    prompt of messages may have plain texts as completions.

    Raises: BadRow if they do not fit together.
    """
    asked = prompt(column(row, "prompt"), '"prompt"')
    given = column(row, "completions")
    if not isinstance(given, list) or len(given) < 2:
        wanted = '"completions" must be a list of 2 or more'
        raise BadRow("not a list of completions", f"{wanted}, got {shown(given)}")
    completions = [
        answer(item, f'"completions" {i}', like=asked, wrap=True)
        for i, item in enumerate(given, start=1)
    ]
    return {"prompt": asked, "completions": completions, "ranks": _ranks(row, len(given))}


def _ranks(row: Row, k: int) -> list[int]:
    name = "scores" if row.get("ranks") is None and "scores" in row else "ranks"
    values = column(row, name)
    if not isinstance(values, list) or len(values) != k:
        wanted = f'"{name}" must be a list of {k} numbers, as there are completions'
        raise BadRow("ranks do not fit", f"{wanted}, got {shown(values)}")
    for value in values:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if name == "ranks" and (not number or value < 1 or value != value // 1):
            wanted = '"ranks" must be whole numbers from 1 (the best)'
            raise BadRow("ranks do not fit", f"{wanted}, got {shown(value)}")
        if not number or (isinstance(value, float) and not math.isfinite(value)):
            raise BadRow("ranks do not fit", f'"scores" must be numbers, got {shown(value)}')
    if name == "ranks":
        return [int(v) for v in values]
    return [1 + sum(other > value for other in values) for value in values]


def ranked_to_pairs(row: Row) -> list[dict[str, Any]]:
    """All pairs of a ranked row that are not tied, as `{"prompt", "chosen", "rejected"}`.

    Two equal completions count as tied whatever their ranks: no model can tell them apart.

    Args:
        row: `{"prompt", "completions": [K], "ranks": [K]}`, or "scores" in place of "ranks".

    Returns: at most C(K,2) rows, in the order of the completions.
    Raises: DatasetError if the row is malformed.
    """
    ranked = read_ranked(row)
    pairs = []
    options = zip(ranked["completions"], ranked["ranks"], strict=True)
    for (a, rank_a), (b, rank_b) in itertools.combinations(options, 2):
        if rank_a != rank_b and a != b:
            better, worse = (a, b) if rank_a < rank_b else (b, a)
            pairs.append({"prompt": ranked["prompt"], "chosen": better, "rejected": worse})
    return pairs


def group_id(ranked: Row) -> int:
    """A number by which the pairs of one ranking find together again in a batch."""
    return zlib.crc32(json.dumps([ranked["prompt"], ranked["completions"]]).encode())


def best_completion(ranked: Row) -> Any:
    """The completion of the lowest rank, the first of them if several share it."""
    ranks = ranked["ranks"]
    return ranked["completions"][ranks.index(min(ranks))]
