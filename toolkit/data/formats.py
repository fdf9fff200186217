"""The formats that a dataset's rows may have, and their conversion to what a recipe asks for.

Rows come in one of `FORMATS` and leave as one of these kinds, in TRL's own columns:

    prompt-completion   {"prompt", "completion"}            SFT
    preference          {"prompt", "chosen", "rejected"}    reward model, DPO
    unpaired            {"prompt", "completion", "label"}   KTO
    prompt-only         {"prompt"}                          PPO
    text                {"text"}                            SFT on text without prompts

All but prompt-completion and text rows keep the other columns ("margin", a reference answer) for
trainers and reward functions that read them. What is made of one ranking, or of one dialogue's
turns, shares a "group_id".
Plain text stays plain text; alpaca, sharegpt, hh and ultrafeedback rows become messages.
See docs/data.md and https://huggingface.co/docs/trl/dataset_formats.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from toolkit.data import readers
from toolkit.data.extra_columns import group_column, number_columns
from toolkit.data.messages import BadRow, Message, Row, Unreadable, shown
from toolkit.data.ranking import (
    Pairs,
    best_completion,
    group_id,
    labels_of,
    pairs_of,
    read_ranked,
    read_ultrafeedback,
)
from toolkit.errors import DatasetError

Kind = Literal["prompt-completion", "preference", "unpaired", "prompt-only", "text"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Holds = Literal["texts", "prompts", "answers", "labels", "choices"]
Turns = Literal["all", "last"]

# What rows of each kind can be made of.
MAKES: Mapping[Kind, tuple[Holds, ...]] = {
    "prompt-completion": ("answers", "labels", "choices"),
    "preference": ("choices",),
    "unpaired": ("labels", "choices"),
    "prompt-only": ("prompts", "answers", "labels", "choices"),
    "text": ("texts",),
}
COLUMNS: Mapping[Kind, tuple[str, ...]] = {
    "prompt-completion": ("prompt", "completion"),
    "preference": ("prompt", "chosen", "rejected"),
    "unpaired": ("prompt", "completion", "label"),
    "prompt-only": ("prompt",),
    "text": ("text",),
}
LACKS: Mapping[Kind, str] = {
    "prompt-completion": "answers",
    "preference": "better and worse answers to one prompt",
    "unpaired": "answers known to be good or bad",
    "prompt-only": "prompts",
    "text": "texts",
}

# TRL tells formats apart by these columns, so none may stay beside those of a kind.
TRL_COLUMNS = {"prompt", "completion", "chosen", "rejected", "messages", "label", "text"}
TRL_COLUMNS |= {"input_ids", "prompt_ids", "completion_ids", "chosen_ids", "rejected_ids"}
# These it would act upon: render them, look for pixels, or take them for the reference's words.
TRL_COLUMNS |= {"tools", "chat_template_kwargs", "image", "images"}
TRL_COLUMNS |= {"ref_chosen_logps", "ref_rejected_logps", "reference_logps"}

# Beside texts with a shared beginning, one of these is likely the prompt that they lack.
LIKELY_PROMPTS = ("question", "query", "input", "context", "instruction", "user", "problem", "post")


@dataclass(frozen=True)
class Format:
    """A row contract: its columns, what a row holds, and how to read one.

    `holds` is "texts", "prompts", "answers" (a prompt and one good completion), "labels" (a prompt
    and a completion, good or bad) or "choices" (a prompt, and completions of which some are
    better). `read` raises BadRow.
    """

    columns: tuple[str, ...]
    holds: Holds
    read: Callable[[Row], Row]
    optional: tuple[str, ...] = ()


# In the order in which they are tried: the one that asks for most comes first.
FORMATS: Mapping[str, Format] = {
    "sharegpt_preference": Format(
        ("conversations", "chosen", "rejected"),
        "choices",
        readers.read_sharegpt_preference,
        ("system",),
    ),
    "alpaca_preference": Format(
        ("instruction", "chosen", "rejected"),
        "choices",
        readers.read_alpaca_preference,
        ("input", "system", "history"),
    ),
    "preference": Format(("prompt", "chosen", "rejected"), "choices", readers.read_preference),
    "hh": Format(("chosen", "rejected"), "choices", readers.read_hh),
    "implicit-preference": Format(("chosen", "rejected"), "choices", readers.read_implicit),
    "ranked": Format(("prompt", "completions"), "choices", read_ranked, ("ranks", "scores")),
    "ultrafeedback": Format(("instruction", "completions"), "choices", read_ultrafeedback),
    "unpaired": Format(("prompt", "completion", "label"), "labels", readers.read_unpaired),
    "prompt-completion": Format(
        ("prompt", "completion"), "answers", readers.read_prompt_completion
    ),
    "messages": Format(("messages",), "answers", readers.read_messages),
    "sharegpt": Format(("conversations",), "answers", readers.read_sharegpt, ("system",)),
    "alpaca": Format(
        ("instruction", "output"), "answers", readers.read_alpaca, ("input", "system", "history")
    ),
    "prompt-only": Format(("prompt",), "prompts", readers.read_prompt),
    "text": Format(("text",), "texts", readers.read_text),
}


def detect_format(rows: Sequence[Any], *, place: str) -> str:
    """The name of the rows' format, by the columns that at least half of them have.

    Args:
        rows: all rows; what is no dictionary is passed over.
        place: the file or dataset, for the error.

    Raises: DatasetError if there are no rows, or their columns are of no known format, or a column
        beside `chosen` and `rejected` looks like the prompt that would be lost.
    """
    if not rows:
        raise DatasetError(f"{place}: it has no rows")
    found = [row for row in rows if isinstance(row, dict)]
    if not found:
        first = rows[0].reason if isinstance(rows[0], Unreadable) else f"got {shown(rows[0])}"
        raise DatasetError(f"{place}: no row is an object with columns; row 1: {first}")
    present = common_columns(found)
    for name, fmt in FORMATS.items():
        if present.issuperset(fmt.columns) and _fits(name, found):
            if name == "implicit-preference":
                _check_no_prompt(found, present, place=place)
            return name
    known = "; ".join(f"{name} ({', '.join(f.columns)})" for name, f in FORMATS.items())
    has = f"the columns {', '.join(sorted(present))} are"
    if not present:
        some = sorted({name for row in found for name in row})
        has = (
            f"no column is in half of the rows, which have {', '.join(some) or 'none'}, and that is"
        )
    raise DatasetError(
        f"{place}: {has} of no known format. "
        f"Rename them, with `columns: {{yours: theirs}}`, to those of one of these: {known}."
    )


def common_columns(rows: Sequence[Row]) -> set[str]:
    """The columns that at least half of the rows have."""
    counts = Counter(name for row in rows for name in row)
    return {name for name, n in counts.items() if 2 * n >= len(rows)}


def _fits(name: str, rows: Sequence[Row]) -> bool:
    """What the columns alone do not say: whether most values are of the format's kind."""
    if name == "hh":
        texts: list[str] = [row["chosen"] for row in rows if isinstance(row.get("chosen"), str)]
        return 2 * sum(t.lstrip().startswith("Human:") for t in texts) > len(texts)
    if name == "unpaired":  # a column "label" may be about anything
        return 2 * sum(readers.is_label(row.get("label")) for row in rows) > len(rows)
    return True


