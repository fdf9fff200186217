"""Checks of well-formed rows: duplicates, contradictions, template marks and lengths."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.data.convert import COLUMNS, ConvertedRow, Kind, is_plain
from toolkit.data.messages import Row, assistant, user
from toolkit.data.row_errors import (
    FailedRow,
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

COMPLETIONS = ("completion", "chosen", "rejected")
MOST_MEASURED = 5000  # rows of a split whose tokens are counted; all rows could take minutes
REPLACEMENT = "\ufffd"  # decoders write it in place of bytes that are not UTF-8
NEVER = r"(?!)"  # a pattern that matches nothing
SHORTEST_MARK = 4  # a blank line or "A:" is part of many texts


def find_duplicates(rows: Sequence[ConvertedRow], kind: Kind) -> list[FailedRow]:
    """Rows with the prompt and completions of an earlier row, whatever their other columns are."""
    first: dict[bytes, ConvertedRow] = {}
    duplicates = []
    for row in rows:
        original = first.setdefault(_digest(row.rows, kind), row)
        if original is not row:
            reason = f"it duplicates row {original.number}"
            reason += f" of {original.place}" if original.place != row.place else ""
            duplicates.append(
                FailedRow(row.place, row.number, "duplicate row", reason, row.original)
            )
    return duplicates


def count_contradictions(rows: Sequence[Row], kind: Kind) -> int:
    """How many pairs occur in both orders, or completions with both labels."""
    if kind not in ("preference", "unpaired"):
        return 0
    digests = {_digest([row], kind) for row in rows}
    opposites = {_digest([_opposite(row, kind)], kind) for row in rows}
    return len(digests & opposites) // 2


def _opposite(row: Row, kind: Kind) -> Row:
    if kind == "unpaired":
        return row | {"label": not row["label"]}
    return row | {"chosen": row["rejected"], "rejected": row["chosen"]}


def _digest(rows: Sequence[Row], kind: Kind) -> bytes:
    values = [[row[column] for column in COLUMNS[kind]] for row in rows]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).digest()[:16]


def check_texts(
    splits: Splits,
    tokenizer: "PreTrainedTokenizerBase",
    data_args: DataArguments,
    *,
    max_length: int | None = None,
    truncates: bool = True,
    folder: Path | None = None,
) -> Splits:
    """The splits without rows whose messages contain marks of the chat template.

    The model would read a special token inside a message as the end of the turn or as the start of
    another speaker's turn. In plain text, which may contain it on purpose, it is only reported.

    Args:
        splits: the result of `load_splits`.
        tokenizer: the base's tokenizer.
        data_args: `drop_bad_rows` is used.
        max_length: the trainer's limit in tokens.
        truncates: whether the trainer truncates longer rows, which is reported here. A trainer that
            leaves them out reports that itself.
        folder: the run's directory, for the file of dropped rows.

    Raises: DatasetError for rows with marks unless `drop_bad_rows` is set; if no row is left; and
        if no prompt leaves room for a completion.
    """
    marks = template_marks(tokenizer)
    failed: list[FailedRow] = []
    tables, origins = dict(splits), dict(splits.origins)
    for split, table in splits.items():
        marked = _find_marks(splits, split, marks)
        if marked and is_plain(table[0]):
            print(f"{split}: {tally(marked.values())}: the tokenizer reads them as special tokens")
        elif marked:
            failed += marked.values()
            kept = [i for i in range(len(table)) if i not in marked]
            tables[split] = table.select(kept)
            origins[split] = [splits.origins[split][i] for i in kept]
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
    _report_lost_bytes(checked)
    if max_length is not None:
        _report_lengths(checked, tokenizer, max_length, truncates=truncates)
    return checked


def _of_first_place(failed: list[FailedRow]) -> list[FailedRow]:
    """The failed rows of the first row's file, each once: the pairs of a ranking share their row."""
    rows = {(f.place, f.number): f for f in reversed(failed) if f.place == failed[0].place}
    return sorted(rows.values(), key=lambda f: f.number)


