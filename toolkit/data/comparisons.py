"""Readers of comparisons: a prompt with a better and a worse completion, in one of several forms."""

import re
from collections.abc import Sequence
from typing import Any

from toolkit.data.messages import (
    Message,
    Row,
    as_completion,
    as_dialogue,
    as_messages,
    as_prompt,
    as_text,
    check_order,
    get_column,
    is_blank,
    parse_transcript,
)
from toolkit.data.row_errors import RowError

WORD = re.compile(r"\s*\S+")


def read_preference(row: Row) -> Row:
    """A prompt and two completions; each may be a dialogue that starts with the prompt."""
    prompt, chosen, rejected = (get_column(row, name) for name in ("prompt", "chosen", "rejected"))
    prompt = as_prompt(prompt, '"prompt"')
    if not (_is_dialogue(chosen) and _is_dialogue(rejected)):
        return comparison(row, prompt)
    if isinstance(prompt, list):
        return _split_dialogues(
            _continue(prompt, chosen, '"chosen"'), _continue(prompt, rejected, '"rejected"')
        )
    parts = read_implicit(row)  # as in UltraFeedback
    _check_prompt(prompt, parts["prompt"])
    return parts


def _is_dialogue(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 1


def _continue(prompt: list[Message], value: Any, name: str) -> list[Message]:
    """The prompt and the messages after it; a repeated prompt at their beginning is left out."""
    messages = as_messages(value, name)
    for start in (prompt, prompt[prompt[0]["role"] == "system" :]):
        if messages[: len(start)] == start:
            messages = messages[len(start) :]
            break
    check_order(prompt + messages, name)
    return prompt + messages


def _check_prompt(prompt: str, messages: list[Message]) -> None:
    """Raise RowError unless a text prompt is the first or the last question of a dialogue."""
    questions = [message["content"].strip() for message in messages if message["role"] == "user"]
    if prompt.strip() not in (questions[0], questions[-1]):
        problem = '"prompt" must be the first or last user message of "chosen"; it differs'
        raise RowError("no shared prompt", problem)


def comparison(row: Row, prompt: str | list[Message], *, wrap: bool = False) -> Row:
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
    """Split off the shared first words as the prompt; a word is never cut in two."""
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
    """Split off the shared messages as the prompt; only the last ones, the answers, may differ."""
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
    """Two transcripts that differ only in the last Assistant turn; `prompt` is optional."""
    chosen = parse_transcript(get_column(row, "chosen"), '"chosen"')
    rejected = parse_transcript(get_column(row, "rejected"), '"rejected"')
    parts = _split_dialogues(chosen, rejected)
    prompt = row.get("prompt")
    if is_blank(prompt):
        return parts
    prompt = as_prompt(prompt, '"prompt"')
    if isinstance(prompt, list):
        if parts["prompt"][: len(prompt)] != prompt:
            problem = '"prompt" must be the beginning of "chosen", but it differs'
            raise RowError("no shared prompt", problem)
    elif not row["chosen"].strip().startswith(prompt.strip()):
        _check_prompt(prompt, parts["prompt"])
    return parts


def has_transcripts(rows: Sequence[Row]) -> bool:
    texts: list[str] = [row["chosen"] for row in rows if isinstance(row.get("chosen"), str)]
    return 2 * sum(text.lstrip().startswith("Human:") for text in texts) > len(texts)
