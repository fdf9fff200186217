"""Texts and chat messages of one row: read and checked, or refused with the reason."""

import json
import re
from dataclasses import dataclass
from typing import Any

from toolkit.errors import DatasetError

Message = dict[str, str]
Row = dict[str, Any]

SPEAKERS = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


class BadRow(DatasetError):
    """One row cannot be used; `check` names what it fails, the message says how."""

    def __init__(self, check: str, message: str) -> None:
        super().__init__(message)
        self.check = check


@dataclass(frozen=True)
class Unreadable:
    """Stands for a row that the file's parser could not read, so that row numbers hold."""

    reason: str
    text: str


def shorten(value: Any, *, chars: int = 24, items: int = 4, depth: int = 4) -> Any:
    """`value` with long texts, long lists and deep nesting cut off, marked by an ellipsis."""
    if isinstance(value, str):
        # A lone surrogate, legal in JSON, could not be printed.
        text = value.encode("utf-8", "backslashreplace").decode()
        return text if len(text) <= chars else text[: chars - 1].rstrip() + "…"
    if isinstance(value, list | tuple | dict) and depth == 0:
        return "…"
    inner = {"chars": chars, "items": items, "depth": depth - 1}
    if isinstance(value, list | tuple):
        cut = [shorten(v, **inner) for v in value[:items]]
        return [*cut, "…"] if len(value) > items else cut
    if isinstance(value, dict):
        kept = list(value.items())[: 2 * items]
        short = {shorten(str(k), **inner): shorten(v, **inner) for k, v in kept}
        return short | {"…": "…"} if len(value) > len(kept) else short
    return value


def shown(value: Any) -> str:
    """`value` for an error message: shortened JSON and its type."""
    return f"{as_json(value)} ({type(value).__name__})"


def as_json(value: Any) -> str:
    """`value`, shortened, as one line of JSON."""
    return json.dumps(shorten(value), ensure_ascii=False, default=lambda v: shorten(repr(v)))


def column(row: Row, name: str) -> Any:
    """The value of a column that must be there.

    Raises: BadRow if it is not.
    """
    if name not in row:
        raise BadRow("missing column", f'"{name}" is missing')
    return row[name]


def text(value: Any, name: str) -> str:
    """`value` if it is text that says something.

    Raises: BadRow if it is of another type, blank, or cannot be encoded as UTF-8.
    """
    if not isinstance(value, str):
        raise BadRow("not text", f"{name} must be non-empty text, got {shown(value)}")
    if not value.strip():
        raise BadRow("empty text", f"{name} must be non-empty text, got {shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        found = f"{name} must be Unicode text, got half a surrogate pair at {error.start + 1}"
        raise BadRow("not Unicode", found) from error
    return value


def messages(value: Any, name: str) -> list[Message]:
    """A list of messages with the keys role/content or from/value, as role and content.

    Other keys of a message are left out, but a tool call is refused: without it the rest
    would teach something else.

    Raises: BadRow for another type, an unknown speaker, or a message without text.
    """
    if not isinstance(value, list):
        raise BadRow("not messages", f"{name} must be a list of messages, got {shown(value)}")
    if not value:
        raise BadRow("not messages", f"{name} must hold at least one message, got []")
    return [_message(item, f"{name} message {i}") for i, item in enumerate(value, start=1)]


def _message(item: Any, name: str) -> Message:
    if not isinstance(item, dict):
        wanted = 'must have "role" and "content" (or "from" and "value")'
        raise BadRow("not messages", f"{name} {wanted}, got {shown(item)}")
    who, what = ("from", "value") if "from" in item else ("role", "content")
    speaker = item.get(who)
    if not isinstance(speaker, str) or speaker not in SPEAKERS:
        known = ", ".join(SPEAKERS)
        raise BadRow(
            "unknown speaker", f'{name} "{who}" must be one of {known}, got {shown(speaker)}'
        )
    if item.get("tool_calls"):
        raise BadRow("tool call", f"{name} holds a tool call; only text can be trained on")
    return {"role": SPEAKERS[speaker], "content": text(item.get(what), f'{name} "{what}"')}


def dialogue(value: Any, name: str) -> list[Message]:
    """Messages in order: an optional system message, then user and assistant in turn.

    Raises: BadRow as `messages`, and for any other order.
    """
    found = messages(value, name)
    check_order(found, name)
    return found


def check_order(found: list[Message], name: str) -> None:
    """Raise BadRow unless user and assistant alternate, after at most one system message."""
    start = 1 if found[0]["role"] == "system" else 0
    for i, message in enumerate(found[start:]):
        expected = "assistant" if i % 2 else "user"
        if message["role"] != expected:
            place = f"{name} message {start + i + 1} must be the {expected}'s"
            raise BadRow("roles out of order", f"{place}, got the {message['role']}'s")
    if start == len(found):
        raise BadRow("roles out of order", f"{name} must hold a user message, got only a system's")


def prompt(value: Any, name: str) -> str | list[Message]:
    """A plain text, or messages that end with the user's.

    Raises: BadRow for anything else.
    """
    if not isinstance(value, list):
        return text(value, name)
    found = dialogue(value, name)
    if found[-1]["role"] != "user":
        got = f"{name} must end with a user message, got an assistant's"
        raise BadRow("prompt does not end with the user", got)
    return found


def answer(value: Any, name: str, *, like: Any, wrap: bool = False) -> str | list[Message]:
    """A completion in the style of its prompt: a text, or one assistant message in a list.

    Args:
        value: a text, a message, or a list of one message.
        name: how errors call it.
        like: the prompt; a text wants a text, messages want a message.
        wrap: whether a text after messages is read as an assistant message.

    Raises: BadRow for another style, speaker or number of messages.
    """
    if isinstance(like, str):
        if isinstance(value, list | dict):
            raise BadRow("text and messages mixed", f"{name} must be text, as the prompt is")
        return text(value, name)
    if isinstance(value, str):
        if not wrap:
            raise BadRow("text and messages mixed", f"{name} must be messages, as the prompt is")
        return [{"role": "assistant", "content": text(value, name)}]
    found = messages([value] if isinstance(value, dict) else value, name)
    if len(found) != 1 or found[0]["role"] != "assistant":
        got = ", ".join(m["role"] for m in found[:6])
        raise BadRow(
            "not one assistant message", f"{name} must be one assistant message, got: {got}"
        )
    return found


def transcript(value: Any, name: str) -> list[Message]:
    """The messages of a whole `\\n\\nHuman: …\\n\\nAssistant: …` transcript.

    Raises: BadRow if it has no such turns, a turn is empty or out of order, or the last one is
        not the Assistant's.
    """
    head, *parts = TURN.split(text(value, name))
    if not parts or head.strip():
        wanted = f'{name} must be turns that start with "Human:" and "Assistant:"'
        raise BadRow("not a transcript", f"{wanted}, got {shown(value)}")
    found = []
    for i, (speaker, said) in enumerate(zip(parts[::2], parts[1::2], strict=True), start=1):
        content = text(said.strip(), f"{name} turn {i} ({speaker})")
        found.append({"role": SPEAKERS[speaker.lower()], "content": content})
    check_order(found, name)
    if found[-1]["role"] != "assistant":
        raise BadRow("last turn is not Assistant", f"{name} must end with an Assistant turn")
    return found