def template_marks(tokenizer: "PreTrainedTokenizerBase") -> re.Pattern[str]:
    """A pattern of the special tokens and of the words with which the template separates turns."""
    special = {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
    special |= {str(token) for token in tokenizer.all_special_tokens}
    marks = [mark for mark in special | _turn_marks(tokenizer) if mark]
    longest_first = sorted(marks, key=lambda mark: (-len(mark), mark))
    return re.compile("|".join(map(re.escape, longest_first)) or NEVER)


def _turn_marks(tokenizer: "PreTrainedTokenizerBase") -> set[str]:
    """The texts that the template writes between two turns."""
    if tokenizer.chat_template is None:
        return set()
    from jinja2 import TemplateError

    texts = ["first question", "first answer", "second question", "second answer"]
    turns = [(assistant if i % 2 else user)(text) for i, text in enumerate(texts)]
    try:
        rendered = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except TemplateError:  # a template for a single turn
        return set()
    between = re.fullmatch(".*" + "(.*)".join(map(re.escape, texts)) + ".*", rendered, re.DOTALL)
    if between is None:
        return set()
    return {mark for mark in between.groups() if len("".join(mark.split())) >= SHORTEST_MARK}


def _find_marks(splits: Splits, split: str, marks: re.Pattern[str]) -> dict[int, FailedRow]:
    """The rows of a split that contain a mark, by index."""
    failed = {}
    for i, row in enumerate(splits[split]):
        message = template_mark(row, marks)
        if message is not None:
            origin = splits.origins[split][i]
            failed[i] = FailedRow(origin.place, origin.number, "special token", message, row)
    return failed


def template_mark(row: Row, marks: re.Pattern[str]) -> str | None:
    """An error message about the first mark in a row; None for a row without marks."""
    for name, text in _texts(row):
        mark = marks.search(text)
        if mark is not None:
            excerpt = text[max(0, mark.start() - 20) : mark.end() + 20]
            problem = f"{name} must not contain the chat template's {describe(mark.group())}"
            return f"{problem}, got {describe(excerpt)}"
    return None


def _texts(row: Row) -> Iterator[tuple[str, str]]:
    """The texts of a row that the model reads, each after its name in error messages."""
    for name in ("prompt", "text", *COMPLETIONS):
        value = row.get(name)
        if isinstance(value, str):
            yield f'"{name}"', value
        elif value is not None:
            for i, message in enumerate(value, start=1):
                yield f'"{name}" message {i}', message["content"]


def _report_lost_bytes(splits: Splits) -> None:
    for split, table in splits.items():
        rows = [
            FailedRow(origin.place, origin.number, "", "", None)
            for origin, row in zip(splits.origins[split], table, strict=True)
            if any(REPLACEMENT in text for _, text in _texts(row))
        ]
        if rows:
            count = f"{len(rows)} of {len(table)} rows contain U+FFFD ({row_numbers(rows)})"
            print(f"{split}: {count}: it replaces bytes that were not UTF-8")


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
                f"{split}: no prompt leaves room for a completion: the shortest has {shortest} "
                f"tokens and `max_length` is {limit}; raise it"
            )
        if long and truncates:
            every = f" (every {step}th row was measured)" if step > 1 else ""
            line = f"{split}: {long} of {len(lengths)} rows{every}, {long / len(lengths):.1%}, "
            line += f"are longer than `max_length` {limit} tokens and will be truncated"
            line += f"; {full} of them are left out, because the prompt fills it" if full else ""
            print(line)


def _lengths(tokenizer: "PreTrainedTokenizerBase", row: Row) -> tuple[int, int]:
    """Tokens of a row's prompt, and of the prompt with its longest completion."""
    if "text" in row:
        return 0, _count(tokenizer, row["text"]) + 1
    prompt = row["prompt"]
    completions = [row[name] for name in COMPLETIONS if name in row]
    if isinstance(prompt, str):
        whole = (_count(tokenizer, prompt + completion) + 1 for completion in completions)
        return _count(tokenizer, prompt), max(whole, default=0)
    whole = (_count_messages(tokenizer, prompt + completion) for completion in completions)
    prompt_length = _count_messages(tokenizer, prompt, add_generation_prompt=True)
    return prompt_length, max(whole, default=0)


def _count(tokenizer: "PreTrainedTokenizerBase", text: str) -> int:
    return len(tokenizer(text)["input_ids"])


def _count_messages(tokenizer: "PreTrainedTokenizerBase", messages: Any, **options: Any) -> int:
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, **options)
    return len(tokenizer(rendered, add_special_tokens=False)["input_ids"])
