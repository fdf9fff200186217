"""Rows of any format as rows of the kind that a recipe trains on, in TRL's columns.

    prompt-completion   {"prompt", "completion"}            SFT
    preference          {"prompt", "chosen", "rejected"}    reward model, DPO
    unpaired            {"prompt", "completion", "label"}   KTO
    prompt-only         {"prompt"}                          PPO
    text                {"text"}                            SFT on text without prompts
    answers             {"prompt", "completions"}           judge; also "ranks", if they are known

Preference, unpaired and prompt-only rows keep their other columns, such as "margin" or a reference
answer, for trainers and reward functions. The rows made from one ranking, or from one dialogue,
share a "group_id". Plain text stays plain text, unless the dataset has system messages; alpaca,
sharegpt, hh and ultrafeedback rows become messages. See docs/data.md and
https://huggingface.co/docs/trl/dataset_formats.
"""

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from toolkit.data.columns import check_columns, extra_columns, is_tie, read_group
from toolkit.data.formats import FORMATS, Content
from toolkit.data.layout import PLAIN, Layout
from toolkit.data.messages import Message, Row
from toolkit.data.ranking import (
    Pairs,
    best_completion,
    group_id,
    labels_of,
    pairs_of,
)
from toolkit.data.row_errors import FailedRow, RowError, Unreadable, error_message
from toolkit.errors import DatasetError

