"""A trainer's tokenized rows: layout, lengths, samples, and the row that needs the most memory."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from toolkit.data.streaming import first_rows
from toolkit.errors import ConfigError
from toolkit.recipe import Options
from toolkit.trainers.row_checks import check_rows

Layout = Literal["ranking", "sequence", "pair", "answer", "prompt"]
# the first of these columns that a dataset has identifies its layout
LAYOUTS: dict[str, Layout] = {
    "ids": "ranking",
    "input_ids": "sequence",
    "chosen_ids": "pair",
    "completion_ids": "answer",
    "prompt_ids": "prompt",
}
ANSWERS = ("chosen_ids", "rejected_ids", "completion_ids")
PERCENTILES = (("least", 0), ("median", 50), ("95 %", 95), ("99 %", 99), ("most", 100))
BARS, WIDTH = 8, 32
OPEN, CLOSE = "⟦", "⟧"
SAMPLE_LENGTH = 1200  # characters of a sample that are shown
IGNORED = -100  # the label of a token without a loss


def layout_of(columns: Sequence[str]) -> Layout:
    """The layout of a trainer's rows: which columns hold the tokens.

    Raises: ConfigError for columns of no known layout.
    """
    for column, layout in LAYOUTS.items():
        if column in columns:
            return layout
    raise ConfigError(
        f"the trainer's rows have the columns {', '.join(columns)}; expected one of "
        f"{', '.join(LAYOUTS)}"
    )


def row_tokens(rows: Dataset, limit: int | None = None) -> list[int]:
    """Tokens of each row: with the longer answer of a pair, and the longest answer of a ranking.

    The collator truncates a prompt with its answer to `limit`.
    """
    layout = layout_of(rows.column_names)
    if layout == "ranking":
        return [int(max(lengths)) for lengths in _answer_lengths(rows)]
    columns = ["input_ids"]
    if layout != "sequence":
        columns = [name for name in ("prompt_ids", *ANSWERS) if name in rows.column_names]
    table = rows.select_columns(columns).with_format("arrow")[:]
    sizes = {name: pc.list_value_length(table.column(name)).to_numpy() for name in columns}
    answers = [sizes.pop(name) for name in ANSWERS if name in sizes]
    lengths = sum(sizes.values(), np.zeros(len(rows), dtype=int))
    if answers:
        lengths = lengths + np.maximum.reduce(answers)
        lengths = lengths if limit is None else np.minimum(lengths, limit)
    return [int(n) for n in lengths]


def check_rows_of(trainer: Any, options: Options) -> None:
    """Check that the trainer's rows do not change each other's numbers; PPO's trainer checks its own.

    Raises: ConfigError for a model whose output for a row depends on the other rows.
    """
    args, tables = trainer.args, [trainer.train_dataset]
    if isinstance(trainer.eval_dataset, Dataset):
        tables.append(trainer.eval_dataset)
    lengths: list[int] = []
    for rows in map(first_rows, tables):
        if not {"ids", "input_ids", *ANSWERS} & set(rows.column_names):
            return
        if "seq_lengths" in rows.column_names:  # packed
            lengths += [n for packed in rows["seq_lengths"] for n in packed]
        else:
            lengths += row_tokens(rows, options.max_length)
    if not isinstance(trainer.train_dataset, Dataset) and args.max_length is not None:
        lengths.append(args.max_length)  # a stream's other rows may be longer than its first ones
    sizes = (args.per_device_train_batch_size, args.per_device_eval_batch_size)[: len(tables)]
    has_one_row = layout_of(rows.column_names) == "sequence" and max(sizes) == 1
    is_packed = getattr(trainer, "padding_free", False)
    check_rows(trainer, lengths, one_per_batch=has_one_row and not is_packed)


def _answer_lengths(rankings: Dataset) -> list[Any]:
    """The lengths of each ranking's answers."""
    column: pa.ChunkedArray = rankings.select_columns(["ids"]).with_format("arrow")[:].column("ids")
    lengths = pc.list_value_length(pc.list_flatten(column)).to_numpy()
    return list(np.split(lengths, np.cumsum(pc.list_value_length(column).to_numpy())[:-1]))


