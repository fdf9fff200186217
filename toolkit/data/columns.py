"""Columns that a row's format does not read: passed on, or an error if they change the row's meaning.

A column must not be ignored if it marks an answer as bad, gives a row a weight, or holds a part of
the prompt. Other columns are metadata and may hold any value.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from toolkit.data.formats import FORMATS, as_label
from toolkit.data.layout import LABEL_COLUMNS, SYSTEM_COLUMNS
from toolkit.data.messages import UNREADABLE_KEYS, Row, is_absent, is_blank
from toolkit.data.row_errors import RowError, describe
from toolkit.data.values import (
    KNOWN_FLAGS,
    as_flag,
    as_word,
    is_unclear,
    read_number,
    says_bad,
)

# TRL detects a dataset's type from these columns, so a kind's rows must not have others of them.
TRL_COLUMNS = {"prompt", "completion", "chosen", "rejected", "messages", "label", "text"}
TRL_COLUMNS |= {"input_ids", "prompt_ids", "completion_ids", "chosen_ids", "rejected_ids"}
# TRL would render these, load them as images, or use them as the reference's log-probabilities.
TRL_COLUMNS |= {"tools", "chat_template_kwargs", "image", "images"}
TRL_COLUMNS |= {"ref_chosen_logps", "ref_rejected_logps", "reference_logps"}
NUMBER_COLUMNS = ("margin", "chosen_gold", "rejected_gold")

BESIDE_TEXT = {*UNREADABLE_KEYS, "chat_template_kwargs"}
WEIGHTS = {"weight", "sample_weight", "loss_weight", "loss_mask", "train", "mask"}
CONTEXT = {"context", "history", "passage", "document", "documents"}
EXCLUDED = {"deleted", "is_deleted", "exclude", "excluded", "skip", "ignore"}
WINNERS = {"winner", "preference", "preferred", "better"}
NO_WINNER = ("tie", "both", "neither", "rejected")
SCORE = ("score", "rating", "reward", "rank")


def check_columns(row: Row, parts: Row, *, format: str, kind: str) -> None:
    """Raise RowError for a column that changes the row's meaning but is not a part of the format.

    Args:
        row: the row, with the columns of `format`.
        parts: the parts that the format's reader returned.
        format: a name in `FORMATS`.
        kind: the rows to train on; "prompt-only" also accepts the prompts of bad answers.
    """
    content = FORMATS[format].content
    read, context = _columns_read(format), _context(format)
    for name, value in row.items():
        if name in read or is_blank(value):
            continue
        if name in BESIDE_TEXT and not is_absent(value):
            raise _unread(name, value, "training supports only text")
        if name in WEIGHTS and _is_weight(name, value):
            raise _unread(name, value, "rows cannot have weights; repeat or remove the row")
        learns_all = content == "completion" and kind != "prompt-only"
        if (name in EXCLUDED and as_flag(value) is None) or (
            learns_all and is_unclear(name, value)
        ):
            raise _unread(name, value, f"it must be {KNOWN_FLAGS}")
        if name in EXCLUDED and as_flag(value) is True:
            raise _unread(name, value, "this value marks the row as deleted; remove the row")
        if learns_all and _is_bad(name, value):
            fix = f"if it labels the answer, set `columns: {{{name}: label}}`"
            if name in LABEL_COLUMNS:
                fix = "if it labels the answer, write true or false"
            raise _unread(name, value, f"a bad answer would be learned as a good one; {fix}")
        if content == "comparison" and _contradicts(name, value):
            raise _unread(name, value, '"chosen" would be learned as the better one')
        if name in context:
            _check_context(name, value, parts.get("messages") or parts["prompt"])
    if "chosen" in read:
        _check_scores(row)


def _unread(name: str, value: Any, problem: str) -> RowError:
    ignore = f"To ignore it, rename it: `columns: {{{name}: {name}_unused}}`"
    return RowError(f'unread "{name}"', f'"{name}" is {describe(value)}: {problem}. {ignore}')


def _is_weight(name: str, value: Any) -> bool:
    """Whether a value is a weight other than 1, or a list of weights per token. Text is metadata."""
    if isinstance(value, str):
        value = read_number(value, name) if as_flag(value) is None else as_flag(value)
    neutral = value is False if name == "mask" else value == 1
    return isinstance(value, bool | int | float | list) and not neutral


def _is_bad(name: str, value: Any) -> bool:
    """Whether a column marks the row's answer as bad."""
    if name in LABEL_COLUMNS and as_word(value) is None:
        # 1 and 0 may be a topic, but not 1 and -1
        is_bad = as_label(value) is False or str(value).lower() in ("negative", "-1", "-1.0")
        return as_flag(value) is None and is_bad
    return says_bad(name, value)


