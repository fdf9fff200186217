"""A held-out test split by prompt, so that no prompt is learned and tested."""

import hashlib
import json
from collections.abc import Sequence

from toolkit.data.messages import Row
from toolkit.errors import DatasetError


def prompt_key(row: Row) -> str:
    """What two rows with the same prompt share; of a text without one, the text."""
    return json.dumps(row["prompt"] if "prompt" in row else row["text"], sort_keys=True)


def hold_out(
    rows: Sequence[Row], size: float, *, seed: int, place: str
) -> tuple[list[int], list[int]]:
    """Which rows are for training and which for testing, with no prompt and no group in both.

    Prompts are drawn by a hash of seed and prompt, so that the order of the rows does not matter
    and a dataset that grows keeps most of its test prompts.

    Args:
        rows: rows with a "prompt" and perhaps a "group_id".
        size: a share of the rows if below 1, else a number of rows. As all rows of a prompt go to
            one side, the test split may be somewhat smaller; it is never empty.
        seed: another seed draws other prompts.
        place: the dataset, for errors.

    Returns: indices into `rows`, in order.
    Raises: DatasetError if the size leaves no row for training or there is a single prompt.
    """
    usable = 0 < size < 1 or (1 <= size < len(rows) and size == int(size))
    wanted = round(size * len(rows)) if size < 1 else size
    if not usable or wanted >= len(rows):
        raise DatasetError(
            f"{place}: `test_split_size` must be a share between 0 and 1 or a whole number less than "
            f"the {len(rows)} rows, got {size:g}"
        )
    families = _families(rows)
    sizes: dict[str, int] = {}
    for family in families:
        sizes[family] = sizes.get(family, 0) + 1
    if len(sizes) < 2:
        raise DatasetError(
            f"{place}: all rows have one prompt or group; a test split needs another"
        )
    drawn = sorted(sizes, key=lambda key: hashlib.sha256(f"{seed} {key}".encode()).digest())
    test: set[str] = set()
    taken = 0
    for key in drawn:
        if taken + sizes[key] <= max(wanted, 1):
            test.add(key)
            taken += sizes[key]
    test = test or {min(drawn, key=lambda key: sizes[key])}
    sides: tuple[list[int], list[int]] = ([], [])
    for number, family in enumerate(families):
        sides[family in test].append(number)
    return sides


def _families(rows: Sequence[Row]) -> list[str]:
    """A name for each row, the same for rows that a chain of equal prompts or groups connects.

    It is the least of the family's prompts, whatever the order of the rows.
    """
    above: dict[str, str] = {}

    def head(key: str) -> str:
        while above.setdefault(key, key) != key:
            above[key] = above[above[key]]
            key = above[key]
        return key

    keys = [prompt_key(row) for row in rows]
    for key, row in zip(keys, rows, strict=True):
        if row.get("group_id") is not None:
            # after every prompt, which begin with a quotation mark or a bracket
            least, other = sorted((head(key), head(f"group {json.dumps(row['group_id'])}")))
            above[other] = least
        else:
            head(key)
    return [head(key) for key in keys]
