"""Converts a conversation to JSON text and back."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from toolkit.app.answering.chat import Chat, Turn
from toolkit.app.answering.request import Answer
from toolkit.sampling.settings import Drawing

MAX_BYTES = 2 << 20  # 32 turns of nine long answers
MAX_TITLE = 60  # characters
NOT_STORED = ("id", "revision", "earlier")
GONE = "gone: "  # with the name, the id of a checkpoint that is no longer in the catalog


def as_json(chat: Chat) -> str | None:
    """A chat as text, with as many of its earlier states as fit; None if the chat is too long."""
    earlier = [_plain(before) for before in chat.earlier]
    while True:
        text = json.dumps({**_plain(chat), "earlier": earlier})  # ASCII, so one byte per character
        if len(text) <= MAX_BYTES:
            return text
        if not earlier:
            return None
        del earlier[0]


def from_json(text: str, ids: Mapping[str, str]) -> Chat:
    """The chat in a text.

    Args:
        ids: checkpoint ids by name. A name stays the same if the runs folder is moved.

    Raises: ValueError, TypeError, KeyError or AttributeError for any other text.
    """
    values = json.loads(text)
    chat = _chat(values, ids)
    return replace(chat, earlier=tuple(_chat(before, ids) for before in values["earlier"]))


def title(chat: Chat) -> str:
    """The start of the first prompt, in one line."""
    words = " ".join(chat.turns[0].prompt[: 10 * MAX_TITLE].split())
    words = "".join(c for c in words if c.isprintable())  # SQLite stores no unpaired surrogates
    return words if len(words) <= MAX_TITLE else f"{words[: MAX_TITLE - 1]}…"


def _plain(chat: Chat) -> dict[str, Any]:
    values = {k: v for k, v in asdict(replace(chat, earlier=())).items() if k not in NOT_STORED}
    for turn in values["turns"]:
        turn["answers"] = list(turn["answers"].values())
    return values


def _chat(values: dict[str, Any], ids: Mapping[str, str]) -> Chat:
    turns = tuple(_turn(turn, ids) for turn in values["turns"])
    return Chat(turns, str(values["system"]), int(values["columns"]))


def _turn(values: dict[str, Any], ids: Mapping[str, str]) -> Turn:
    answers = [_answer(answer, ids) for answer in values["answers"]]
    sampling = values["sampling"]
    return Turn(
        str(values["prompt"]),
        {answer.checkpoint: answer for answer in answers},
        None if sampling is None else Drawing(**sampling),
        values["reward"],
        str(values.get("base", "")),
    )


def _answer(values: dict[str, Any], ids: Mapping[str, str]) -> Answer:
    name = str(values["name"])
    values = values | {"checkpoint": ids.get(name, GONE + name), "done": True}
    values["ids"], values["notes"] = tuple(values["ids"]), tuple(values["notes"])
    return Answer(**values)
