"""Rows that are read, checked and converted while a trainer asks for them, and never all in memory.

Of a stream `load_splits` reads the first rows: they tell the format, are checked before anything
is trained, and hold the test split. What follows is checked row by row, when its turn comes.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.data.checks import template_mark, template_marks
from toolkit.data.formats import COLUMNS, Turns, convert_row, detect_format
from toolkit.data.messages import BadRow, Row, Unreadable
from toolkit.data.reading import STREAM_HEAD, read_sources, renamed
from toolkit.data.row_errors import Failure, describe, keep_dropped, tally
from toolkit.data.rows import is_plain, other_style
from toolkit.data.sources import Source, find_sources
from toolkit.data.splitting import prompt_key
from toolkit.data.tables import Splits
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
        script, mixture, data_args: as `load_splits` got them.
        splits: what `load_splits` and `check_texts` made of the first rows.
        tokenizer: the base's, whose template's marks no message may hold.
        folder: the run's directory, where rows that are dropped are written.
    """
    (source,) = find_sources(script, mixture, data_args)
    (head,) = read_sources([source], max_rows=STREAM_HEAD, seed=0)
    rows = [row for chunk in head["train"] for row in chunk.rows]
    format = source.format or detect_format(rows, place=source.place)
    return Stream(source, format, splits, data_args, tokenizer, folder)


class Stream:
    """A source's train split, row by row, without the prompts of the test split.

    It can be read again and again, as trainers do; each row is counted, and each bad row written to
    `dropped_rows.jsonl`, once. `read`, `held_out` (rows whose prompt is in the test split) and
    `dropped` say what was met so far.
    """

    def __init__(
        self,
        source: Source,
        format: str,
        splits: Splits,
        data_args: DataArguments,
        tokenizer: "PreTrainedTokenizerBase",
        folder: Path | None,
    ) -> None:
        self.source, self.format, self.kind = source, format, splits.kind
        self.data_args, self.folder = data_args, folder
        self.turns: Turns = getattr(data_args, "turns", "last")  # SFT's option alone
        self.plain = is_plain(splits["train"][0])
        self.marks = template_marks(tokenizer)
        self.test = {prompt_key(row) for row in splits["test"]} if "test" in splits else set()
        self.read = self.held_out = 0
        self.dropped: list[Failure] = []

    def table(self, *, seed: int) -> "IterableDataset":
        """The rows as trainers take them, shuffled within a window of 1000."""
        from datasets import IterableDataset

        found: IterableDataset = IterableDataset.from_generator(self.rows)
        return found.shuffle(seed=seed, buffer_size=STREAM_HEAD)

    def rows(self) -> Iterator[Row]:
        """The converted rows, with the kind's columns only.

        Raises: DatasetError at a malformed row unless `drop_bad_rows` is set.
        """
        for position, (place, number, row) in enumerate(self._numbered(), start=1):
            first_time, self.read = position > self.read, max(position, self.read)
            try:
                made = self._convert(row)
            except BadRow as error:
                if first_time:
                    self._drop(Failure(place, number, error.check, str(error), row), position)
                continue
            kept = [one for one in made if prompt_key(one) not in self.test]
            self.held_out += first_time and len(kept) < len(made)
            yield from kept

    def summary(self) -> str:
        """What was met so far, in one line."""
        line = f"{self.source.place}: {self.read} rows of the stream were read"
        if self.held_out:
            line += f", {self.held_out} left out since the test split has their prompts"
        if self.dropped:
            line += f", {len(self.dropped)} dropped after the first {STREAM_HEAD}: "
            line += tally(self.dropped)
        return line

    def _numbered(self) -> Iterator[tuple[str, int, Any]]:
        """Place, number there (1-based) and row, at most `max_rows`."""
        left = self.data_args.max_rows
        for part in self.source.splits["train"]:
            for number, row in enumerate(part.read(), start=1):
                if left is not None and left <= 0:
                    return
                left = None if left is None else left - 1
                yield part.place, number, row

    def _convert(self, row: Any) -> list[Row]:
        """Raises: BadRow for what `load_splits` and `check_texts` find malformed in a row."""
        if isinstance(row, Unreadable):
            raise BadRow("unreadable", row.reason)
        columns = self.source.columns
        for old, new in columns.items() if isinstance(row, dict) else ():
            if old in row and new in row and new not in columns:
                raise BadRow("column there twice", f'`columns` would put "{old}" over "{new}"')
        row = renamed(row, columns)
        found = convert_row(
            row, format=self.format, kind=self.kind, pairs=self.data_args.pairs, turns=self.turns
        )
        found = [{name: one[name] for name in COLUMNS[self.kind]} for one in found]
        for one in found:
            if is_plain(one) != self.plain:
                raise other_style(plain=self.plain)
            if not self.plain and (mark := template_mark(one, self.marks)):
                raise BadRow("special token", mark)
        return found

    def _drop(self, failure: Failure, position: int) -> None:
        if not self.data_args.drop_bad_rows:
            raise DatasetError(describe([failure]))
        if position > STREAM_HEAD:  # those before are counted and written
            self.dropped.append(failure)
            keep_dropped([failure], self.folder, more=True, say=False)


def first_rows(table: "Dataset | IterableDataset") -> "Dataset":
    """A trainer's rows, of a stream the first ones."""
    from datasets import Dataset

    if isinstance(table, Dataset):
        return table
    return Dataset.from_list(list(table.take(STREAM_HEAD)))
