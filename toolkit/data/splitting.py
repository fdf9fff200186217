"""A held-out test split by prompt, so that no prompt is learned and tested."""

import hashlib
import json
from collections.abc import Sequence

from toolkit.data.messages import Row
from toolkit.errors import DatasetError


def prompt_key(row: Row) -> str:
    """What two rows with the same prompt share."""
    return json.dumps(row["prompt"], sort_keys=True)


def hold_out(
    rows: Sequence[Row], size: float, *, seed: int, place: str
) -> tuple[list[Row], list[Row]]:
    """Rows for training and rows for testing, each in their order, with no prompt in both.

    Prompts are drawn by a hash of seed and prompt, so that the order of the rows does not matter
    and a dataset that grows keeps most of its test prompts.

    Args:
        rows: rows with a "prompt".
        size: a share of the rows if below 1, else a number of rows. As all rows of a prompt go to
            one side, the test split may be somewhat smaller; it is never empty.
        seed: another seed draws other prompts.
        place: the dataset, for errors.

    Raises: DatasetError if the size leaves no row for training or there is a single prompt.
    """
    wanted = round(size * len(rows)) if size < 1 else int(size)
    if size <= 0 or wanted >= len(rows):
        raise DatasetError(
            f"{place}: `test_split_size` must be a share between 0 and 1 or less than the "
            f"{len(rows)} rows, got {size:g}"
        )
    sizes: dict[str, int] = {}
    for row in rows:
        sizes[prompt_key(row)] = sizes.get(prompt_key(row), 0) + 1
    if len(sizes) < 2:
        raise DatasetError(f"{place}: all rows have one prompt; a test split needs another")
    drawn = sorted(sizes, key=lambda key: hashlib.sha256(f"{seed} {key}".encode()).digest())
    test: set[str] = set()
    taken = 0
    for key in drawn:
        if taken + sizes[key] <= max(wanted, 1):
            test.add(key)
            taken += sizes[key]
    test = test or {min(drawn, key=lambda key: sizes[key])}
    return (
        [row for row in rows if prompt_key(row) not in test],
        [row for row in rows if prompt_key(row) in test],
    )
