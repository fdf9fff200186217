"""One reader per format: a row's columns in, prompt and answers out, or BadRow.

Each returns one of these, with texts or messages as the row has them:

    {"prompt"}, {"prompt", "completion"}, {"prompt", "completion", "label"},
    {"prompt", "chosen", "rejected"}, {"messages"}, {"text"}
"""

import re
from typing import Any

from toolkit.data.messages import (
    BadRow,
    Message,
    Row,
    answer,
    column,
    dialogue,
    prompt,
    shown,
    text,
    transcript,
)

WORD = re.compile(r"\s*\S+")


def read_prompt(row: Row) -> Row:
    """A prompt alone."""
    return {"prompt": prompt(column(row, "prompt"), '"prompt"')}


def read_prompt_completion(row: Row) -> Row:
    """A prompt and its completion, both text or both messages."""
    asked = prompt(column(row, "prompt"), '"prompt"')
    return {
        "prompt": asked,
        "completion": answer(column(row, "completion"), '"completion"', like=asked),
    }


LABELS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def is_label(value: Any) -> bool:
    """Whether a value says good or bad: true or false, 1 or 0; as text too, for CSV has no other."""
    return isinstance(value, bool | int | float | str) and str(value).strip().lower() in LABELS


def read_unpaired(row: Row) -> Row:
    """A prompt, one completion, and whether it is good."""
    found = read_prompt_completion(row)
    label = column(row, "label")
    if not is_label(label):
        raise BadRow("not a label", f'"label" must be true or false, got {shown(label)}')
    return found | {"label": LABELS[str(label).strip().lower()]}


def read_text(row: Row) -> Row:
    """A text without a prompt."""
    return {"text": text(column(row, "text"), '"text"')}


def read_messages(row: Row) -> Row:
    """A whole dialogue."""
    return {"messages": dialogue(column(row, "messages"), '"messages"')}


def read_preference(row: Row) -> Row:
    """A prompt and two completions; or, beside a text, two dialogues that hold it."""
    asked, chosen, rejected = (column(row, name) for name in ("prompt", "chosen", "rejected"))
    if isinstance(asked, str) and _is_dialogue(chosen) and _is_dialogue(rejected):
        # UltraFeedback's way: the prompt as text, and again at the head of both dialogues.
        found = read_implicit(row)
        if found["prompt"][-1]["content"].strip() != text(asked, '"prompt"').strip():
            differs = '"prompt" must be the last user message of "chosen"; it differs'
            raise BadRow("no shared prompt", differs)
        return found
    asked = prompt(asked, '"prompt"')
    return {"prompt": asked} | _pair(
        answer(chosen, '"chosen"', like=asked), answer(rejected, '"rejected"', like=asked)
    )


