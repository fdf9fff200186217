"""Rows that say the same as an earlier one, or the opposite."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from toolkit.data.formats import COLUMNS, Kind
from toolkit.data.messages import Row
from toolkit.data.row_errors import Failure
from toolkit.data.rows import Made


def find_repeats(made: Sequence[Made], kind: Kind) -> list[Failure]:
    """Rows whose prompt and answers are those of an earlier row, whatever their other columns."""
    first: dict[bytes, Made] = {}
    found = []
    for row in made:
        seen = first.setdefault(_digest([_learned(one, kind) for one in row.rows]), row)
        if seen is not row:
            where = f"row {seen.number}"
            where += f" of {seen.place}" if seen.place != row.place else ""
            found.append(
                Failure(row.place, row.number, "repeated row", f"it repeats {where}", row.row)
            )
    return found


def count_contradictions(rows: Sequence[Row], kind: Kind) -> int:
    """How many comparisons stand in the data both ways round, or answers both good and bad."""
    if kind not in ("preference", "unpaired"):
        return 0
    said = {_digest(_learned(row, kind)) for row in rows}
    opposed = {_digest(_learned(_opposite(row, kind), kind)) for row in rows}
    return len(said & opposed) // 2


def _opposite(row: Row, kind: Kind) -> Row:
    if kind == "unpaired":
        return row | {"label": not row["label"]}
    return row | {"chosen": row["rejected"], "rejected": row["chosen"]}


def _learned(row: Row, kind: Kind) -> list[Any]:
    return [row[column] for column in COLUMNS[kind]]


def _digest(value: Any) -> bytes:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()[:16]
