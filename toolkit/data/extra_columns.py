"""Columns beside a row's texts that trainers and reports read: which rows belong together, numbers."""

import math
from typing import Any

from toolkit.data.messages import BadRow, Row, shown

NUMBERS = ("margin", "chosen_gold", "rejected_gold")


def group_column(row: Row) -> Row:
    """`group_id`, where a row has one, as text or a whole number; blank is none, as in CSV.

    Raises: BadRow for anything else, by which rows could not be found together again.
    """
    if "group_id" not in row:
        return {}
    value = row["group_id"]
    if value is None or (isinstance(value, str) and not value.strip()):
        return {"group_id": None}
    whole = isinstance(value, float) and value.is_integer()  # as tables write them beside a gap
    if isinstance(value, bool) or not (isinstance(value, int | str) or whole):
        wanted = '"group_id" must be text or a whole number'
        raise BadRow("not a group", f"{wanted}, got {shown(value)}")
    return {"group_id": int(value) if whole else value}


def number_columns(row: Row) -> Row:
    """`margin` and the gold utilities, where a row has them, as finite numbers; blank is none.

    Raises: BadRow for anything else: a NaN would make the loss one.
    """
    return {name: _number(row[name], name) for name in NUMBERS if name in row}


def _number(value: Any, name: str) -> float | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
        if math.isfinite(number):
            return number
    raise BadRow("not a number", f'"{name}" must be a finite number, got {shown(value)}')
