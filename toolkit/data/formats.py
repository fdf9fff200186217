"""The formats of a dataset's rows; each has an entry in `FORMATS` and a reader.

A reader takes a row and returns one of these parts; texts stay texts, messages stay messages:

    {"text"}, {"messages", "learned"}, {"prompt"}, {"prompt", "completion"},
    {"prompt", "completion", "label"}, {"prompt", "chosen", "rejected"},
    {"prompt", "completions", "ranks"}, {"prompt", "completions"}

`learned` has one bool per message: whether the message is an answer that carries a loss.

Readers raise RowError for a malformed row. `toolkit.data.convert` turns the parts into a recipe's
rows. To add a format, write a reader here, add its entry to `FORMATS`, and add its row to the
table in docs/data.md.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from toolkit.data.comparisons import (
    comparison,
    has_transcripts,
    read_hh,
    read_implicit,
    read_preference,
)
from toolkit.data.messages import (
    Message,
    Row,
    as_completion,
    as_dialogue,
    as_prompt,
    as_text,
    assistant,
    get_column,
    is_blank,
    learned,
    user,
)
from toolkit.data.ranking import read_answers, read_ranked, read_ultrafeedback
from toolkit.data.row_errors import RowError, Unreadable, as_json, describe
from toolkit.data.values import as_flag
from toolkit.errors import DatasetError

Content = Literal["text", "prompt", "completion", "label", "comparison", "answers"]

LABELS = dict.fromkeys(("good", "desirable", "chosen", "accepted", "thumbs_up"), True)
LABELS |= dict.fromkeys(("bad", "undesirable", "rejected", "thumbs_down"), False)
LABELS |= {"correct": True, "incorrect": False, "upvote": True, "downvote": False}
LABELS |= {"like": True, "dislike": False, "preferred": True, "dispreferred": False}
RANKING_COLUMNS = ("ranks", "scores")
EMPTY: tuple[Any, ...] = (None, [], {})
CSV = re.compile(r"\.[ct]sv(\.gz)?\Z", re.IGNORECASE)
TREE = {"message_id", "parent_id", "role"}  # OpenAssistant's rows
# Next to texts with a shared beginning, a column with one of these names is probably the prompt.
LIKELY_PROMPTS = ("question", "query", "input", "context", "instruction", "user", "problem", "post")


@dataclass(frozen=True)
class Format:
    """A format: the columns of its rows and the function that reads them.

    Args:
        columns: the columns that identify the format; every row must have them.
        content: the content of a row: a "text", a "prompt", a prompt with one good "completion", a
            completion with a "label" (good or bad), a "comparison" of two or more completions, or
            "answers" that are not compared.
        read: returns the parts of a row (see the module's docstring); raises RowError.
        optional: further columns that `read` uses.
        matches: checks the rows' values, if other datasets can have the same columns.
    """

    columns: tuple[str, ...]
    content: Content
    read: Callable[[Row], Row]
    optional: tuple[str, ...] = ()
    matches: Callable[[Sequence[Row]], bool] = lambda rows: True


def read_prompt(row: Row) -> Row:
    """A prompt without a completion."""
    return {"prompt": as_prompt(get_column(row, "prompt"), '"prompt"')}


def read_prompt_completion(row: Row) -> Row:
    """A prompt and its completion, both text or both messages."""
    prompt = as_prompt(get_column(row, "prompt"), '"prompt"')
    completion = as_completion(get_column(row, "completion"), '"completion"', prompt=prompt)
    return {"prompt": prompt, "completion": completion}


def labelled(read: Callable[[Row], Row]) -> Callable[[Row], Row]:
    """A reader that also reads `label`: whether the answer (in a dialogue, the last one) is good or bad."""

    def read_labelled(row: Row) -> Row:
        parts = read(row)
        if "messages" in parts:
            parts = _last_answer(parts)
        label = as_label(get_column(row, "label"))
        if label is None:
            raise RowError("not a label", '"label" must be true or false', row["label"])
        return parts | {"label": label}

    return read_labelled


def _last_answer(parts: Row) -> Row:
    messages = parts["messages"]
    if messages[-1]["role"] != "assistant":
        problem = "the dialogue must end with the assistant message that is labelled"
        raise RowError("does not end with the assistant", problem)
    if not parts["learned"][-1]:
        problem = "the labelled message must carry a loss, but it has the weight 0"
        raise RowError("an answer without loss", problem)
    return {"prompt": messages[:-1], "completion": messages[-1:]}


def as_label(value: Any) -> bool | None:
    """The bool of a label (a flag such as true or 1, or a word such as "good"); None for other values."""
    flag = as_flag(value)
    return LABELS.get(str(value).strip().lower()) if flag is None else flag


def _has_labels(rows: Sequence[Row]) -> bool:
    return 2 * sum(as_label(row.get("label")) is not None for row in rows) > len(rows)


def unclear_labels(rows: Sequence[Row]) -> str:
    """Why a column `label` does not label answers as good or bad; "" if nothing is unclear."""
    values = {str(v) for row in rows if not is_blank(v := row.get("label")) and as_label(v) is None}
    if not values:
        return ""
    return (
        f'"label" has {as_json(sorted(values))}; it must be true or false (docs/data.md, unpaired).'
    )


def read_text(row: Row) -> Row:
    """A text without a prompt."""
    return {"text": as_text(get_column(row, "text"), '"text"')}


def read_messages(row: Row) -> Row:
    """A whole dialogue."""
    return _dialogue(row, "messages")


def _dialogue(row: Row, name: str) -> Row:
    value = get_column(row, name)
    messages = as_dialogue(value, f'"{name}"')
    return {"messages": messages, "learned": learned(value, f'"{name}"')}


def read_alpaca(row: Row) -> Row:
    """An instruction and its output; an input follows the instruction after a blank line."""
    prompt = _instruction(row)
    completion = as_text(get_column(row, "output"), '"output"')
    return {"prompt": prompt, "completion": [assistant(completion)]}


def read_alpaca_preference(row: Row) -> Row:
    """An instruction as in `read_alpaca`, and two completions."""
    return comparison(row, _instruction(row), wrap=True)


def _instruction(row: Row) -> list[Message]:
    """The prompt's messages: the turns of `history`, then instruction and input."""
    instruction = as_text(get_column(row, "instruction"), '"instruction"')
    extra = row.get("input")
    if extra is not None and (not isinstance(extra, str) or extra.strip()):
        instruction += "\n\n" + as_text(extra, '"input"')
    messages: list[Message] = []
    for i, turn in enumerate(_history(row), start=1):
        question, answer = (as_text(value, f'"history" {i}') for value in turn)
        messages += [user(question), assistant(answer)]
    return [*messages, user(instruction)]


def _history(row: Row) -> list[Any]:
    """Earlier turns in LLaMA-Factory's form: `[[question, answer], …]`."""
    turns = row.get("history")
    if turns in (None, "", []):
        return []
    if not isinstance(turns, list) or any(not isinstance(t, list) or len(t) != 2 for t in turns):
        raise RowError("not a history", '"history" must be a list of [question, answer]', turns)
    return turns


def read_sharegpt(row: Row) -> Row:
    """A whole dialogue of "human" and "gpt"."""
    return _dialogue(row, "conversations")


def read_sharegpt_preference(row: Row) -> Row:
    """A dialogue that ends with a human message, and two completions."""
    prompt = as_dialogue(get_column(row, "conversations"), '"conversations"')
    return comparison(row, as_prompt(prompt, '"conversations"'), wrap=True)


def _has_no_roles(rows: Sequence[Row]) -> bool:
    """Whether rows of `text` are whole texts, not single messages of dialogues."""
    return not any("role" in row for row in rows)


def _labelled_format(
    columns: tuple[str, ...], read: Callable[[Row], Row], optional: tuple[str, ...] = ()
) -> Format:
    return Format((*columns, "label"), "label", labelled(read), optional, _has_labels)


def _has_ranks(rows: Sequence[Row]) -> bool:
    return any(not is_blank(row.get(name)) for row in rows for name in RANKING_COLUMNS)


LLAMA_FACTORY = ("input", "history")
# `detect_format` tries them in this order: a format comes before those that need fewer columns.
FORMATS: Mapping[str, Format] = {
    "sharegpt_preference": Format(
        ("conversations", "chosen", "rejected"), "comparison", read_sharegpt_preference
    ),
    "alpaca_preference": Format(
        ("instruction", "chosen", "rejected"), "comparison", read_alpaca_preference, LLAMA_FACTORY
    ),
    "hh": Format(("chosen", "rejected"), "comparison", read_hh, ("prompt",), has_transcripts),
    "preference": Format(("prompt", "chosen", "rejected"), "comparison", read_preference),
    "implicit-preference": Format(("chosen", "rejected"), "comparison", read_implicit),
    "ranked": Format(
        ("prompt", "completions"), "comparison", read_ranked, RANKING_COLUMNS, _has_ranks
    ),
    "answers": Format(("prompt", "completions"), "answers", read_answers),
    "ultrafeedback": Format(("instruction", "completions"), "comparison", read_ultrafeedback),
    "unpaired": _labelled_format(("prompt", "completion"), read_prompt_completion),
    "messages_unpaired": _labelled_format(("messages",), read_messages),
    "sharegpt_unpaired": _labelled_format(("conversations",), read_sharegpt),
    "alpaca_unpaired": _labelled_format(("instruction", "output"), read_alpaca, LLAMA_FACTORY),
    "prompt-completion": Format(("prompt", "completion"), "completion", read_prompt_completion),
    "messages": Format(("messages",), "completion", read_messages),
    "sharegpt": Format(("conversations",), "completion", read_sharegpt),
    "alpaca": Format(("instruction", "output"), "completion", read_alpaca, LLAMA_FACTORY),
    "prompt-only": Format(("prompt",), "prompt", read_prompt),
    "text": Format(("text",), "text", read_text, matches=_has_no_roles),
}


def detect_format(rows: Sequence[Any], *, place: str, hint: str = "") -> str:
    """The name of the rows' format, detected from the columns that at least half of them have.

    Args:
        rows: all rows; only dictionaries are used.
        place: the file or dataset, for error messages.
        hint: a sentence for the error of unknown columns.

    Raises: DatasetError if there are no rows, if no format has their columns, or if a column next
        to `chosen` and `rejected` is probably a prompt that would be lost.
    """
    if not rows:
        raise DatasetError(f"{place}: the dataset has no rows")
    objects = [row for row in rows if isinstance(row, dict)]
    if not objects:
        first = rows[0].reason if isinstance(rows[0], Unreadable) else f"got {describe(rows[0])}"
        raise DatasetError(f"{place}: no row is an object with columns; row 1: {first}")
    columns = common_columns(objects)
    if columns >= TREE:
        raise DatasetError(
            f"{place}: each row is one message of a tree (columns {', '.join(sorted(TREE))}). Write "
            "each path from a root to an answer as a row of `messages`, or the answers to one "
            "message as `prompt`, `completions`, `ranks` (docs/data.md, Trees of messages)."
        )
    # a column without a value in any row decides only if nothing else does
    for names in (columns, _names(objects)):
        for name, format in FORMATS.items():
            if names.issuperset(format.columns) and format.matches(objects):
                if name == "implicit-preference":
                    _check_no_prompt(objects, columns, place=place)
                return name
    problem = f"no known format has the columns {', '.join(sorted(columns))}"
    if not columns:
        names = _names(objects)
        problem = "no column is in half of the rows"
        problem += f"; the columns are {', '.join(sorted(names))}" if names else ""
    if "role" in columns:
        problem += "; if each row is one message, write each dialogue as one row of `messages`"
    if CSV.search(place):
        problem += "; the first line of a CSV file must have the names of its columns"
    hint = hint or _shape(objects)
    known = "; ".join(f"{name} ({', '.join(f.columns)})" for name, f in FORMATS.items())
    raise DatasetError(
        f"{place}: {problem}. {hint}{' ' if hint else ''}"
        f"Rename the columns, with `columns: {{yours: theirs}}`, to those of a format: {known}."
    )


def _shape(rows: Sequence[Row]) -> str:
    """How to rewrite a JSON file that has its rows in another shape; "" if it has not."""
    fix = "write a list of rows: [{…}, {…}]."
    if {"columns", "data"} <= rows[0].keys() <= {"columns", "data", "index"}:
        return f"The file has the names of the columns apart from their values (pandas' `split`); {fix}"
    values = list(rows[0].values())
    if len(rows) == 1 and all(isinstance(v, dict) and v.keys() == values[0].keys() for v in values):
        return f"The file is one object, with the rows under their keys; {fix}"
    return ""


def common_columns(rows: Sequence[Row]) -> set[str]:
    """The columns in which half of the rows have a value, and at least one value is not blank."""
    counts = Counter(name for row in rows for name, value in row.items() if value not in EMPTY)
    common = {name for name, n in counts.items() if 2 * n >= len(rows)}
    return {name for name in common if not all(is_blank(row.get(name)) for row in rows)}


def _names(rows: Sequence[Row]) -> set[str]:
    """The columns that at least half of the rows have, with or without a value."""
    counts = Counter(name for row in rows for name in row)
    return {name for name, n in counts.items() if 2 * n >= len(rows)}


def _check_no_prompt(rows: Sequence[Row], columns: set[str], *, place: str) -> None:
    if not any(isinstance(row.get("chosen"), str) for row in rows):
        return
    for name in LIKELY_PROMPTS:
        if name in columns:
            raise DatasetError(
                f'{place}: there is a column "{name}" next to "chosen" and "rejected". If it is '
                f"the prompt, set `columns: {{{name}: prompt}}`, and a column `system` will be its "
                "system message; if both texts start with the "
                "prompt, set `dataset_format: implicit-preference`."
            )
