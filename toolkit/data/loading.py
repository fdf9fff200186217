"""Loads the train and test splits of a recipe, checks them, and converts them to TRL's columns."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from toolkit.data.checks import find_duplicates
from toolkit.data.convert import (
    COLUMNS,
    KINDS,
    Conversion,
    Kind,
    Turns,
    check_conversion,
    convert_rows,
    is_plain,
)
from toolkit.data.layout import Layout, find_layout
from toolkit.data.messages import Row
from toolkit.data.ranking import hash_id
from toolkit.data.reading import STREAM_HEAD, Chunk, read_sources
from toolkit.data.row_errors import FailedRow, tally, write_dropped
from toolkit.data.sources import check_source, find_sources
from toolkit.data.splits import Origin, Splits, hold_out, make_table
from toolkit.data.summary import LoadedSource, print_summary
from toolkit.errors import DatasetError
from toolkit.options.arguments import DataArguments

if TYPE_CHECKING:
    from trl.scripts.utils import DatasetMixtureConfig, ScriptArguments

__all__ = ["check_source", "load_splits"]


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

    Prints a line for each source, and one for each file with dropped rows.

    Args:
        script: names the splits and the dataset: a local file (.jsonl, .json, .csv, .parquet, also
            .gz), a folder of them, a hub name, or `world:<name>` for the embedded world.
        mixture: TRL's `datasets`, which replace `dataset_name` if set; and `test_split_size`, used
            if the dataset has no test split.
        data_args: how rows are read; its `sources` are this project's mixture.
        kind: the kind of rows that the recipe trains on (see `toolkit.data.convert`).
        seed: determines which prompts are held out and which rows a mixture draws.
        texts: accept rows of text without a prompt, and return them as kind "text".
        turns: which assistant messages of a dialogue become prompt-completion rows: "all" or "last".
        folder: the run's directory, for the file of dropped rows.
        sample: read only this many rows of a larger split, drawn by the seed.

    Returns: datasets with the kind's columns. With `script.dataset_streaming` they hold the first
        thousand rows of each split; `toolkit.data.streaming` reads the others.
    Raises: DatasetError for a missing dataset or split, for rows of an unknown or unsuitable
        format, and for malformed rows unless `drop_bad_rows` is set.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {get_args(Kind)}, got {kind!r}")
    check_source(script, mixture, data_args)
    sources = find_sources(script, mixture, data_args)
    max_rows = data_args.max_rows
    if script.dataset_streaming:
        max_rows = min(max_rows or STREAM_HEAD, STREAM_HEAD)
    read = read_sources(sources, max_rows=max_rows, seed=seed, sample=sample)
    layouts = [
        find_layout(
            [row for chunk in chunks["train"] for row in chunk.rows],
            place=source.place,
            format=source.format,
        )
        for source, chunks in zip(sources, read, strict=True)
    ]
    formats = {format for format, _ in layouts}
    result: Kind = "text" if texts and formats == {"text"} else kind
    for source, (format, layout) in zip(sources, layouts, strict=True):
        check_conversion(format=format, kind=result, place=source.place, hint=layout.hint)
    loaded = [
        LoadedSource(source, *layout, chunks, _convert(chunks, *layout, result, data_args, turns))
        for source, layout, chunks in zip(sources, layouts, read, strict=True)
    ]
    place = ", ".join(source.place for source in sources)
    splits = _combine(loaded)
    duplicates = {s: find_duplicates(rows.converted, result) for s, rows in splits.items()}
    if data_args.drop_duplicates:
        _drop_duplicates(splits, duplicates)
    _check_not_empty(splits, place=place)
    write_dropped([failed for rows in splits.values() for failed in rows.dropped], folder)
    rows_of, origins = _split(splits, mixture.test_split_size, seed=seed, place=place)
    print_summary(loaded, rows_of, duplicates, kind=result, dropped=data_args.drop_duplicates)
    if result == "prompt-completion":  # only the split uses `group_id`
        names = COLUMNS[result]
        rows_of = {s: [{n: r[n] for n in names} for r in rows] for s, rows in rows_of.items()}
    tables = {split: make_table(rows, kind=result, place=place) for split, rows in rows_of.items()}
    return Splits(tables, kind=result, origins=origins)


def _convert(
    splits: Mapping[str, Sequence[Chunk]],
    format: str,
    layout: Layout,
    kind: Kind,
    data_args: DataArguments,
    turns: Turns,
) -> dict[str, Conversion]:
    """Convert a source's splits, and print which rows of each file are dropped."""
    conversions = {}
    for split, chunks in splits.items():
        conversions[split] = Conversion()
        for chunk in chunks:
            result = convert_rows(
                chunk.rows,
                place=chunk.place,
                format=format,
                kind=kind,
                drop_bad_rows=data_args.drop_bad_rows,
                pairs=data_args.pairs,
                turns=turns,
                layout=layout,
                numbers=chunk.numbers,
                total=chunk.total or 0,
            )
            if result.dropped:
                count = f"dropped {len(result.dropped)} of {result.read} rows"
                print(f"{chunk.place}: {count}: {tally(result.dropped)}")
            conversions[split].add(result)
    return conversions