def _contradicts(name: str, value: Any) -> bool:
    """Whether a column contradicts that the chosen answer is better."""
    if name == "margin":
        return (read_number(value, name) or 0) < 0
    if name in WINNERS and str(value).lower().startswith(NO_WINNER):
        return True
    return name in WINNERS.union(LABEL_COLUMNS) and as_word(value) is False


@lru_cache(maxsize=256)
def _columns_read(format: str) -> set[str]:
    return {*FORMATS[format].columns, *FORMATS[format].optional}


@lru_cache(maxsize=256)
def _context(format: str) -> set[str]:
    """Columns that a format does not read, although they may hold a part of the prompt."""
    if FORMATS[format].content in ("prompt", "text"):
        return set()
    read = _columns_read(format)
    if read & {"messages", "conversations"}:
        return {*CONTEXT, "prompt"}
    return {*CONTEXT, "input"} if read & {"prompt", "instruction"} else set()


def _check_context(name: str, value: Any, prompt: Any) -> None:
    """Raise RowError if a column's text belongs to the prompt, but is missing there."""
    texts = [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]
    parts = [value] if isinstance(value, str) else value
    if not isinstance(parts, list):
        return
    if not all(isinstance(p, str) and any(p.strip() in text for text in texts) for p in parts):
        raise _unread(name, value, "the prompt does not contain it, so the model would not read it")


@lru_cache(maxsize=256)
def _score_columns(names: tuple[str, ...]) -> list[tuple[str, str]]:
    """The columns of scores, each with the column of the rejected answer's score; perhaps the same."""
    others = {name: name.replace("chosen", "rejected") for name in names}
    return [
        (name, other)
        for name, other in others.items()
        if other in others and any(word in name.lower() for word in SCORE)
    ]


def _scores(row: Row) -> Iterator[tuple[str, float, float]]:
    """The pairs of scores in a row as (column, chosen, rejected); the higher score is better."""
    for name, other in _score_columns(tuple(row)):
        value = row[name]
        pair: Any = (value, row[other] if other != name else None)
        if isinstance(value, dict):
            pair = value.get("chosen"), value.get("rejected")
        elif _is_equal_pair(value) and not any(side in name for side in ("chosen", "rejected")):
            pair = value
        chosen, rejected = (read_number(score, name) for score in pair)
        if chosen is not None and rejected is not None:
            is_rank = "rank" in name.lower()  # 1 is best
            yield (name, -chosen, -rejected) if is_rank else (name, chosen, rejected)


def _is_equal_pair(value: Any) -> bool:
    """Whether a list has two equal values. Distilabel's order is not that of chosen and rejected."""
    return isinstance(value, list) and len(value) == 2 and value[0] == value[1]


def _check_scores(row: Row) -> None:
    """Raise RowError if the scores of the two completions contradict "chosen" and "rejected"."""
    for name, chosen, rejected in _scores(row):
        if chosen < rejected:
            better = f'the score of "chosen" in "{name}" must not be worse than that of "rejected"'
            expected = f"{better}; swap the answers, or rename the column"
            raise RowError("contradictory scores", expected, chosen, rejected)


def is_tie(row: Row) -> bool:
    """Whether all scores of the chosen and the rejected answer are equal, or `status` is "tie"."""
    scores = list(_scores(row))
    equal = bool(scores) and all(chosen == rejected for _, chosen, rejected in scores)
    return equal or row.get("status") == "tie"


def extra_columns(row: Row, *, format: str, kind: str) -> Row:
    """The columns that the format does not use; checks `group_id` and preference numbers.

    Raises: RowError for a `group_id` that is neither text nor a whole number, or for a `margin` or
        gold utility that is not a finite number: a NaN would make the loss NaN.
    """
    left_out = _columns_read(format) | TRL_COLUMNS | {*SYSTEM_COLUMNS}
    columns = {name: row[name] for name in row if name not in left_out}
    if "group_id" in columns:
        columns["group_id"] = read_group(columns["group_id"])
    if kind == "preference":
        for name in NUMBER_COLUMNS:
            if name in columns:
                columns[name] = _number(columns[name], name)
    return columns


def read_group(value: Any) -> int | str | None:
    if is_blank(value):
        return None
    whole = isinstance(value, float) and value.is_integer()  # tables write whole numbers as floats
    if isinstance(value, bool) or not (isinstance(value, int | str) or whole):
        raise RowError("not a group", '"group_id" must be text or a whole number', value)
    return int(value) if whole else value


def _number(value: Any, name: str) -> float | None:
    if is_blank(value):
        return None
    number = read_number(value, name)
    if number is None:
        raise RowError("not a number", f'"{name}" must be a finite number', value)
    return number
