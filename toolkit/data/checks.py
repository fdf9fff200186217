"""Checks of well-formed rows: duplicates, contradictions, the text for the model, lengths."""

import re
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.data.convert import COLUMNS, ConvertedRow, Kind, is_plain
from toolkit.data.encoding import (
    TEMPLATE_CHECK,
    encode_completion,
    encode_prompt,
    encode_text,
)
from toolkit.data.messages import Row
from toolkit.data.rendering import COMPLETIONS, RowCheck, foreign_marks, misread, texts_of
from toolkit.data.row_errors import (
    FailedRow,
    RowError,
    describe,
    error_message,
    row_numbers,
    tally,
    write_dropped,
)
from toolkit.data.splits import Splits
from toolkit.errors import DatasetError
from toolkit.options.arguments import DataArguments

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_MEASURED = 5000  # rows of a split whose tokens are counted; all rows could take minutes
MOST_DECODED = 200  # rows of a split whose tokens are decoded again
REPLACEMENT = "\ufffd"  # decoders write it in place of bytes that are not UTF-8


def find_duplicates(rows: Sequence[ConvertedRow], kind: Kind) -> list[FailedRow]:
    """Rows that repeat the prompt and completions of an earlier row; other columns may differ."""
    first: dict[Hashable, ConvertedRow] = {}
    duplicates = []
    for row in rows:
        original = first.setdefault(tuple(_key(one, kind) for one in row.rows), row)
        if original is not row:
            reason = f"this row duplicates row {original.number}"
            reason += f" of {original.place}" if original.place != row.place else ""
            duplicates.append(
                FailedRow(row.place, row.number, "duplicate row", reason, row.original)
            )
    return duplicates


def count_contradictions(rows: Sequence[Row], kind: Kind) -> int:
    """Number of pairs that occur in both orders, or of completions that occur with both labels."""
    if kind not in ("preference", "unpaired"):
        return 0
    keys = {_key(row, kind) for row in rows}
    return sum(_opposite(key, kind) in keys for key in keys) // 2


def _opposite(key: tuple[Hashable, ...], kind: Kind) -> tuple[Hashable, ...]:
    prompt, first, second = key
    return (prompt, first, not second) if kind == "unpaired" else (prompt, second, first)


def _key(row: Row, kind: Kind) -> tuple[Hashable, ...]:
    """The row's values in the columns of the kind; two rows are equal if their keys are."""
    return tuple(_hashable(row[column]) for column in COLUMNS[kind])


def _hashable(value: Any) -> Hashable:
    """A text, a message or a list of them as a key."""
    if isinstance(value, list):
        return tuple(map(_hashable, value))
    return (value["role"], value["content"]) if isinstance(value, dict) else value


def check_texts(
    splits: Splits,
    tokenizer: "PreTrainedTokenizerBase",
    data_args: DataArguments,
    *,
    max_length: int | None = None,
    truncates: bool = True,
    folder: Path | None = None,
) -> Splits:
    """The splits without rows whose text the model would read differently; see `RowCheck`.

    Plain text may contain special tokens on purpose, so special tokens in it are only reported.

    Args:
        splits: the result of `load_splits`.
        tokenizer: the base's tokenizer.
        data_args: `drop_bad_rows` is used.
        max_length: the trainer's limit in tokens.
        truncates: whether the trainer truncates longer rows; if so, this function reports their
            number. A trainer that leaves longer rows out reports their number itself.
        folder: the run's directory, for the file of dropped rows.

    Raises: DatasetError for rows that fail the check unless `drop_bad_rows` is set; if no row is
        left; if the chat template does not suit most rows; and if no prompt leaves room for a
        completion.
    """
    check = RowCheck(tokenizer)
    failed: list[FailedRow] = []
    tables, origins = dict(splits), dict(splits.origins)
    for split, table in splits.items():
        bad = _find_failed(splits, split, check)
        failed += bad.values()
        if bad:
            kept = [i for i in range(len(table)) if i not in bad]
            tables[split] = table.select(kept)
            origins[split] = [splits.origins[split][i] for i in kept]
    _require_suitable_template(failed, total=sum(map(len, splits.values())))
    if failed and not data_args.drop_bad_rows:
        raise DatasetError(error_message(_of_first_place(failed)))
    if failed:
        print(f"dropped {len(failed)} rows: {tally(failed)}")
        write_dropped(failed, folder, append=True)
    for split, table in tables.items():
        if not len(table):
            report = error_message(_of_first_place(failed))
            raise DatasetError(f"no row of the {split} split is left.\n{report}")
    checked = Splits(tables, kind=splits.kind, origins=origins)
    _report_special_tokens(checked, check.marks)
    _report_foreign_marks(checked, foreign_marks(tokenizer))
    _report_lost_bytes(checked)
    _report_misread(checked, tokenizer)
    if max_length is not None:
        _report_lengths(checked, tokenizer, max_length, truncates=truncates)
    return checked