def _combine(loaded: Sequence[LoadedSource]) -> dict[str, Conversion]:
    """The splits of all sources together.

    Raises: DatasetError if some hold text and others messages, because TRL checks only one row for this.
    """
    splits: dict[str, Conversion] = {}
    styles: dict[bool, str] = {}
    for number, source in enumerate(loaded):
        for split, conversion in source.conversions.items():
            for row in conversion.converted:
                styles.setdefault(is_plain(row.rows[0]), row.place)
            if len(loaded) > 1:  # two sources may both count their groups from 0
                for new_row in (*conversion.rows, *conversion.unused_prompts):
                    if new_row.get("group_id") is not None:
                        new_row["group_id"] = hash_id([number, new_row["group_id"]])
            splits.setdefault(split, Conversion()).add(conversion)
    if len(styles) > 1:
        raise DatasetError(
            f"{styles[True]} has plain text and {styles[False]} has messages, but a run can train "
            "on only one of the two; rewrite one of the datasets"
        )
    return splits


def _drop_duplicates(
    splits: Mapping[str, Conversion], duplicates: Mapping[str, Sequence[FailedRow]]
) -> None:
    for split, rows in splits.items():
        places = {(failed.place, failed.number) for failed in duplicates[split]}
        rows.converted = [row for row in rows.converted if (row.place, row.number) not in places]
        rows.dropped += duplicates[split]


def _check_not_empty(splits: Mapping[str, Conversion], *, place: str) -> None:
    for split, rows in splits.items():
        if not rows.converted:
            reason = " and ".join(f"all {n} rows {reason}" for reason, n in rows.unused.items())
            reason = reason or "it has no rows"
            raise DatasetError(f"{place}: the {split} split has no usable row: {reason}")


def _split(
    splits: Mapping[str, Conversion], size: float | None, *, seed: int, place: str
) -> tuple[dict[str, list[Row]], dict[str, list[Origin]]]:
    """The rows of each split and their origins; holds out a missing test split."""
    rows = {split: conversion.rows for split, conversion in splits.items()}
    origins = {
        split: [Origin(row.place, row.number) for row in conversion.converted for _ in row.rows]
        for split, conversion in splits.items()
    }
    if "test" not in rows and size is not None:
        others = splits["train"].unused_prompts
        sides = hold_out(rows["train"], size, seed=seed, place=place, others=others)
        indices = dict(zip(("train", "test"), sides, strict=True))
        all_rows, all_origins = rows["train"], origins["train"]
        rows = {split: [all_rows[i] for i in numbers] for split, numbers in indices.items()}
        origins = {split: [all_origins[i] for i in numbers] for split, numbers in indices.items()}
    return rows, origins
