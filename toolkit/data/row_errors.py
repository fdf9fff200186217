"""Rows that fail a check: how an error tells of them, and the file that keeps the dropped ones."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.data.messages import Unreadable, as_json
from toolkit.runs.replacing import DROPPED_FILE


@dataclass(frozen=True)
class Failure:
    """A row that fails a check: where it is (1-based in its file or split), and what it holds."""

    place: str
    number: int
    check: str
    message: str
    row: Any


def describe(bad: Sequence[Failure], *, total: int | None = None) -> str:
    """The first failure with its row, how many rows fail each check, and the fix.

    Args:
        bad: failures of one place.
        total: how many rows the place has, None or 0 where that is not known.
    """
    first = bad[0]
    row = first.row.text if isinstance(first.row, Unreadable) else first.row
    same = [f for f in bad if f.check == first.check]
    others = [f for f in bad if f.check != first.check]
    number = f"{first.number} of {total}" if total else f"{first.number}"
    lines = [
        f"{first.place} row {number}: {first.message}.",
        f"  row: {as_json(row)}",
        f"  {_rows(len(same))} this check ({numbers(same)}).",
    ]
    if others:
        lines.append(f"  {_rows(len(others))} others: {tally(others)}.")
    lines[-1] += f" Fix {'it' if len(bad) == 1 else 'them'}, or set `drop_bad_rows: true`."
    return "\n".join(lines)


def tally(bad: Iterable[Failure]) -> str:
    """How many rows fail each check, and which."""
    checks: dict[str, list[Failure]] = {}
    for failure in bad:
        checks.setdefault(failure.check, []).append(failure)
    return ", ".join(f"{len(found)} {check} ({numbers(found)})" for check, found in checks.items())


def numbers(found: Sequence[Failure], *, most: int = 10) -> str:
    """Where the rows are, the first ones."""
    listed = ", ".join(str(f.number) for f in found[:most])
    return listed if len(found) <= most else f"{listed} and {len(found) - most} more"


def _rows(count: int) -> str:
    return f"{count} row fails" if count == 1 else f"{count} rows fail"


def keep_dropped(
    dropped: Sequence[Failure], folder: Path | None, *, more: bool = False, say: bool = True
) -> None:
    """Write dropped rows to `dropped_rows.jsonl` in a run's folder, and say so.

    Args:
        dropped: rows that are not trained on.
        folder: the run's directory; without one nothing is written.
        more: add to what the run's first checks dropped. Else the file is begun anew, or, where
            nothing was dropped, that of an earlier run in the folder is removed.
        say: print a line; a stream drops one row at a time.
    """
    if folder is None or (more and not dropped):
        return
    file = folder / DROPPED_FILE
    if not dropped:
        file.unlink(missing_ok=True)
        return
    folder.mkdir(parents=True, exist_ok=True)
    with file.open("a" if more else "w", encoding="utf-8") as out:
        out.writelines(_line(failure) + "\n" for failure in dropped)
    if say:
        print(f"the {len(dropped)} dropped rows are in {file}")


def _line(failure: Failure) -> str:
    row = failure.row.text if isinstance(failure.row, Unreadable) else failure.row
    entry = {
        "place": failure.place,
        "number": failure.number,
        "check": failure.check,
        "reason": failure.message,
        "row": row,
    }
    line = json.dumps(entry, ensure_ascii=False, default=str)
    try:
        line.encode()
    except UnicodeEncodeError:  # half a surrogate pair, perhaps the very reason
        line = json.dumps(entry, default=str)
    return line
