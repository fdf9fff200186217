"""Errors of single rows: the exception, the message for a file, the file of dropped rows."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.errors import DatasetError
from toolkit.runs.replacing import DROPPED_FILE


class RowError(DatasetError):
    """One row is malformed.

    Args:
        check: the name of the failed check.
        message: the expected content.
        got: the values that the row has instead; the message describes them.
    """

    def __init__(self, check: str, message: str, *got: Any) -> None:
        super().__init__(message + (f", got {' and '.join(map(describe, got))}" if got else ""))
        self.check = check


@dataclass(frozen=True)
class Unreadable:
    """A placeholder for a row that cannot be parsed, so that later rows keep their numbers."""

    reason: str
    text: str


@dataclass(frozen=True)
class FailedRow:
    """A row that fails a check: its file or dataset, its number there (from 1), and its content."""

    place: str
    number: int
    check: str
    message: str
    row: Any

    @property
    def content(self) -> Any:
        """The row, or the raw text of an unreadable row."""
        return self.row.text if isinstance(self.row, Unreadable) else self.row


def shorten(value: Any, *, chars: int = 24, items: int = 4, depth: int = 4) -> Any:
    """`value` with long texts, long lists and deep nesting cut; an ellipsis marks each cut."""
    if isinstance(value, str):
        # JSON allows a lone surrogate, which cannot be printed.
        text = value.encode("utf-8", "backslashreplace").decode()
        return text if len(text) <= chars else text[: chars - 1].rstrip() + "…"
    if isinstance(value, list | tuple | dict) and depth == 0:
        return "…"
    limits = {"chars": chars, "items": items, "depth": depth - 1}
    if isinstance(value, list | tuple):
        short_items = [shorten(v, **limits) for v in value[:items]]
        return [*short_items, "…"] if len(value) > items else short_items
    if isinstance(value, dict):
        entries = list(value.items())[: 2 * items]
        short = {shorten(str(k), **limits): shorten(v, **limits) for k, v in entries}
        return short | {"…": "…"} if len(value) > len(entries) else short
    return value


def describe(value: Any) -> str:
    """Describe `value` in an error message: as shortened JSON with its type."""
    return f"{as_json(value)} ({type(value).__name__})"


def as_json(value: Any) -> str:
    """`value`, shortened, as one line of JSON."""
    return json.dumps(shorten(value), ensure_ascii=False, default=lambda v: shorten(repr(v)))


def error_message(
    failed: Sequence[FailedRow], *, total: int | None = None, fix: str | None = None
) -> str:
    """An error message: the first failed row, how many rows fail each check, and the fix.

    Args:
        failed: failed rows of one place.
        total: number of rows of the place; None or 0 if unknown.
        fix: the last sentence, with the user's next step; by default, fix or drop the rows.
    """
    first = failed[0]
    same = [f for f in failed if f.check == first.check]
    others = [f for f in failed if f.check != first.check]
    number = f"{first.number} of {total}" if total else f"{first.number}"
    lines = [
        f"{first.place} row {number}: {first.message}.",
        f"  row: {as_json(first.content)}",
        f"  {_count(len(same))} this check ({row_numbers(same)}).",
    ]
    if others:
        lines.append(f"  {_count(len(others))} other checks: {tally(others)}.")
    them = "it" if len(failed) == 1 else "them"
    lines[-1] += " " + (fix or f"Fix {them}, or set `drop_bad_rows: true`.")
    return "\n".join(lines)


def tally(failed: Iterable[FailedRow]) -> str:
    """The number of rows that fail each check, with their row numbers."""
    checks: dict[str, list[FailedRow]] = {}
    for row in failed:
        checks.setdefault(row.check, []).append(row)
    return ", ".join(f"{len(rows)} {check} ({row_numbers(rows)})" for check, rows in checks.items())


def row_numbers(failed: Sequence[FailedRow], *, most: int = 10) -> str:
    """The numbers of the first `most` rows, and how many more there are."""
    numbers = ", ".join(str(f.number) for f in failed[:most])
    return numbers if len(failed) <= most else f"{numbers} and {len(failed) - most} more"


def _count(rows: int) -> str:
    return f"{rows} row fails" if rows == 1 else f"{rows} rows fail"


def write_dropped(
    dropped: Sequence[FailedRow], folder: Path | None, *, append: bool = False, report: bool = True
) -> None:
    """Write dropped rows to `dropped_rows.jsonl` in a run's folder.

    Args:
        dropped: rows that are not trained on.
        folder: the run's directory; None writes nothing.
        append: add to the file. Without it the file is replaced, or removed if no row was dropped.
        report: print the file's name; False for a stream, which drops one row at a time.
    """
    if folder is None or (append and not dropped):
        return
    file = folder / DROPPED_FILE
    if not dropped:
        file.unlink(missing_ok=True)
        return
    folder.mkdir(parents=True, exist_ok=True)
    with file.open("a" if append else "w", encoding="utf-8") as out:
        out.writelines(_line(row) + "\n" for row in dropped)
    if report:
        print(f"the {len(dropped)} dropped rows are in {file}")


def _line(failed: FailedRow) -> str:
    entry = {
        "place": failed.place,
        "number": failed.number,
        "check": failed.check,
        "reason": failed.message,
        "row": failed.content,
    }
    line = json.dumps(entry, ensure_ascii=False, default=str)
    try:
        line.encode()
    except UnicodeEncodeError:  # a lone surrogate, perhaps the reason why the row was dropped
        line = json.dumps(entry, default=str)
    return line