def _check_no_prompt(rows: Sequence[Row], present: set[str], *, place: str) -> None:
    if not any(isinstance(row.get("chosen"), str) for row in rows):
        return
    for name in LIKELY_PROMPTS:
        if name in present:
            raise DatasetError(
                f'{place}: beside "chosen" and "rejected" there is a column "{name}". If it is the '
                f"prompt, say `columns: {{{name}: prompt}}`; if the two begin with the prompt, say "
                "`dataset_format: implicit-preference`."
            )


def check_conversion(*, format: str, kind: Kind, place: str) -> None:
    """Raise DatasetError unless rows of a format hold what a kind needs."""
    if format not in FORMATS:
        raise DatasetError(
            f"{place}: unknown dataset_format {format!r}; known: {', '.join(FORMATS)}"
        )
    if FORMATS[format].holds in MAKES[kind]:
        return
    others = [n for n, f in FORMATS.items() if f.holds in MAKES[kind] and n != kind]
    wanted = f"the columns {', '.join(COLUMNS[kind])}"
    raise DatasetError(
        f"{place}: its format is {format} (columns {', '.join(FORMATS[format].columns)}), "
        f"which has no {LACKS[kind]}; {kind} needs {wanted}"
        + (f", or one of the formats {', '.join(others)}." if others else ".")
    )