def _find_failed(splits: Splits, split: str, check: RowCheck) -> dict[int, FailedRow]:
    """The rows of a split that fail the check, by index."""
    failed = {}
    for i, row in enumerate(splits[split]):
        try:
            check(row)
        except RowError as error:
            origin = splits.origins[split][i]
            failed[i] = FailedRow(origin.place, origin.number, error.check, str(error), row)
    return failed


def _require_suitable_template(failed: Sequence[FailedRow], *, total: int) -> None:
    """Raise DatasetError if the chat template fails for most rows: do not drop most of a dataset."""
    unsuitable = [row for row in failed if row.check == TEMPLATE_CHECK]
    if 2 * len(unsuitable) > total:
        fix = (
            f"That is more than half of the {total} rows, so the chat template does not suit this "
            "dataset: choose another `chat_template` (chatml, plain or a Jinja file), or change the "
            "rows."
        )
        raise DatasetError(error_message(_of_first_place(unsuitable), fix=fix))


def _of_first_place(failed: list[FailedRow]) -> list[FailedRow]:
    """The failed rows in the first one's file, each once: a ranked row gives several pairs."""
    rows = {(f.place, f.number): f for f in reversed(failed) if f.place == failed[0].place}
    return sorted(rows.values(), key=lambda f: f.number)


def _report_special_tokens(splits: Splits, marks: re.Pattern[str]) -> None:
    for split, rows in _rows_with(splits, marks):
        if is_plain(splits[split][0]):
            count = f"{len(rows)} of {len(splits[split])} rows contain special tokens"
            print(f"{split}: {count} ({row_numbers(rows)}), which are not tokenized as text")


def _report_foreign_marks(splits: Splits, marks: re.Pattern[str]) -> None:
    for split, rows in _rows_with(splits, marks):
        table = splits[split]
        texts = (text for row in table for _, text in texts_of(row))
        mark = next(found.group() for found in map(marks.search, texts) if found)
        print(
            f"{split}: {len(rows)} of {len(table)} rows contain {mark} ({row_numbers(rows)}), which is "
            "not a token of this tokenizer: the model reads it as plain text. If the rows are chats "
            "rendered for another model, convert them to messages"
        )


def _report_lost_bytes(splits: Splits) -> None:
    for split, rows in _rows_with(splits, re.compile(REPLACEMENT)):
        count = f"{len(rows)} of {len(splits[split])} rows contain U+FFFD ({row_numbers(rows)})"
        print(f"{split}: {count}, which replaces bytes that were not UTF-8")


def _report_misread(splits: Splits, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Report rows that the tokenizer changes: unknown characters, lost whitespace, lower case."""
    for split, table in splits.items():
        rows = table.select(range(min(len(table), MOST_DECODED)))
        changes = list(filter(None, (misread(tokenizer, row) for row in rows)))
        if changes:
            text, back = changes[0]
            print(
                f"{split}: the tokenizer changes the text of {len(changes)} of the first {len(rows)} rows: "
                f"{describe(text)} is read as {describe(back)}"
            )


def _rows_with(splits: Splits, pattern: re.Pattern[str]) -> Iterator[tuple[str, list[FailedRow]]]:
    """The rows whose texts contain a pattern, for each split that has such rows."""
    for split, table in splits.items():
        rows = [
            FailedRow(origin.place, origin.number, "", "", None)
            for origin, row in zip(splits.origins[split], table, strict=True)
            if any(pattern.search(text) for _, text in texts_of(row))
        ]
        if rows:
            yield split, rows


def _report_lengths(
    splits: Splits, tokenizer: "PreTrainedTokenizerBase", limit: int, *, truncates: bool
) -> None:
    """Print how many rows the trainer truncates, and how many prompts leave no room.

    Raises: DatasetError if no prompt leaves room for a completion.
    """
    for split, table in splits.items():
        step = -(-len(table) // MOST_MEASURED)
        lengths = [_lengths(tokenizer, row) for row in table.select(range(0, len(table), step))]
        long = sum(whole > limit for _, whole in lengths)
        full = sum(prompt >= limit for prompt, _ in lengths)
        if full == len(lengths):
            shortest = min(prompt for prompt, _ in lengths)
            raise DatasetError(
                f"{split}: no prompt leaves room for a completion: the shortest prompt has "
                f"{shortest} tokens and `max_length` is {limit}; raise `max_length`"
            )
        if long and truncates:
            every = f" (every {step}th row was measured)" if step > 1 else ""
            line = f"{split}: {long} of {len(lengths)} rows{every}, {long / len(lengths):.1%}, "
            line += f"are longer than `max_length` {limit} tokens and will be truncated"
            line += f"; {full} of them are left out: the prompt alone is too long" if full else ""
            print(line)


def _lengths(tokenizer: "PreTrainedTokenizerBase", row: Row) -> tuple[int, int]:
    """Tokens of a row's prompt, and of the prompt with its longest completion."""
    if "text" in row:
        return 0, len(encode_text(tokenizer, row["text"]))
    prompt = row["prompt"]
    completions = [row[name] for name in COMPLETIONS if name in row]
    lengths = (len(encode_completion(tokenizer, prompt, c)) for c in completions)
    prompt_length = len(encode_prompt(tokenizer, prompt))
    return prompt_length, prompt_length + max(lengths, default=0)
