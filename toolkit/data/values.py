"""Flags and numbers of a row, also as text: `yes`, `0`, `4.5`, or `4,5` of a European spreadsheet."""

import math
import re
from collections.abc import Mapping
from typing import Any

from toolkit.data.row_errors import RowError

# Flags of an answer. The answer is bad if a flag of GOOD is false, or a flag of BAD is true.
GOOD = {"label", "kto_tag", "good", "is_good", "desirable", "is_desirable", "accepted", "preferred"}
GOOD |= {"safe", "is_safe", "correct", "is_correct", "thumbs_up"}
BAD = {"rejected", "is_rejected", "bad", "is_bad", "undesirable", "toxic", "is_toxic", "unsafe"}
BAD |= {"harmful", "is_harmful", "incorrect", "thumbs_down", "flagged"}
# Flags that must be clear. The others may also hold a topic, an answer or a number of votes.
CLEAR = {name for name in GOOD | BAD if name.startswith("is_")}
CLEAR |= {"safe", "unsafe", "toxic", "harmful", "flagged", "desirable", "undesirable"}
WORDS = {"true": True, "yes": True, "y": True, "false": False, "no": False, "n": False}
FLAGS = WORDS | {"1": True, "1.0": True, "0": False, "0.0": False}
KNOWN_FLAGS = "true, yes, y, 1, false, no, n or 0"
DECIMAL_COMMA = re.compile(r"([+-]?\d+),(\d+)")


def as_flag(value: Any, known: Mapping[str, bool] = FLAGS) -> bool | None:
    """A bool from a boolean, from 1 or 0, or from a text in `known`; None for anything else."""
    if not isinstance(value, bool | int | float | str):
        return None
    return known.get(str(value).strip().lower())


def as_word(value: Any) -> bool | None:
    """Like `as_flag`, but None for 1 and 0, which may be a topic, a probability or a count."""
    return as_flag(value, WORDS)


def is_unclear(name: str, value: Any) -> bool:
    """Whether a column or key must be a flag, but its value is neither a clear yes nor a clear no.

    Without `is_`, a number may be a probability.
    """
    if name not in CLEAR or as_flag(value) is not None:
        return False
    return name.startswith("is_") or finite_number(value) is None


def says_bad(name: str, value: Any) -> bool:
    """Whether a column or key is a flag that marks an answer as bad."""
    flag = as_flag(value) if name.startswith("is_") else as_word(value)
    return (name in GOOD and flag is False) or (name in BAD and flag is True)


def finite_number(value: Any) -> float | None:
    """The value as a finite number, also from text ("4", "4,5"); None for anything else, such as "N/A".

    A comma before three digits may separate thousands, so "1,500" gives None; see `read_number`.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    match = _decimal_comma(value)
    try:
        number = float(f"{match[1]}.{match[2]}" if match and len(match[2]) != 3 else value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def read_number(value: Any, name: str) -> float | None:
    """Like `finite_number`. Raises: RowError for text such as "1,500", which may be 1500 or 1.5."""
    match = _decimal_comma(value)
    if match and len(match[2]) == 3:
        expected = (
            f'"{name}" must be a clear number: write {match[1]}.{match[2]} or {match[1]}{match[2]}'
        )
        raise RowError("ambiguous number", expected, value)
    return finite_number(value)


def _decimal_comma(value: Any) -> re.Match[str] | None:
    return DECIMAL_COMMA.fullmatch(value.strip()) if isinstance(value, str) else None
