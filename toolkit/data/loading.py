"""From a recipe's arguments to its train and test split, checked and in TRL's columns."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from toolkit.data.duplicates import find_repeats
from toolkit.data.formats import (
    COLUMNS,
    KINDS,
    Kind,
    Turns,
    check_conversion,
    detect_format,
)
from toolkit.data.reading import STREAM_HEAD, Chunk, read_sources
from toolkit.data.row_errors import Failure, keep_dropped, tally
from toolkit.data.rows import Converted, convert_rows, is_plain
from toolkit.data.sources import Source, check_source, find_sources
from toolkit.data.splitting import hold_out
from toolkit.data.summary import Found, remarks, source_line
from toolkit.data.tables import Origin, Splits, make_table
from toolkit.errors import DatasetError
from toolkit.options.arguments import DataArguments, SourceArguments

if TYPE_CHECKING:
    from trl.scripts.utils import DatasetMixtureConfig, ScriptArguments

__all__ = ["check_source", "load_split", "load_splits"]


def load_splits(
    script: "ScriptArguments",
    mixture: "DatasetMixtureConfig",
    data_args: DataArguments,
    *,
    kind: str,
    seed: int,
    texts: bool = False,
    turns: Turns = "last",
    folder: Path | None = None,
    sample: int | None = None,
) -> Splits:
    """The rows of a recipe's dataset as "train" and, if there is one, "test".

    Args:
        script: names the dataset and its splits: a local file (.jsonl, .json, .csv, .parquet, also
            .gz), a folder of them, a hub name, or `world:<name>` for the embedded world.
        mixture: TRL's `datasets`, taken in the place of `dataset_name` if set; and
            `test_split_size`, used where the dataset has no test split.
        data_args: what to make of the rows, and `sources`, our mixture.
        kind: what the recipe trains on (see `toolkit.data.formats`).
        seed: which prompts are held out, and which rows of a mixture are drawn.
        texts: whether rows of text without a prompt may come as they are, kind "text".
        turns: of a dialogue prompt-completion rows of "all" assistant messages, or of the "last".
        folder: the run's directory, where rows that are dropped are written.
        sample: of a larger split of a source, read only so many rows, drawn by the seed.

    Returns: datasets with the kind's columns; with `script.dataset_streaming` of the first thousand
        rows of each split, the others being `toolkit.data.streaming`'s to read. A line is printed on
        each source, with what was found in it, and one for each file of which rows were dropped.
    Raises: DatasetError for a missing dataset or split, for rows of an unknown or unfit format, and
        for malformed rows unless `drop_bad_rows` is set.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {get_args(Kind)}, got {kind!r}")
    check_source(script, mixture, data_args)
    sources = find_sources(script, mixture, data_args)
    most = data_args.max_rows
    if script.dataset_streaming:
        most = min(most or STREAM_HEAD, STREAM_HEAD)
    read = read_sources(sources, max_rows=most, seed=seed, sample=sample)
    formats = [_format(source, chunks) for source, chunks in zip(sources, read, strict=True)]
    wanted: Kind = "text" if texts and set(formats) == {"text"} else kind
    for source, format in zip(sources, formats, strict=True):
        check_conversion(format=format, kind=wanted, place=source.place)
    found = [
        Found(source, format, chunks, _convert_source(chunks, format, wanted, data_args, turns))
        for source, format, chunks in zip(sources, formats, read, strict=True)
    ]
    place = ", ".join(source.place for source in sources)
    whole = _together(found)
    repeats = {split: find_repeats(result.made, wanted) for split, result in whole.items()}
    if data_args.drop_duplicates:
        _leave_out(whole, repeats)
    _check_filled(whole, place=place)
    keep_dropped([failure for result in whole.values() for failure in result.dropped], folder)
    rows, origins = _split(whole, mixture.test_split_size, seed=seed, place=place)
    _report(found, rows, repeats, kind=wanted, dropped=data_args.drop_duplicates)
    if wanted == "prompt-completion":  # a dialogue's number is for the split alone
        rows = {s: [{n: r[n] for n in COLUMNS[wanted]} for r in some] for s, some in rows.items()}
    tables = {split: make_table(some, place=place) for split, some in rows.items()}
    return Splits(tables, kind=wanted, origins=origins)


def load_split(
    name: str | None,
    split: str,
    *,
    option: str,
    kind: str = "prompt-only",
    drop_bad_rows: bool,
    seed: int,
) -> list[dict[str, Any]]:
    """One split of a dataset as rows, the others unread; nothing where no dataset is named.

    Args:
        name: as `dataset_name`.
        option: which of ours names the split.
        kind, seed: as for `load_splits`.

    Raises: as `load_splits`.
    """
    from trl import DatasetMixtureConfig, ScriptArguments

    if name is None:
        return []
    only = [SourceArguments(dataset_name=name, split=split)]
    asked = DataArguments(drop_bad_rows=drop_bad_rows, sources=only)
    none = ScriptArguments(dataset_name=None)
    try:
        splits = load_splits(none, DatasetMixtureConfig(), asked, kind=kind, seed=seed)
    except DatasetError as error:  # which names the option of a mixture's source
        raise DatasetError(str(error).replace("(`split`)", f"(`{option}`)")) from error
    return list(splits["train"])


