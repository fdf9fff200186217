"""The formats that a dataset's rows may have: one entry of `FORMATS` and one reader for each.

A reader takes a row and returns its parts, with texts or messages as the row has them:

    {"text"}, {"messages"}, {"prompt"}, {"prompt", "completion"}, {"prompt", "completion", "label"},
    {"prompt", "chosen", "rejected"}, {"prompt", "completions", "ranks"}

Readers raise RowError for a malformed row. `toolkit.data.convert` turns the parts into a recipe's
rows. To add a format, write a reader here, add its entry to `FORMATS`, and add its row to the
table in docs/data.md.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from toolkit.data.messages import (
    Message,
    Row,
    as_completion,
    as_dialogue,
    as_prompt,
    as_text,
    assistant,
    get_column,
    parse_transcript,
    user,
)
from toolkit.data.ranking import read_ranked, read_ultrafeedback
from toolkit.data.row_errors import RowError, Unreadable, describe
from toolkit.errors import DatasetError

Content = Literal["text", "prompt", "completion", "label", "comparison"]

WORD = re.compile(r"\s*\S+")
LABELS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
# Next to texts with a shared beginning, a column with one of these names is probably the prompt.
LIKELY_PROMPTS = ("question", "query", "input", "context", "instruction", "user", "problem", "post")


@dataclass(frozen=True)
class Format:
    """A row contract.

    Args:
        columns: the columns that identify the format; every row must have them.
        content: what a row holds: a "text", a "prompt", a prompt with one good "completion", a
            completion with a "label" (good or bad), or a "comparison" of two or more completions.
        read: returns the parts of a row (see the module's docstring); raises RowError.
        optional: further columns that `read` uses.
        matches: whether the rows' values fit the format, if other data may have its columns, too.
    """

    columns: tuple[str, ...]
    content: Content
    read: Callable[[Row], Row]
    optional: tuple[str, ...] = ()
    matches: Callable[[Sequence[Row]], bool] = lambda rows: True


def read_prompt(row: Row) -> Row:
    """A prompt alone."""
    return {"prompt": as_prompt(get_column(row, "prompt"), '"prompt"')}


def read_prompt_completion(row: Row) -> Row:
    """A prompt and its completion, both text or both messages."""
    prompt = as_prompt(get_column(row, "prompt"), '"prompt"')
    completion = as_completion(get_column(row, "completion"), '"completion"', prompt=prompt)
    return {"prompt": prompt, "completion": completion}


def read_unpaired(row: Row) -> Row:
    """A prompt, one completion, and whether the completion is good."""
    parts = read_prompt_completion(row)
    label = get_column(row, "label")
    if not _is_label(label):
        raise RowError("not a label", '"label" must be true or false', label)
    return parts | {"label": LABELS[str(label).strip().lower()]}


def _is_label(value: Any) -> bool:
    """Whether a value is true or false, 1 or 0; also as text, the only type of CSV."""
    return isinstance(value, bool | int | float | str) and str(value).strip().lower() in LABELS


def _has_labels(rows: Sequence[Row]) -> bool:
    return 2 * sum(_is_label(row.get("label")) for row in rows) > len(rows)


def read_text(row: Row) -> Row:
    """A text without a prompt."""
    return {"text": as_text(get_column(row, "text"), '"text"')}


def read_messages(row: Row) -> Row:
    """A whole dialogue."""
    return {"messages": as_dialogue(get_column(row, "messages"), '"messages"')}


def read_preference(row: Row) -> Row:
    """A prompt and two completions. As in UltraFeedback, two dialogues may repeat a text prompt."""
    prompt, chosen, rejected = (get_column(row, name) for name in ("prompt", "chosen", "rejected"))
    if isinstance(prompt, str) and _is_dialogue(chosen) and _is_dialogue(rejected):
        parts = read_implicit(row)
        if parts["prompt"][-1]["content"].strip() != as_text(prompt, '"prompt"').strip():
            problem = '"prompt" must be the last user message of "chosen"; it differs'
            raise RowError("no shared prompt", problem)
        return parts
    return _comparison(row, as_prompt(prompt, '"prompt"'))


def _is_dialogue(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 1


def _comparison(row: Row, prompt: str | list[Message], *, wrap: bool = False) -> Row:
    chosen, rejected = (
        as_completion(get_column(row, name), f'"{name}"', prompt=prompt, wrap=wrap)
        for name in ("chosen", "rejected")
    )
    return {"prompt": prompt} | _pair(chosen, rejected)


def _pair(chosen: Any, rejected: Any) -> Row:
    expected = '"chosen" and "rejected" must differ'
    if chosen == rejected:
        raise RowError("chosen equals rejected", f"{expected}, got the same")
    a, b = (side if isinstance(side, str) else side[0]["content"] for side in (chosen, rejected))
    if a.strip() == b.strip():
        problem = f"{expected}, got texts that differ only in blanks at their ends"
        raise RowError("chosen equals rejected", problem)
    return {"chosen": chosen, "rejected": rejected}


def read_implicit(row: Row) -> Row:
    """Two texts or two dialogues whose shared beginning is the prompt."""
    chosen, rejected = get_column(row, "chosen"), get_column(row, "rejected")
    if isinstance(chosen, str) and isinstance(rejected, str):
        return _split_texts(as_text(chosen, '"chosen"'), as_text(rejected, '"rejected"'))
    if isinstance(chosen, str) or isinstance(rejected, str):
        problem = '"chosen" and "rejected" must both be text or both be messages'
        raise RowError("text and messages mixed", problem)
    return _split_dialogues(as_dialogue(chosen, '"chosen"'), as_dialogue(rejected, '"rejected"'))


def _split_texts(chosen: str, rejected: str) -> Row:
    """The shared words at the beginning are the prompt; a word is never cut in two."""
    chosen_words, rejected_words = WORD.findall(chosen), WORD.findall(rejected)
    most = min(len(chosen_words), len(rejected_words)) - 1
    shared = 0
    while shared < most and chosen_words[shared] == rejected_words[shared]:
        shared += 1
    if not shared:
        expected = '"chosen" and "rejected" must start with the same words (the prompt)'
        raise RowError("no shared prompt", f'{expected}, or the row must have a "prompt" column')
    end = len("".join(chosen_words[:shared]))
    return {"prompt": chosen[:end]} | _pair(chosen[end:], rejected[end:])


def _split_dialogues(chosen: list[Message], rejected: list[Message]) -> Row:
    """The shared messages are the prompt; only the last one, an assistant message, may differ."""
    for name, dialogue in (("chosen", chosen), ("rejected", rejected)):
        if dialogue[-1]["role"] != "assistant":
            problem = f'"{name}" must end with an assistant message'
            raise RowError("does not end with the assistant", problem)
    if chosen[:-1] != rejected[:-1]:
        pairs = zip(chosen[:-1], rejected[:-1], strict=False)
        first = next((i for i, (a, b) in enumerate(pairs, start=1) if a != b), None)
        lengths = f"{len(chosen)} and {len(rejected)} messages"
        problem = f"a difference at message {first}" if first else lengths
        expected = '"chosen" and "rejected" must share every message but the last'
        raise RowError("no shared prompt", f"{expected}, got {problem}")
    return {"prompt": chosen[:-1]} | _pair(chosen[-1:], rejected[-1:])


def read_hh(row: Row) -> Row:
    """Two transcripts that share all but the last Assistant turn."""
    chosen = parse_transcript(get_column(row, "chosen"), '"chosen"')
    return _split_dialogues(chosen, parse_transcript(get_column(row, "rejected"), '"rejected"'))


def _has_transcripts(rows: Sequence[Row]) -> bool:
    texts: list[str] = [row["chosen"] for row in rows if isinstance(row.get("chosen"), str)]
    return 2 * sum(text.lstrip().startswith("Human:") for text in texts) > len(texts)


def read_alpaca(row: Row) -> Row:
    """An instruction and its output; an input follows the instruction after a blank line."""
    prompt = _instruction(row)
    completion = as_text(get_column(row, "output"), '"output"')
    return {"prompt": prompt, "completion": [assistant(completion)]}


def read_alpaca_preference(row: Row) -> Row:
    """An instruction as in `read_alpaca`, and two completions."""
    return _comparison(row, _instruction(row), wrap=True)


def _instruction(row: Row) -> list[Message]:
    """The prompt's messages: system, the turns of `history`, instruction and input."""
    instruction = as_text(get_column(row, "instruction"), '"instruction"')
    extra = row.get("input")
    if extra is not None and (not isinstance(extra, str) or extra.strip()):
        instruction += "\n\n" + as_text(extra, '"input"')
    messages = _system(row)
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


def _system(row: Row) -> list[Message]:
    """LLaMA-Factory has the system message in a column of its own, which is often empty."""
    if row.get("system") in (None, ""):
        return []
    return [{"role": "system", "content": as_text(row["system"], '"system"')}]


def read_sharegpt(row: Row) -> Row:
    """A whole dialogue of "human" and "gpt"."""
    return {"messages": _conversations(row)}


def read_sharegpt_preference(row: Row) -> Row:
    """A dialogue that ends with a human message, and two completions."""
    return _comparison(row, as_prompt(_conversations(row), '"conversations"'), wrap=True)


def _conversations(row: Row) -> list[Message]:
    messages = as_dialogue(get_column(row, "conversations"), '"conversations"')
    return messages if messages[0]["role"] == "system" else _system(row) + messages


LLAMA_FACTORY = ("input", "system", "history")
# `detect_format` tries them in this order: a format comes before those that need fewer columns.
FORMATS: Mapping[str, Format] = {
    "sharegpt_preference": Format(
        columns=("conversations", "chosen", "rejected"),
        content="comparison",
        read=read_sharegpt_preference,
        optional=("system",),
    ),
    "alpaca_preference": Format(
        columns=("instruction", "chosen", "rejected"),
        content="comparison",
        read=read_alpaca_preference,
        optional=LLAMA_FACTORY,
    ),
    "preference": Format(("prompt", "chosen", "rejected"), "comparison", read_preference),
    "hh": Format(("chosen", "rejected"), "comparison", read_hh, matches=_has_transcripts),
    "implicit-preference": Format(("chosen", "rejected"), "comparison", read_implicit),
    "ranked": Format(
        ("prompt", "completions"), "comparison", read_ranked, optional=("ranks", "scores")
    ),
    "ultrafeedback": Format(("instruction", "completions"), "comparison", read_ultrafeedback),
    "unpaired": Format(
        ("prompt", "completion", "label"), "label", read_unpaired, matches=_has_labels
    ),
    "prompt-completion": Format(("prompt", "completion"), "completion", read_prompt_completion),
    "messages": Format(("messages",), "completion", read_messages),
    "sharegpt": Format(("conversations",), "completion", read_sharegpt, optional=("system",)),
    "alpaca": Format(("instruction", "output"), "completion", read_alpaca, optional=LLAMA_FACTORY),
    "prompt-only": Format(("prompt",), "prompt", read_prompt),
    "text": Format(("text",), "text", read_text),
}


def detect_format(rows: Sequence[Any], *, place: str) -> str:
    """The name of the rows' format, detected from the columns that at least half of them have.

    Args:
        rows: all rows; those that are no dictionaries are ignored.
        place: the file or dataset, for error messages.

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
    for name, format in FORMATS.items():
        if columns.issuperset(format.columns) and format.matches(objects):
            if name == "implicit-preference":
                _check_no_prompt(objects, columns, place=place)
            return name
    problem = f"no known format has the columns {', '.join(sorted(columns))}"
    if not columns:
        names = sorted({name for row in objects for name in row})
        problem = "no column is in half of the rows"
        problem += f"; the columns are {', '.join(names)}" if names else ""
    known = "; ".join(f"{name} ({', '.join(f.columns)})" for name, f in FORMATS.items())
    raise DatasetError(
        f"{place}: {problem}. "
        f"Rename the columns, with `columns: {{yours: theirs}}`, to those of a format: {known}."
    )


def common_columns(rows: Sequence[Row]) -> set[str]:
    """The columns that at least half of the rows have."""
    counts = Counter(name for row in rows for name in row)
    return {name for name, n in counts.items() if 2 * n >= len(rows)}


def _check_no_prompt(rows: Sequence[Row], columns: set[str], *, place: str) -> None:
    if not any(isinstance(row.get("chosen"), str) for row in rows):
        return
    for name in LIKELY_PROMPTS:
        if name in columns:
            raise DatasetError(
                f'{place}: there is a column "{name}" next to "chosen" and "rejected". If it is '
                f"the prompt, set `columns: {{{name}: prompt}}`; if both texts start with the "
                "prompt, set `dataset_format: implicit-preference`."
            )
