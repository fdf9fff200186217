"""Rows of typed tables (Parquet, `datasets`): names of class labels, and JSON's types for numbers."""

import json
from collections.abc import Iterable, Iterator, Mapping
from numbers import Number
from typing import Any

Names = Mapping[str, list[str]]


def label_names(features: Any) -> Names:
    """The names of each column of class labels.

    The numbers alone are ambiguous: with the names `chosen` and `rejected`, 0 is good.

    Args:
        features: the columns' types, as `Features.to_dict()` of `datasets` writes them.
    """
    found = {}
    for column, feature in features.items() if isinstance(features, dict) else ():
        names = feature.get("names") if isinstance(feature, dict) else None
        if isinstance(names, list) and names:
            found[column] = names
    return found


def label_names_of_parquet(metadata: Mapping[bytes, bytes] | None) -> Names:
    """`label_names` of a Parquet file that `datasets` wrote; nothing for other files."""
    try:
        return label_names(json.loads((metadata or {})[b"huggingface"])["info"]["features"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}


def table_rows(rows: Iterable[Any], names: Names) -> Iterator[Any]:
    """The rows with JSON's types, and with names in place of the numbers of class labels."""
    for row in map(_plain, rows):
        new = {
            column: values[row[column]]
            for column, values in names.items()
            if isinstance(row.get(column), int) and 0 <= row[column] < len(values)
        }
        yield row | new if new else row


def _plain(value: Any) -> Any:
    """A value with an int or a float in place of each Decimal or NumPy number, also inside lists."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, int | float) or not isinstance(value, Number):
        return value
    number = float(value)  # type: ignore[arg-type]
    return int(value) if number.is_integer() else number  # type: ignore[call-overload]