def _format(source: Source, chunks: Mapping[str, Sequence[Chunk]]) -> str:
    rows = [row for chunk in chunks["train"] for row in chunk.rows]
    return source.format or detect_format(rows, place=source.place)


def _convert_source(
    chunks: Mapping[str, Sequence[Chunk]],
    format: str,
    kind: Kind,
    data_args: DataArguments,
    turns: Turns,
) -> dict[str, Converted]:
    """A source's splits, converted; says which rows of which file were dropped."""
    results = {}
    for split, some in chunks.items():
        results[split] = Converted()
        for chunk in some:
            result = convert_rows(
                chunk.rows,
                place=chunk.place,
                format=format,
                kind=kind,
                drop_bad_rows=data_args.drop_bad_rows,
                pairs=data_args.pairs,
                turns=turns,
                numbers=chunk.numbers,
                total=chunk.total or 0,
            )
            if result.dropped:
                dropped = f"dropped {len(result.dropped)} of {result.read} rows"
                print(f"{chunk.place}: {dropped}: {tally(result.dropped)}")
            results[split].add(result)
    return results


def _together(found: Sequence[Found]) -> dict[str, Converted]:
    """The splits of all sources as one.

    Raises: DatasetError if some hold text and others messages: TRL looks at one row to tell which.
    """
    whole: dict[str, Converted] = {}
    styles: dict[bool, str] = {}
    for number, one in enumerate(found):
        for split, result in one.results.items():
            for made in result.made:
                styles.setdefault(is_plain(made.rows[0]), made.place)
                if len(found) > 1:
                    _own_groups(made.rows, number)
            whole.setdefault(split, Converted()).add(result)
    if len(styles) > 1:
        raise DatasetError(
            f"{styles[True]} gives plain text and {styles[False]} messages, but a run can learn "
            "from only one of the two; rewrite one of them"
        )
    return whole


def _own_groups(rows: Sequence[dict[str, Any]], number: int) -> None:
    """Group numbers that no other source has: two may both count from 0."""
    for row in rows:
        if row.get("group_id") is not None:
            name = json.dumps([number, row["group_id"]], default=str).encode()
            row["group_id"] = int.from_bytes(hashlib.sha256(name).digest()[:8]) >> 1


def _leave_out(whole: Mapping[str, Converted], repeats: Mapping[str, Sequence[Failure]]) -> None:
    for split, result in whole.items():
        gone = {(failure.place, failure.number) for failure in repeats[split]}
        result.made = [made for made in result.made if (made.place, made.number) not in gone]
        result.dropped += repeats[split]


def _check_filled(whole: Mapping[str, Converted], *, place: str) -> None:
    for split, result in whole.items():
        if not result.made:
            why = " and ".join(f"all {n} rows {reason}" for reason, n in result.unused.items())
            why = why or "it has no rows"
            raise DatasetError(f"{place}: nothing to use in the {split} split: {why}")


def _split(
    whole: Mapping[str, Converted], size: float | None, *, seed: int, place: str
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, list[Origin]]]:
    """The rows of each split and where they come from; a test split is held out if there is none."""
    rows = {split: result.rows for split, result in whole.items()}
    origins = {
        split: [Origin(made.place, made.number) for made in result.made for _ in made.rows]
        for split, result in whole.items()
    }
    if "test" not in rows and size is not None:
        train, test = hold_out(rows["train"], size, seed=seed, place=place)
        every, places = rows["train"], origins["train"]
        rows = {"train": [every[i] for i in train], "test": [every[i] for i in test]}
        origins = {"train": [places[i] for i in train], "test": [places[i] for i in test]}
    return rows, origins


def _report(
    found: Sequence[Found],
    rows: Mapping[str, list[dict[str, Any]]],
    repeats: Mapping[str, Sequence[Failure]],
    *,
    kind: Kind,
    dropped: bool,
) -> None:
    """A line for each source, and for several one on all of them."""
    sizes = {split: len(some) for split, some in rows.items()}
    said = remarks(rows, repeats, kind=kind, dropped=dropped)
    if len(found) == 1:
        print(source_line(found[0], kind, sizes) + said)
        return
    for one in found:
        print(source_line(one, kind, {s: len(result.rows) for s, result in one.results.items()}))
    made = ", ".join(f"{split} {size}" for split, size in sizes.items())
    print(f"mixture of {len(found)} sources: {kind} ({made}){said}")
