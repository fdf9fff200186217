"""How long the rows are that a trainer will really read, in tokens, and which of them needs the most."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

BARS, WIDTH = 8, 32
ORDER = (("least", 0), ("median", 50), ("95 %", 95), ("99 %", 99), ("most", 100))
READ = {
    "sft": ["input_ids"],
    "reward": ["ids"],
    "dpo": ["prompt_ids", "chosen_ids", "rejected_ids"],
    "kto": ["prompt_ids", "completion_ids"],
    "ppo": ["prompt_ids"],
}


def row_tokens(recipe: str, rows: Dataset, limit: int | None = None) -> list[int]:
    """Tokens of each row: of a pair the longer answer's, of a ranking the longest answer's.

    Args:
        recipe: sft, reward, dpo, kto or ppo.
        rows: of its trainer, tokenized.
        limit: to which the collator of DPO or KTO cuts.
    """
    table = rows.select_columns(READ[recipe]).with_format("arrow")[:]
    if recipe == "reward":
        return [int(max(lengths)) for lengths in _answers(table)]
    if recipe in ("sft", "ppo"):
        found = _sizes(table, *READ[recipe])
    else:
        first, *others = (_sizes(table, name) for name in READ[recipe][1:])
        found = _sizes(table, "prompt_ids") + np.maximum.reduce([first, *others])
        found = found if limit is None else np.minimum(found, limit)
    return [int(n) for n in found]


def neediest_row(recipe: str, rows: Dataset, lengths: Sequence[int]) -> dict[str, Any]:
    """The row of which a batch needs the most memory.

    Of rankings that is one with as many answers as the largest, each as long as the longest.
    """
    longest = int(np.argmax(lengths))
    row: dict[str, Any] = dict(rows[longest])
    if recipe == "reward":
        most = max(
            len(lengths)
            for lengths in _answers(rows.select_columns(["ids"]).with_format("arrow")[:])
        )
        ids = max(row["ids"], key=len)
        row = {"ids": [ids] * most, "better": [0], "worse": [most - 1], "margins": [0.0]}
    return row


def _sizes(table: pa.Table, name: str) -> Any:
    return pc.list_value_length(table.column(name)).to_numpy()


def _answers(table: pa.Table) -> list[Any]:
    """The lengths of each ranking's answers."""
    column = table.column("ids")
    each = pc.list_value_length(pc.list_flatten(column)).to_numpy()
    return list(np.split(each, np.cumsum(pc.list_value_length(column).to_numpy())[:-1]))


def percentiles(lengths: Sequence[int]) -> dict[str, int]:
    """Nearest-rank percentiles: the least length that so many per cent of the rows do not exceed."""
    ordered = sorted(lengths)
    return {name: ordered[max(0, -(-percent * len(ordered) // 100) - 1)] for name, percent in ORDER}


def histogram(lengths: Sequence[int]) -> list[str]:
    """Lines of a histogram: a range of tokens, a bar, and how many rows."""
    low, high = min(lengths), max(lengths)
    step = -(-(high - low + 1) // BARS)
    counts = [0] * (-(-(high - low + 1) // step))
    for length in lengths:
        counts[(length - low) // step] += 1
    digits = len(str(high))
    lines = []
    for number, count in enumerate(counts):
        start = low + number * step
        bar = "█" * round(WIDTH * count / max(counts)) or ("▏" if count else "")
        ends = f"{start:>{digits}}–{min(high, start + step - 1):<{digits}}"
        lines.append(f"{ends} {bar} {count}")
    return lines