Kind = Literal["prompt-completion", "preference", "unpaired", "prompt-only", "text", "answers"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Turns = Literal["all", "last"]

COLUMNS: Mapping[Kind, tuple[str, ...]] = {
    "prompt-completion": ("prompt", "completion"),
    "preference": ("prompt", "chosen", "rejected"),
    "unpaired": ("prompt", "completion", "label"),
    "prompt-only": ("prompt",),
    "text": ("text",),
    "answers": ("prompt", "completions"),
}
# The contents of a format (`Format.content`) from which rows of a kind can be made.
SOURCES: Mapping[Kind, tuple[Content, ...]] = {
    "prompt-completion": ("completion", "label", "comparison"),
    "preference": ("comparison",),
    "unpaired": ("label", "comparison"),
    "prompt-only": ("prompt", "completion", "label", "comparison", "answers"),
    "text": ("text",),
    "answers": ("answers", "comparison"),
}
REQUIRES: Mapping[Kind, str] = {
    "prompt-completion": "completions",
    "preference": "better and worse completions of one prompt",
    "unpaired": "completions that are known to be good or bad",
    "prompt-only": "prompts",
    "text": "texts",
    "answers": "two or more completions of one prompt",
}

# By the content of a format: why a row without faults gives no row of the kind.
UNUSED: Mapping[Content, str] = {
    "comparison": "contain only ties",
    "label": "are labelled bad",
    "completion": "have only answers of weight 0",
}


@dataclass(frozen=True)
class ConvertedRow:
    """A row as it was read, its file or dataset, its number there, and the rows made from it."""

    place: str
    number: int
    original: Any
    rows: list[Row]


@dataclass
class Conversion:
    """The converted rows of one file or dataset, or of several together.

    `read` rows = `converted` + `dropped` + `unused`. Unused rows are well-formed, but give no row
    of the kind: rankings with only ties, and for SFT answers that are labelled bad or carry no
    loss. Their prompts are kept, because other recipes use them.
    """

    converted: list[ConvertedRow] = field(default_factory=list)
    read: int = 0
    dropped: list[FailedRow] = field(default_factory=list)
    unused: Counter[str] = field(default_factory=Counter)
    unused_prompts: list[Row] = field(default_factory=list)

    @property
    def rows(self) -> list[Row]:
        """The rows of the kind, in order."""
        return [row for source in self.converted for row in source.rows]

    def add(self, other: "Conversion") -> None:
        """Add the rows of another conversion."""
        self.converted += other.converted
        self.read += other.read
        self.dropped += other.dropped
        self.unused += other.unused
        self.unused_prompts += other.unused_prompts


def check_conversion(*, format: str, kind: Kind, place: str, hint: str = "") -> None:
    """Raise DatasetError, ending with the hint, if `format` is unknown or lacks a part of the kind."""
    if format not in FORMATS:
        raise DatasetError(
            f"{place}: unknown dataset_format {format!r}; known: {', '.join(FORMATS)}"
        )
    if FORMATS[format].content in SOURCES[kind]:
        return
    others = [n for n, f in FORMATS.items() if f.content in SOURCES[kind] and n != kind]
    needs = f"{kind} needs the columns {', '.join(COLUMNS[kind])}"
    raise DatasetError(
        f"{place}: its format is {format} (columns {', '.join(FORMATS[format].columns)}), which "
        f"contains no {REQUIRES[kind]}; {needs}"
        + (f", or one of the formats {', '.join(others)}." if others else ".")
        + (f" {hint}" if hint else "")
    )


def convert_rows(
    rows: Sequence[Any],
    *,
    place: str,
    format: str,
    kind: Kind,
    drop_bad_rows: bool = False,
    pairs: Pairs = "all",
    turns: Turns = "last",
    layout: Layout = PLAIN,
    numbers: Sequence[int] | None = None,
    total: int | None = None,
) -> Conversion:
    """Convert the rows of one file or dataset to a kind.

    Args:
        rows: dictionaries with the columns of `format`.
        place: the file or dataset, for error messages.
        format: a name in `FORMATS` that can be converted to `kind` (see `check_conversion`).
        kind: the kind of rows that the recipe trains on.
        drop_bad_rows: list malformed rows in the result instead of raising an error.
        pairs, turns: see `convert_row`.
        numbers: the rows' numbers in the file, from 1; None if `rows` are its first rows.
        total: the file's number of rows if `rows` are only some of them; 0 if unknown.

    Raises: DatasetError that describes the first malformed row and counts all, or if no row is left.
    """
    good: list[ConvertedRow] = []
    failed: list[FailedRow] = []
    for number, row in zip(numbers or range(1, len(rows) + 1), rows, strict=True):
        try:
            if isinstance(row, Unreadable):
                raise RowError("unreadable", row.reason)
            new_rows = convert_row(
                row, format=format, kind=kind, pairs=pairs, turns=turns, layout=layout
            )
            good.append(ConvertedRow(place, number, row, new_rows))
        except RowError as error:
            failed.append(FailedRow(place, number, error.check, str(error), row))
    good, mixed = _keep_one_style(good)
    failed = sorted(failed + mixed, key=lambda f: f.number)
    total = len(rows) if total is None else total
    if failed and not drop_bad_rows:
        raise DatasetError(error_message(failed, total=total))
    result = Conversion([row for row in good if row.rows], len(rows), failed)
    unused = [row.original for row in good if not row.rows]
    result.unused += Counter({UNUSED.get(FORMATS[format].content, ""): len(unused)})
    for row in unused:
        with contextlib.suppress(RowError):
            result.unused_prompts += convert_row(
                row, format=format, kind="prompt-only", layout=layout
            )
    if failed and not result.converted:
        report = error_message(failed, total=total)
        raise DatasetError(f"no row is left after dropping the malformed ones.\n{report}")
    return result


def convert_row(
    row: Any,
    *,
    format: str,
    kind: Kind,
    pairs: Pairs = "all",
    turns: Turns = "last",
    layout: Layout = PLAIN,
) -> list[Row]:
    """Convert one row to rows of a kind: one, several (from a ranking or a dialogue), or none.

    A comparison gives SFT its chosen completion, and KTO both completions with labels. A completion
    that is labelled bad gives SFT nothing. For prompt-only, the prompt of a dialogue is everything
    before its final answer.

    Args:
        row: a dictionary with the columns of `format`.
        format: a name in `FORMATS` that can be converted to `kind` (see `check_conversion`).
        kind: the kind of rows that the recipe trains on.
        pairs: "all" pairs of a ranking, or the "best" completion against each of the others.
        turns: which assistant messages of a dialogue become prompt-completion rows, each with the
            messages before it as its prompt: "all" or the "last". Messages without loss do not
            count.
        layout: how the dataset's rows are written, from `find_layout`.

    Raises: RowError (a DatasetError) if the row is malformed.
    """
    if not isinstance(row, dict):
        problem = f"a row must be an object with columns, got {type(row).__name__}"
        raise RowError("not a row", problem)
    row = layout.parse(row)
    parts = FORMATS[format].read(row)
    check_columns(row, parts, format=format, kind=kind)
    parts = layout.arrange(parts, row)
    if kind == "text":
        return [parts]
    if kind == "prompt-completion":
        if "messages" in parts:
            rows = _split_dialogue(parts["messages"], parts["learned"], turns)
        else:
            rows = _rows_of_kind(parts, kind, pairs)
        group = read_group(row.get("group_id"))
        return rows if group is None else [new_row | {"group_id": group} for new_row in rows]
    if "messages" in parts:
        parts = _dialogue_prompt(parts["messages"])
    if "chosen" in parts and kind != "prompt-only" and is_tie(row):
        return []
    rows = _rows_of_kind(parts, kind, pairs)
    extra = extra_columns(row, format=format, kind=kind)
    if "completions" in parts and kind != "prompt-only" and extra.get("group_id") is None:
        extra["group_id"] = group_id(parts)
    return [new_row | extra for new_row in rows]


def _rows_of_kind(parts: Row, kind: Kind, pairs: Pairs) -> list[Row]:
    """Rows of a kind made from a row's parts, without extra columns."""
    prompt = {"prompt": parts["prompt"]}
    if kind == "prompt-only":
        return [prompt]
    if kind == "answers":
        if "chosen" not in parts:
            return [parts]
        pair = [parts["chosen"], parts["rejected"]]
        return [prompt | {"completions": pair, "ranks": [1, 2]}]
    if "completions" in parts:
        if kind == "preference":
            return pairs_of(parts, pairs=pairs)
        if kind == "unpaired":
            return labels_of(parts, pairs=pairs)
        return [prompt | {"completion": best_completion(parts)}]
    if "chosen" in parts:
        if kind == "preference":
            return [parts]
        good = prompt | {"completion": parts["chosen"]}
        if kind == "prompt-completion":
            return [good]
        bad = prompt | {"completion": parts["rejected"], "label": False}
        return [good | {"label": True}, bad]
    if kind == "unpaired":
        return [parts]
    if parts.get("label") is False:
        return []
    return [prompt | {"completion": parts["completion"]}]


def _split_dialogue(messages: list[Message], learned: list[bool], turns: Turns) -> list[Row]:
    """One row for each answer that carries a loss; all messages before it are its prompt."""
    if all(message["role"] != "assistant" for message in messages):
        problem = "the dialogue must contain an assistant message, got none"
        raise RowError("no assistant message", problem)
    places = [i for i, is_learned in enumerate(learned) if is_learned]
    if turns == "last":
        places = places[-1:]
    rows = [{"prompt": messages[:i], "completion": messages[i : i + 1]} for i in places]
    if len(rows) < 2:
        return rows
    group = group_id({"prompt": messages, "completions": []})
    return [row | {"group_id": group} for row in rows]


def _dialogue_prompt(messages: list[Message]) -> Row:
    """A dialogue without its final answer, or the whole dialogue if it ends with a question."""
    return {"prompt": messages[:-1] if messages[-1]["role"] == "assistant" else messages}


def is_plain(row: Row) -> bool:
    """Whether a converted row holds plain text; otherwise it holds messages."""
    return isinstance(row.get("prompt", row.get("text")), str)


def style_error(*, plain: bool) -> RowError:
    """The error for a row with messages where most rows are plain text, or the reverse."""
    most, odd = ("text", "messages") if plain else ("messages", "text")
    problem = f"the prompt must be {most}, as in most rows, got {odd}"
    return RowError("text among messages", problem)


def _keep_one_style(good: list[ConvertedRow]) -> tuple[list[ConvertedRow], list[FailedRow]]:
    """Keep the more common style: TRL checks only one row to distinguish text from messages."""
    used = [row for row in good if row.rows]
    few = {row.number for row in used if is_plain(row.rows[0])}
    if not few or len(few) == len(used):
        return good, []
    plain = 2 * len(few) > len(used)
    if plain:
        few = {row.number for row in used} - few
    error = style_error(plain=plain)
    failed = [
        FailedRow(row.place, row.number, error.check, str(error), row.original)
        for row in used
        if row.number in few
    ]
    return [row for row in good if row.number not in few], failed
