"""Lists and messages that a dataset stores as text, for example in CSV files."""

import ast
import json
import re
import warnings
from collections.abc import Sequence
from typing import Any

from toolkit.data.messages import Row, is_blank
from toolkit.data.row_errors import RowError

LIST_COLUMNS = ("messages", "conversations", "completions", "ranks", "scores", "history")
# The first four may also be messages; in the others, messages are malformed.
TEXT_COLUMNS = ("prompt", "completion", "chosen", "rejected", "output", "text")
LIST = re.compile(r"\[|\(|(np\.|numpy\.)?array\(")
MESSAGE = re.compile(
    r"""((np\.|numpy\.)?array\(|\[|\()*\s*\{.*?["'](role|from)["']\s*:""", re.DOTALL
)
# A value, and the blanks between it and the next value: NumPy writes lists without commas.
VALUE = re.compile(
    r"""('(?:\\.|[^'\\])*(?:'|\Z)|"(?:\\.|[^"\\])*(?:"|\Z)|[\]}]|[\w.+-]+)(\s+(?=['"\[{\w.+-]))?""",
    re.DOTALL,
)
MOST_CHARACTERS, MOST_DEPTH = 1_000_000, 50


def stored_columns(rows: Sequence[Row]) -> tuple[str, ...]:
    """The columns whose lists are stored as text."""
    return tuple(name for name in (*LIST_COLUMNS, *TEXT_COLUMNS) if _is_stored(rows, name))


def _is_stored(rows: Sequence[Row], name: str) -> bool:
    """Whether most values of a column are text that looks like a list, or like messages."""
    values = [value for row in rows if not is_blank(value := row.get(name))]
    pattern = LIST if name in LIST_COLUMNS else MESSAGE
    texts = (value.lstrip() if isinstance(value, str) else _first(value) for value in values)
    return 2 * sum(bool(pattern.match(text) or MESSAGE.match(text)) for text in texts) > len(values)


def _first(value: Any) -> str:
    """The first text in a list, because a message may also be stored as text."""
    first = value[0] if isinstance(value, list) and value else None
    return first if isinstance(first, str) and MESSAGE.match(first.lstrip()) else ""


def parse_list(value: Any, name: str) -> Any:
    """A list or message stored as text, written as JSON or in Python's notation.

    Blank text and other values stay as they are. Nothing is executed: only literals are read.

    Raises: RowError for other text, and for text that is too long or nested too deeply.
    """
    if isinstance(value, list):
        return [parse_list(item, name) if _first([item]) else item for item in value]
    if not isinstance(value, str) or is_blank(value):
        return value
    parsed = _literal(value)
    if not isinstance(parsed, list | dict):
        expected = f'"{name}" must be a list, as in most rows, or a list as JSON text'
        raise RowError("not a list", expected, value)
    return parse_list(parsed, name) if isinstance(parsed, list) else parsed


def _literal(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    depth = deepest = 0
    for character in text:
        depth += (character in "[({") - (character in "])}")
        deepest = max(deepest, depth)
    if len(text) > MOST_CHARACTERS or deepest > MOST_DEPTH:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an unknown escape such as "\\d"
            value = ast.literal_eval(VALUE.sub(_with_comma, text.strip()))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None
    return list(value) if isinstance(value, tuple) else value


def _with_comma(match: re.Match[str]) -> str:
    return f"{match[1]}, " if match[2] else match[1]