def _is_dialogue(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 1


def read_implicit(row: Row) -> Row:
    """Two texts or two dialogues whose shared head is the prompt."""
    chosen, rejected = column(row, "chosen"), column(row, "rejected")
    if isinstance(chosen, str) and isinstance(rejected, str):
        return _split_texts(text(chosen, '"chosen"'), text(rejected, '"rejected"'))
    if isinstance(chosen, str) or isinstance(rejected, str):
        mixed = '"chosen" and "rejected" must both be text or both be messages'
        raise BadRow("text and messages mixed", mixed)
    return _split_dialogues(dialogue(chosen, '"chosen"'), dialogue(rejected, '"rejected"'))


def _split_texts(chosen: str, rejected: str) -> Row:
    """The words that both texts start with as the prompt; a word is never cut in two."""
    words, others = WORD.findall(chosen), WORD.findall(rejected)
    shared = 0
    while shared < min(len(words), len(others)) - 1 and words[shared] == others[shared]:
        shared += 1
    if not shared:
        wanted = '"chosen" and "rejected" must start with the same words (the prompt)'
        raise BadRow("no shared prompt", f'{wanted}, or stand beside a "prompt" column')
    at = len("".join(words[:shared]))
    return {"prompt": chosen[:at]} | _pair(chosen[at:], rejected[at:])


def _split_dialogues(chosen: list[Message], rejected: list[Message]) -> Row:
    """The shared messages as the prompt; only the last, an assistant's, may differ."""
    for name, found in (("chosen", chosen), ("rejected", rejected)):
        if found[-1]["role"] != "assistant":
            ends = f'"{name}" must end with an assistant message'
            raise BadRow("does not end with the assistant", ends)
    if chosen[:-1] != rejected[:-1]:
        pairs = zip(chosen[:-1], rejected[:-1], strict=False)
        first = next((i for i, (a, b) in enumerate(pairs, start=1) if a != b), None)
        got = f"they differ at message {first}" if first else f"{len(chosen)} and {len(rejected)}"
        wanted = '"chosen" and "rejected" must share every message but the last'
        raise BadRow("no shared prompt", f"{wanted}, got: {got}")
    return {"prompt": chosen[:-1]} | _pair(chosen[-1:], rejected[-1:])


def _pair(chosen: Any, rejected: Any) -> Row:
    if chosen == rejected:
        raise BadRow("chosen equals rejected", '"chosen" and "rejected" must differ, got the same')
    a, b = (side if isinstance(side, str) else side[0]["content"] for side in (chosen, rejected))
    if a.strip() == b.strip():
        got = '"chosen" and "rejected" must differ, got the same but for blanks at an end'
        raise BadRow("chosen equals rejected", got)
    return {"chosen": chosen, "rejected": rejected}


def _system(row: Row) -> list[Message]:
    """LLaMA-Factory keeps a system message in a column of its own, often empty."""
    if row.get("system") in (None, ""):
        return []
    return [{"role": "system", "content": text(row["system"], '"system"')}]


def _instruction(row: Row) -> list[Message]:
    """The messages before an answer: system, the turns of `history`, instruction and input."""
    asked = text(column(row, "instruction"), '"instruction"')
    extra = row.get("input")
    if extra is not None and not isinstance(extra, str):
        text(extra, '"input"')  # raises
    if extra and extra.strip():
        asked += "\n\n" + text(extra, '"input"')
    found = _system(row)
    for i, turn in enumerate(_history(row), start=1):
        said = [text(value, f'"history" {i}') for value in turn]
        found += [{"role": "user", "content": said[0]}, {"role": "assistant", "content": said[1]}]
    return [*found, {"role": "user", "content": asked}]


def _history(row: Row) -> list[Any]:
    """Earlier turns as LLaMA-Factory writes them: `[[asked, answered], …]`."""
    turns = row.get("history")
    if turns in (None, "", []):
        return []
    if not isinstance(turns, list) or any(not isinstance(t, list) or len(t) != 2 for t in turns):
        wanted = '"history" must be a list of [question, answer]'
        raise BadRow("not a history", f"{wanted}, got {shown(turns)}")
    return turns


def read_alpaca(row: Row) -> Row:
    """An instruction, with its input after a blank line, and the output."""
    asked = _instruction(row)
    completion = text(column(row, "output"), '"output"')
    return {"prompt": asked, "completion": [{"role": "assistant", "content": completion}]}


def read_alpaca_preference(row: Row) -> Row:
    """An instruction as in `read_alpaca`, and two answers."""
    asked = _instruction(row)
    chosen = answer(column(row, "chosen"), '"chosen"', like=asked, wrap=True)
    rejected = answer(column(row, "rejected"), '"rejected"', like=asked, wrap=True)
    return {"prompt": asked} | _pair(chosen, rejected)


def _conversations(row: Row) -> list[Message]:
    found = dialogue(column(row, "conversations"), '"conversations"')
    return found if found[0]["role"] == "system" else _system(row) + found


def read_sharegpt(row: Row) -> Row:
    """A whole dialogue of "human" and "gpt"."""
    return {"messages": _conversations(row)}


def read_sharegpt_preference(row: Row) -> Row:
    """A dialogue that ends with the human, and two answers."""
    asked = prompt(_conversations(row), '"conversations"')
    chosen = answer(column(row, "chosen"), '"chosen"', like=asked, wrap=True)
    rejected = answer(column(row, "rejected"), '"rejected"', like=asked, wrap=True)
    return {"prompt": asked} | _pair(chosen, rejected)


def read_hh(row: Row) -> Row:
    """Two transcripts that share all but the last Assistant turn."""
    chosen = transcript(column(row, "chosen"), '"chosen"')
    return _split_dialogues(chosen, transcript(column(row, "rejected"), '"rejected"'))
