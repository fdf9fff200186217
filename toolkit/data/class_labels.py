"""The names of the numbers in a column of labels, as `ClassLabel` of `datasets` stores them."""

import json
from collections.abc import Iterable, Iterator, Mapping
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


def with_names(rows: Iterable[Any], names: Names) -> Iterator[Any]:
    """The rows with names in place of numbers."""
    for row in rows:
        new = {
            column: values[row[column]]
            for column, values in names.items()
            if isinstance(row.get(column), int) and 0 <= row[column] < len(values)
        }
        yield row | new if new else row
