"""Rows that are read, checked and converted while a trainer iterates over them, never all in memory.

`load_splits` reads the first rows of a stream: they determine the format, are checked before
training, and contain the test split. Each later row is checked when the trainer reaches it.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.data.convert import COLUMNS, Turns, convert_row, is_plain, style_error
from toolkit.data.layout import Layout, find_layout
from toolkit.data.messages import Row
from toolkit.data.reading import STREAM_HEAD, read_sources, rename_columns
from toolkit.data.rendering import RowCheck
from toolkit.data.row_errors import (
    FailedRow,
    RowError,
    Unreadable,
    error_message,
    tally,
    write_dropped,
)
from toolkit.data.sources import Source, find_sources
from toolkit.data.splits import Splits, question_key
from toolkit.errors import DatasetError
from toolkit.options.arguments import DataArguments

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from transformers import PreTrainedTokenizerBase
    from trl.scripts.utils import DatasetMixtureConfig, ScriptArguments


def open_stream(
    script: "ScriptArguments",
    mixture: "DatasetMixtureConfig",
    data_args: DataArguments,
    splits: Splits,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    folder: Path | None = None,
) -> "Stream":
    """The train split of `script.dataset_name` as a stream.

    Args:
        script, mixture, data_args: the arguments of `load_splits`.
        splits: the first rows, from `load_splits` and `check_texts`.
        tokenizer: the base's tokenizer, for the checks of `RowCheck`.
        folder: the run's directory, for the file of dropped rows.
    """
    (source,) = find_sources(script, mixture, data_args)
    (head,) = read_sources([source], max_rows=STREAM_HEAD, seed=0)
    rows = [row for chunk in head["train"] for row in chunk.rows]
    layout = find_layout(rows, place=source.place, format=source.format)
    return Stream(source, layout, splits, data_args, tokenizer, folder)


class Stream:
    """A source's train split, row by row, without the prompts of the test split.

    Trainers read a stream several times; each row is counted, and written to `dropped_rows.jsonl`
    if malformed, only once. `read`, `held_out` (rows with a prompt of the test split) and `dropped`
    describe the rows read so far.
    """

    def __init__(
        self,
        source: Source,
        layout: tuple[str, Layout],
        splits: Splits,
        data_args: DataArguments,
        tokenizer: "PreTrainedTokenizerBase",
        folder: Path | None,
    ) -> None:
        self.source, self.kind = source, splits.kind
        self.format, self.layout = layout
        self.data_args, self.folder = data_args, folder
        self.turns: Turns = getattr(data_args, "turns", "last")  # only SFT has this option
        self.plain = is_plain(splits["train"][0])
        self.check = RowCheck(tokenizer)
        self.test_prompts = set(map(question_key, splits["test"])) if "test" in splits else set()
        self.read = self.held_out = 0
        self.dropped: list[FailedRow] = []

    def table(self, *, seed: int) -> "IterableDataset":
        """The rows as an endless dataset for trainers, shuffled within a window of 1000 rows.

        A resumed trainer cannot find its pass over the stream or the row in it. In an
        endless dataset, it only skips the rows that it has read.
        """
        from datasets import IterableDataset

        def passes() -> Iterator[Row]:
            for number in itertools.count():
                one: IterableDataset = IterableDataset.from_generator(self.rows)
                shuffled = one.shuffle(seed=seed, buffer_size=STREAM_HEAD)
                shuffled.set_epoch(number)
                yield from shuffled

        return IterableDataset.from_generator(passes)

    def rows(self) -> Iterator[Row]:
        """The converted rows, with only the kind's columns.

        Raises: DatasetError at a malformed row unless `drop_bad_rows` is set.
        """
        for position, (place, number, row) in enumerate(self._numbered_rows(), start=1):
            is_new, self.read = position > self.read, max(position, self.read)
            try:
                rows = self._convert(row)
            except RowError as error:
                if is_new:
                    self._drop(FailedRow(place, number, error.check, str(error), row), position)
                continue
            kept = [one for one in rows if question_key(one) not in self.test_prompts]
            self.held_out += is_new and len(kept) < len(rows)
            yield from kept

    def summary(self) -> str:
        """One line with the numbers of rows that were read, held out and dropped so far."""
        line = f"{self.source.place}: {self.read} rows of the stream were read"
        if self.held_out:
            line += f", {self.held_out} left out because the test split has their prompts"
        if self.dropped:
            line += f", {len(self.dropped)} dropped after the first {STREAM_HEAD}: "
            line += tally(self.dropped)
        return line

    def _numbered_rows(self) -> Iterator[tuple[str, int, Any]]:
        """At most `max_rows` rows as (file or dataset, number there from 1, row)."""
        rows = (
            (part.place, number, row)
            for part in self.source.splits["train"]
            for number, row in enumerate(part.read(), start=1)
        )
        return itertools.islice(rows, self.data_args.max_rows)

    def _convert(self, row: Any) -> list[Row]:
        """Convert one row; raises RowError for the reasons of `load_splits` and `check_texts`."""
        if isinstance(row, Unreadable):
            raise RowError("unreadable", row.reason)
        columns = self.source.columns
        for old, new in columns.items() if isinstance(row, dict) else ():
            if old in row and new in row and new not in columns:
                problem = f'`columns` renames "{old}" to "{new}", but the row already has "{new}"'
                raise RowError("duplicate column", problem)
        converted = convert_row(
            rename_columns(row, columns),
            format=self.format,
            kind=self.kind,
            pairs=self.data_args.pairs,
            turns=self.turns,
            layout=self.layout,
        )
        rows = [{name: one[name] for name in COLUMNS[self.kind]} for one in converted]
        for one in rows:
            if is_plain(one) != self.plain:
                raise style_error(plain=self.plain)
            self.check(one)
        return rows

    def _drop(self, failed: FailedRow, position: int) -> None:
        if not self.data_args.drop_bad_rows:
            raise DatasetError(error_message([failed]))
        if position > STREAM_HEAD:  # `load_splits` has counted and written earlier ones
            self.dropped.append(failed)
            write_dropped([failed], self.folder, append=True, report=False)


def first_rows(table: "Dataset | IterableDataset", most: int = STREAM_HEAD) -> "Dataset":
    """A trainer's rows, or the first rows of an endless stream."""
    from datasets import Dataset

    if isinstance(table, Dataset):
        return table
    return Dataset.from_list(list(table.take(most)))