def convert_row(
    row: Any, *, format: str, kind: Kind, pairs: Pairs = "all", turns: Turns = "last"
) -> list[Row]:
    """One row as rows of a kind: one, or what a ranking or a label makes of it, perhaps none.

    A preference row used for SFT gives what was chosen, for KTO both answers with their labels.
    An answer labelled bad gives SFT nothing. Of a dialogue, prompt-only keeps everything before a
    final answer.

    Args:
        row: a dictionary with the columns of `format`.
        format: a name in `FORMATS` that can be converted (see `check_conversion`).
        kind: what the recipe asks for.
        pairs: of a ranking "all" pairs, or the "best" against the rest.
        turns: of a dialogue prompt-completion rows of "all" assistant messages, each with what was
            said before it as its prompt, or one of the "last".

    Raises: DatasetError (BadRow) if the row is malformed.
    """
    if not isinstance(row, dict):
        raise BadRow("not a row", f"a row must be an object with columns, got {type(row).__name__}")
    fmt = FORMATS[format]
    parts = fmt.read(row)
    if fmt.holds == "answers" and kind != "prompt-only" and row.get("label") is False:
        raise BadRow("a bad answer", "`label` is false: it would be learned as if it were good")
    if "messages" in parts:
        if kind == "prompt-completion":
            return _answers(parts["messages"], turns)
        parts = _split_question(parts["messages"])
    if kind == "text":
        return [parts]
    made = _made(parts, kind, pairs)
    if kind == "prompt-completion":
        return made
    others = {name: row[name] for name in row if name not in read_columns(format)}
    others |= group_column(others)
    if kind == "preference":
        others |= number_columns(others)
    if "completions" in parts and kind != "prompt-only":
        own = others.get("group_id")
        others |= {"group_id": group_id(parts) if own is None else own}
    return [one | others for one in made]


def read_columns(format: str) -> set[str]:
    """The columns of a format that a conversion reads, or leaves out so as not to confuse TRL."""
    return {*FORMATS[format].columns, *FORMATS[format].optional} | TRL_COLUMNS


def _made(parts: Row, kind: Kind, pairs: Pairs) -> list[Row]:
    """The rows of a kind that a row's parts make, without its other columns."""
    asked = {"prompt": parts["prompt"]}
    if kind == "prompt-only":
        return [asked]
    if "completions" in parts:
        if kind == "preference":
            return pairs_of(parts, pairs=pairs)
        if kind == "unpaired":
            return labels_of(parts, pairs=pairs)
        return [asked | {"completion": best_completion(parts)}]
    if "chosen" in parts:
        if kind == "preference":
            return [parts]
        good = asked | {"completion": parts["chosen"]}
        if kind == "prompt-completion":
            return [good]
        bad = asked | {"completion": parts["rejected"], "label": False}
        return [good | {"label": True}, bad]
    if kind == "unpaired":
        return [parts]
    if parts.get("label") is False:
        return []
    return [asked | {"completion": parts["completion"]}]


def _answers(found: list[Message], turns: Turns) -> list[Row]:
    """The assistant's messages of a dialogue, each after all that was said before it."""
    places = [i for i, message in enumerate(found) if message["role"] == "assistant"]
    if not places:
        raise BadRow("no assistant message", "the messages must hold an assistant's, got none")
    if turns == "last":
        places = places[-1:]
    made = [{"prompt": found[:i], "completion": found[i : i + 1]} for i in places]
    if len(made) == 1:
        return made
    group = group_id({"prompt": found, "completions": []})
    return [row | {"group_id": group} for row in made]


def _split_question(found: list[Message]) -> Row:
    """A dialogue as a prompt: up to its last answer, or with the question that it leaves open."""
    return {"prompt": found[:-1] if found[-1]["role"] == "assistant" else found}
