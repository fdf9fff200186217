"""A source's rows as they are asked for: the first ones, under other names, or a share of them."""

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from toolkit.data.formats import common_columns
from toolkit.data.sources import Part, Source
from toolkit.errors import DatasetError

STREAM_HEAD = 1000  # rows of a stream that are read and checked before anything is trained


@dataclass(frozen=True)
class Chunk:
    """Rows of one file or split: which of its `total` rows (1-based), and the rows.

    `total` is None where the rows were not read to their end.
    """

    place: str
    numbers: Sequence[int]
    rows: Sequence[Any]
    total: int | None


def read_sources(
    sources: Sequence[Source], *, max_rows: int | None, seed: int, sample: int | None = None
) -> list[dict[str, list[Chunk]]]:
    """The rows of each source, by split.

    Args:
        sources: with `fraction` set on all of them or on none.
        max_rows: take only the first of each split of each source.
        seed: which rows are drawn where there are fractions, or a sample.
        sample: of a split that has more rows, draw so many of them.

    Raises: DatasetError where `columns` does not fit, or only some sources have a fraction.
    """
    read = [
        {
            split: _sampled(
                _read(source, parts, max_rows), sample, f"{seed} {split} {source.place}"
            )
            for split, parts in source.splits.items()
        }
        for source in sources
    ]
    if all(source.fraction is None for source in sources):
        return read
    shares = [source.fraction for source in sources if source.fraction is not None]
    if len(shares) < len(sources):
        raise DatasetError("`fraction` must be set for all `sources` or for none of them")
    sizes = [sum(len(chunk.rows) for chunk in found["train"]) for found in read]
    counts = mixture_sizes(sizes, shares)
    for number, (source, found, count) in enumerate(zip(sources, read, counts, strict=True)):
        if not count:
            raise DatasetError(f"{source.place}: its `fraction` of the mixture is less than a row")
        rng = random.Random(f"{seed} {number} {source.place}")
        found["train"] = _draw(found["train"], count, rng)
    return read


def mixture_sizes(sizes: Sequence[int], shares: Sequence[float]) -> list[int]:
    """How many rows of each source make the largest mixture of these shares that repeats none.

    The meaning of `fraction` is TRL's (`trl.scripts.utils.DatasetConfig`).

    Args:
        sizes: rows that each source has.
        shares: above 0, in any unit; they are divided by their sum.
    """
    weights = [share / sum(shares) for share in shares]
    total = min(size / weight for size, weight in zip(sizes, weights, strict=True))
    return [min(size, round(w * total)) for size, w in zip(sizes, weights, strict=True)]


def _read(source: Source, parts: Sequence[Part], max_rows: int | None) -> list[Chunk]:
    left = max_rows
    chunks = []
    for part in parts:
        rows = part.read()
        taken = rows[:left] if isinstance(rows, list) else list(itertools.islice(rows, left))
        total = len(rows) if isinstance(rows, list) else None
        chunks.append(Chunk(part.place, range(1, len(taken) + 1), taken, total))
        left = None if left is None else left - len(taken)
    return _rename(chunks, source.columns, place=source.place) if source.columns else chunks


def _rename(chunks: list[Chunk], columns: Mapping[str, str], *, place: str) -> list[Chunk]:
    """The rows with columns under the names that `columns` gives them."""
    rows = [row for chunk in chunks for row in chunk.rows if isinstance(row, dict)]
    for old, new in columns.items():
        if rows and not any(old in row for row in rows):
            has = ", ".join(sorted(map(str, common_columns(rows)))) or "(none)"
            raise DatasetError(f'{place}: `columns` names "{old}", which no row has; it has {has}')
        if new not in columns and any(old in row and new in row for row in rows):
            raise DatasetError(
                f'{place}: `columns` would put "{old}" over "{new}", which the rows have as well; '
                f"give that one another name too, such as `{new}: {new}_given`"
            )
    return [
        replace(
            chunk,
            rows=[renamed(row, columns) for row in chunk.rows],
        )
        for chunk in chunks
    ]


def renamed(row: Any, columns: Mapping[str, str]) -> Any:
    """A row with its columns under the names that `columns` gives them."""
    return {columns.get(k, k): v for k, v in row.items()} if isinstance(row, dict) else row


def _sampled(chunks: list[Chunk], sample: int | None, seed: str) -> list[Chunk]:
    if sample is None or sum(len(chunk.rows) for chunk in chunks) <= sample:
        return chunks
    return _draw(chunks, sample, random.Random(seed))


def _draw(chunks: list[Chunk], count: int, rng: random.Random) -> list[Chunk]:
    """`count` rows of the chunks, in their order."""
    places = [(c, i) for c, chunk in enumerate(chunks) for i in range(len(chunk.rows))]
    drawn: dict[int, list[int]] = {}
    for c, i in sorted(rng.sample(places, count)):
        drawn.setdefault(c, []).append(i)
    return [
        replace(
            chunks[c],
            numbers=[chunks[c].numbers[i] for i in taken],
            rows=[chunks[c].rows[i] for i in taken],
        )
        for c, taken in drawn.items()
    ]
