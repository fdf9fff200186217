"""Rows as the tables that trainers take, which still know where each row comes from."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from toolkit.data.formats import Kind
from toolkit.data.messages import Row
from toolkit.data.sources import one_line
from toolkit.errors import DatasetError

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Origin:
    """Where a row was read: the file or dataset, and its number there, from 1."""

    place: str
    number: int


class Splits(dict[str, "Dataset"]):
    """Tables by split ("train", perhaps "test"); `origins` has as many entries as rows."""

    def __init__(
        self,
        tables: Mapping[str, "Dataset"],
        *,
        kind: Kind,
        origins: Mapping[str, Sequence[Origin]],
    ) -> None:
        super().__init__(tables)
        self.kind = kind
        self.origins = origins


def make_table(rows: Sequence[Row], *, place: str) -> "Dataset":
    """Rows as a table with every column that any row has.

    Raises: DatasetError for a column whose values no table can hold together.
    """
    from datasets import Dataset

    names = dict.fromkeys(itertools.chain.from_iterable(rows))
    columns = {name: [row.get(name) for row in rows] for name in names}
    unfit = (ValueError, TypeError, OverflowError, NotImplementedError)  # Arrow's are among them
    try:
        return Dataset.from_dict(columns)
    except unfit as error:
        for name, values in columns.items():
            try:
                Dataset.from_dict({name: values})
            except unfit as reason:
                types = ", ".join(sorted({type(v).__name__ for v in values}))
                raise DatasetError(
                    f'{place}: column "{name}" cannot be made a table\'s ({one_line(reason)}); '
                    f"its values are {types}. Give it one type, or remove it."
                ) from error
        raise
