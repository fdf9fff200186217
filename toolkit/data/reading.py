"""Reads the sources: all rows, the first rows, or a random share; renames columns."""

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from toolkit.data.folders import is_held_out
from toolkit.data.formats import common_columns
from toolkit.data.messages import Row
from toolkit.data.rewrites import WINNER, answer_columns, names_second
from toolkit.data.row_errors import as_json
from toolkit.data.sources import Part, Source
from toolkit.data.values import finite_number
from toolkit.errors import DatasetError

STREAM_HEAD = 1000  # rows of a stream that are read and checked before training


@dataclass(frozen=True)
class Chunk:
    """Rows of one file or split, with their numbers (from 1) among its `total` rows.

    `total` is None if the file or split was not read to its end.
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
        sources: datasets; either all or none of them have a `fraction`.
        max_rows: read only the first rows of each split of each source.
        seed: determines which rows a fraction or a sample draws.
        sample: draw this many rows of a split that has more.

    Raises: DatasetError if `columns` does not fit, or if only some sources have a fraction.
    """
    splits_of_sources = [
        {split: _read(source, parts, max_rows) for split, parts in source.splits.items()}
        for source in sources
    ]
    for source, splits in zip(sources, splits_of_sources, strict=True):
        for split, chunks in splits.items():
            if sample is not None and _size(chunks) > sample:
                rng = random.Random(f"{seed} {split} {source.place}")
                splits[split] = _draw(chunks, sample, rng)
    shares = [source.fraction for source in sources if source.fraction is not None]
    if not shares:
        return splits_of_sources
    if len(shares) < len(sources):
        raise DatasetError("`fraction` must be set for all `sources` or for none of them")
    sizes = [_size(splits["train"]) for splits in splits_of_sources]
    counts = mixture_sizes(sizes, shares)
    for number, (source, splits) in enumerate(zip(sources, splits_of_sources, strict=True)):
        if not counts[number]:
            raise DatasetError(
                f"{source.place}: `fraction` {source.fraction} gives no row; raise it"
            )
        rng = random.Random(f"{seed} {number} {source.place}")
        splits["train"] = _draw(splits["train"], counts[number], rng)
    return splits_of_sources


def mixture_sizes(sizes: Sequence[int], shares: Sequence[float]) -> list[int]:
    """The number of rows of each source in the largest mixture of these shares that repeats no row.

    `fraction` has the same meaning in TRL (`trl.scripts.utils.DatasetConfig`).

    Args:
        sizes: number of rows of each source.
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
        first = rows[:left] if isinstance(rows, list) else list(itertools.islice(rows, left))
        total = len(rows) if isinstance(rows, list) else None
        chunks.append(Chunk(part.place, range(1, len(first) + 1), first, total))
        left = None if left is None else left - len(first)
    if source.columns:
        chunks = _rename(chunks, source.columns, place=source.place)
    objects = [row for chunk in chunks for row in chunk.rows if isinstance(row, dict)]
    _check_winner(source.columns, objects, place=source.place)
    _check_one_split(objects, place=source.place)
    return chunks


def _check_one_split(rows: Sequence[Row], *, place: str) -> None:
    """Raise DatasetError if a column `split` puts some of the rows into a test split."""
    names = {name for row in rows if isinstance(name := row.get("split"), str)}
    held_out = sorted(name for name in names if is_held_out(name))
    if held_out and len(names) > len(held_out):
        raise DatasetError(
            f'{place}: the column "split" marks rows as {", ".join(held_out)}, but all rows of a file '
            "are one split; write each split into its own file, or set `columns: {split: part}`"
        )


def _rename(chunks: list[Chunk], columns: Mapping[str, str], *, place: str) -> list[Chunk]:
    """The chunks with their columns renamed by `columns`."""
    rows = [row for chunk in chunks for row in chunk.rows if isinstance(row, dict)]
    for old, new in columns.items():
        if rows and not any(old in row for row in rows):
            known = ", ".join(sorted(map(str, common_columns(rows)))) or "(none)"
            raise DatasetError(
                f'{place}: `columns` names "{old}", but no row has it; the columns are {known}'
            )
        if new not in columns and any(old in row and new in row for row in rows):
            raise DatasetError(
                f'{place}: `columns` renames "{old}" to "{new}", but the rows already have "{new}"; '
                f"rename that column too, for example `{new}: {new}_original`"
            )
    return [replace(c, rows=[rename_columns(row, columns) for row in c.rows]) for c in chunks]


def _check_winner(columns: Mapping[str, str], rows: Sequence[Row], *, place: str) -> None:
    """Raise DatasetError if another column than `chosen` seems to name the better answer.

    Without renamed answers A and B, the rows may also have the columns from which `chosen` was made.
    """
    names = common_columns(rows[:: max(1, len(rows) // STREAM_HEAD)])
    if not names >= {"chosen", "rejected"}:
        return
    old = {new: name for name, new in columns.items()}
    pair = (old.get("chosen", "chosen"), old.get("rejected", "rejected"))
    is_renamed = answer_columns([dict.fromkeys(pair, "text")], {*pair}) is not None
    if not is_renamed and answer_columns(rows, names) is not None:
        return
    for name in sorted(n for n in names if WINNER.search(n)):
        values = {v for row in rows if isinstance(v := row.get(name), str | int | float)}
        numbers = [number for v in values if (number := finite_number(v)) is not None]
        is_strength = numbers and min(numbers) > 0 and set(numbers) != {1, 2}
        if is_strength or not ((is_renamed and len(values) > 1) or names_second(name, values)):
            continue
        raise DatasetError(
            f'{place}: "{pair[0]}" is the chosen answer of every row, but "{name}" has '
            f"{as_json(sorted(map(str, values)))} and seems to name the better answer. Write the "
            "better answer of each row as `chosen`; to ignore the column, set "
            f"`columns: {{{name}: {name}_unused}}`"
        )


def rename_columns(row: Any, columns: Mapping[str, str]) -> Any:
    """A row with its columns renamed; anything that is not a row stays as it is."""
    return {columns.get(k, k): v for k, v in row.items()} if isinstance(row, dict) else row


def _size(chunks: Sequence[Chunk]) -> int:
    return sum(len(chunk.rows) for chunk in chunks)


def _draw(chunks: list[Chunk], count: int, rng: random.Random) -> list[Chunk]:
    """`count` random rows of the chunks, in their order."""
    places = [(c, i) for c, chunk in enumerate(chunks) for i in range(len(chunk.rows))]
    drawn: dict[int, list[int]] = {}
    for c, i in sorted(rng.sample(places, count)):
        drawn.setdefault(c, []).append(i)
    return [
        replace(
            chunks[c],
            numbers=[chunks[c].numbers[i] for i in indices],
            rows=[chunks[c].rows[i] for i in indices],
        )
        for c, indices in drawn.items()
    ]
