"""The formats that a dataset's rows may have, and their conversion to what a recipe asks for.

Rows come in one of `FORMATS` and leave as one of three kinds, in TRL's own columns:

    prompt-completion   {"prompt", "completion"}            SFT
    preference          {"prompt", "chosen", "rejected"}    reward model, DPO
    prompt-only         {"prompt"}                          PPO, RLOO, GRPO

Preference and prompt-only rows keep the other columns ("margin", "group_id", a reference answer)
for trainers and reward functions that read them. A ranking's pairs share a "group_id".
Plain text stays plain text; alpaca, sharegpt and hh rows become messages.
See https://huggingface.co/docs/trl/dataset_formats.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from toolkit.data import readers
from toolkit.data.messages import BadRow, Message, Row, Unreadable, shown
from toolkit.data.ranking import best_completion, group_id, ranked_to_pairs, read_ranked
from toolkit.errors import DatasetError

Kind = Literal["prompt-completion", "preference", "prompt-only"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# TRL tells formats apart by these columns, so none may stay beside those of a kind.
TRL_COLUMNS = {"prompt", "completion", "chosen", "rejected", "messages", "label", "text"}
TRL_COLUMNS |= {"input_ids", "prompt_ids", "completion_ids", "chosen_ids", "rejected_ids"}


@dataclass(frozen=True)
class Format:
    """A row contract: its columns, what a row holds, and how to read one.

    `holds` is "prompts", "answers" (a prompt and one good completion) or "choices" (a prompt,
    and completions of which some are better). `read` raises BadRow.
    """

    columns: tuple[str, ...]
    holds: Literal["prompts", "answers", "choices"]
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
    "preference": Format(("prompt", "chosen", "rejected"), "choices", readers.read_preference),
    "hh": Format(("chosen", "rejected"), "choices", readers.read_hh),
    "implicit-preference": Format(("chosen", "rejected"), "choices", readers.read_implicit),
    "ranked": Format(("prompt", "completions"), "choices", read_ranked, ("ranks", "scores")),
    "prompt-completion": Format(
        ("prompt", "completion"), "answers", readers.read_prompt_completion
    ),
    "messages": Format(("messages",), "answers", readers.read_messages),
    "sharegpt": Format(("conversations",), "answers", readers.read_sharegpt, ("system",)),
    "alpaca": Format(
        ("instruction", "output"), "answers", readers.read_alpaca, ("input", "system", "history")
    ),
    "prompt-only": Format(("prompt",), "prompts", readers.read_prompt),
}


def detect_format(rows: Sequence[Any], *, place: str) -> str:
    """The name of the rows' format, by the columns that at least half of them have.

    Args:
        rows: all rows; what is no dictionary is passed over.
        place: the file or dataset, for the error.

    Raises: DatasetError if there are no rows or their columns are of no known format.
    """
    if not rows:
        raise DatasetError(f"{place}: it has no rows")
    found = [row for row in rows if isinstance(row, dict)]
    if not found:
        first = rows[0].reason if isinstance(rows[0], Unreadable) else f"got {shown(rows[0])}"
        raise DatasetError(f"{place}: no row is an object with columns; row 1: {first}")
    counts: dict[str, int] = {}
    for row in found:
        for name in row:
            counts[name] = counts.get(name, 0) + 1
    present = {name for name, n in counts.items() if 2 * n >= len(found)}
    for name, fmt in FORMATS.items():
        if present.issuperset(fmt.columns) and (name != "hh" or _mostly_transcripts(found)):
            return name
    known = "; ".join(f"{name} ({', '.join(f.columns)})" for name, f in FORMATS.items())
    raise DatasetError(
        f"{place}: the columns {', '.join(sorted(present)) or '(none)'} are of no known format. "
        f"Rename them to those of one of these: {known}."
    )


def _mostly_transcripts(rows: Sequence[Row]) -> bool:
    texts: list[str] = [row["chosen"] for row in rows if isinstance(row.get("chosen"), str)]
    return 2 * sum(t.lstrip().startswith("Human:") for t in texts) > len(texts)


def check_conversion(*, format: str, kind: Kind, place: str) -> None:
    """Raise DatasetError unless rows of a format hold what a kind needs."""
    if format not in FORMATS:
        raise DatasetError(
            f"{place}: unknown dataset_format {format!r}; known: {', '.join(FORMATS)}"
        )
    fits = {"prompts": 0, "answers": 1, "choices": 2}
    needs = {"prompt-only": 0, "prompt-completion": 1, "preference": 2}[kind]
    if fits[FORMATS[format].holds] < needs:
        wanted = {1: "prompt, completion", 2: "prompt, chosen, rejected"}[needs]
        others = [n for n, f in FORMATS.items() if fits[f.holds] >= needs and n != kind]
        raise DatasetError(
            f"{place}: its format is {format} (columns {', '.join(FORMATS[format].columns)}), "
            f"which has no {'better and worse answers' if needs == 2 else 'answers'}; {kind} "
            f"needs the columns {wanted}, or one of the formats {', '.join(others)}."
        )


def convert_row(row: Any, *, format: str, kind: Kind) -> list[Row]:
    """One row as rows of a kind: one, or for ranked completions as many as there are pairs.

    A preference row used for SFT gives what was chosen. Of a dialogue, SFT learns the last
    assistant message; prompt-only keeps everything before a final answer.

    Args:
        row: a dictionary with the columns of `format`.
        format: a name in `FORMATS` that can be converted (see `check_conversion`).
        kind: what the recipe asks for.

    Raises: DatasetError (BadRow) if the row is malformed.
    """
    if not isinstance(row, dict):
        raise BadRow("not a row", f"a row must be an object with columns, got {type(row).__name__}")
    fmt = FORMATS[format]
    parts = fmt.read(row)
    if "messages" in parts:
        parts = _split_answer(parts["messages"], kind)
    used = {*fmt.columns, *fmt.optional} | TRL_COLUMNS
    others = {name: value for name, value in row.items() if name not in used}
    if kind == "prompt-only":
        return [{"prompt": parts["prompt"]} | others]
    if kind == "preference":
        if "completions" in parts:
            others = {"group_id": group_id(parts)} | others
            return [pair | others for pair in ranked_to_pairs(parts)]
        return [parts | others]
    if "completions" in parts:
        return [{"prompt": parts["prompt"], "completion": best_completion(parts)}]
    if fmt.holds == "answers" and row.get("label") is False:
        raise BadRow("a bad answer", "`label` is false: it would be learned as if it were good")
    completion = parts["chosen"] if "chosen" in parts else parts["completion"]
    return [{"prompt": parts["prompt"], "completion": completion}]


def _split_answer(found: list[Message], kind: Kind) -> Row:
    """A dialogue as prompt and last answer; for prompt-only an open question stays whole."""
    if kind == "prompt-only":
        return {"prompt": found[:-1] if found[-1]["role"] == "assistant" else found}
    if len(found) > 1 and found[-1]["role"] == "user":
        found = found[:-1]
    if found[-1]["role"] != "assistant":
        raise BadRow("no assistant message", "the messages must hold an assistant's, got none")
    return {"prompt": found[:-1], "completion": found[-1:]}