def longest_row(rows: Dataset, lengths: Sequence[int]) -> dict[str, Any]:
    """The row whose batch needs the most memory.

    For rankings, a row with as many answers as the largest ranking, each as long as the longest answer.
    """
    row: dict[str, Any] = dict(rows[int(np.argmax(lengths))])
    if layout_of(list(row)) == "ranking":
        answers = max(map(len, _answer_lengths(rows)))
        return _ranking(max(row["ids"], key=len), answers)
    return row


def full_row(row: dict[str, Any], token: int, length: int, *, answers: int) -> dict[str, Any]:
    """A row of the same layout with `length` tokens; a ranking has `answers` answers of that length."""
    ids, half, layout = [token] * length, length // 2, layout_of(list(row))
    if layout == "ranking":
        return _ranking(ids, answers)
    if layout == "prompt":
        return row | {"prompt_ids": ids}
    if layout == "sequence":
        masks = {name: [1] * length for name in row if name.endswith(("_mask", "_masks"))}
        return {"input_ids": ids} | masks
    parts = {name: ids[half:] for name in row if name.endswith("_ids")}
    return row | parts | ({"prompt_ids": ids[:half]} if "prompt_ids" in row else {})


def _ranking(ids: list[int], answers: int) -> dict[str, Any]:
    return {"ids": [ids] * answers, "better": [0], "worse": [answers - 1], "margins": [0.0]}


def first_ids(row: dict[str, Any]) -> list[int]:
    """The tokens at the start of a row: its prompt, or all of it."""
    if "ids" in row:
        answers: list[list[int]] = row["ids"]
        return max(answers, key=len)
    return list(next(row[n] for n in ("input_ids", "prompt_ids", *ANSWERS) if n in row))


def percentiles(lengths: Sequence[int]) -> dict[str, int]:
    """Nearest-rank percentiles of row lengths, by name."""
    ordered = sorted(lengths)
    return {
        name: ordered[max(0, -(-percent * len(ordered) // 100) - 1)]
        for name, percent in PERCENTILES
    }


def histogram(lengths: Sequence[int]) -> list[str]:
    """A histogram as lines: a range of lengths, a bar, and the number of rows."""
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


def decoded_sample(
    row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, collator: Any
) -> list[tuple[str, str]]:
    """Names and texts of a row's parts; tokens with a loss stand between ⟦ and ⟧.

    The trainer's collator decides which tokens have a loss.
    """
    layout = layout_of(list(row))
    if layout == "prompt":
        ids = row["prompt_ids"]
        return [("prompt of the policy", _marked(ids, [False] * len(ids), tokenizer))]
    if layout == "ranking":
        texts = []
        for rank, ids in enumerate(row["ids"]):
            is_scored = [False] * (len(ids) - 1) + [True]  # the score is read at the last token
            name = f"answer {rank + 1} of {len(row['ids'])}"
            texts.append((name, _marked(ids, is_scored, tokenizer)))
        return texts
    batch = collator([row])
    if layout == "sequence":
        has_loss = batch["labels"][0] != IGNORED
        return [("row", _marked(batch["input_ids"][0].tolist(), has_loss.tolist(), tokenizer))]
    names = ["chosen", "rejected"]
    if layout == "answer":
        names = ["a good answer" if row["label"] else "a bad answer"]
    texts = []
    for number, name in enumerate(names):
        is_real = batch["attention_mask"][number] == 1
        ids = batch["input_ids"][number][is_real].tolist()
        has_loss = (batch["completion_mask"][number] == 1)[is_real]
        texts.append((name, _marked(ids, has_loss.tolist(), tokenizer)))
    return texts


def _marked(ids: Sequence[int], mask: Sequence[bool], tokenizer: PreTrainedTokenizerBase) -> str:
    """Decode spans with and without a loss separately, so that marks are between whole tokens."""
    parts: list[str] = []
    start = 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or mask[end] != mask[start]:
            text = str(tokenizer.decode(list(ids[start:end])))
            parts.append(f"{OPEN}{text}{CLOSE}" if mask[start] else text)
            start = end
    text = "".join(parts)
    half = SAMPLE_LENGTH // 2
    return text if len(text) <= SAMPLE_LENGTH else f"{text[:half]} … {text[-half:]}"
