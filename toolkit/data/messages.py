"""Texts and chat messages of one row: checked, and returned in TRL's form."""

import re
from typing import Any

from toolkit.data.row_errors import RowError
from toolkit.data.values import KNOWN_FLAGS, as_flag, is_unclear, says_bad

Message = dict[str, str]
Row = dict[str, Any]

SPEAKERS = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
THOUGHT, END_OF_THOUGHT = "<think>", "</think>"
THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking")
# Keys of a message that say whether its answer is learned. With the second kind, true means that
# it is not.
LOSS_KEYS = {"weight", "train", "training", "trainable", "train_on_turn", "learn"}
LOSS_KEYS |= {"loss", "loss_mask", "loss_weight"}
MASK_KEYS = {"mask", "masked", "ignore"}
# Keys of a message that change it, and that training on text cannot read.
UNREADABLE_KEYS = {"tool_calls", "function_call", "tools", "functions", "images", "image"}
UNREADABLE_KEYS |= {"videos", "video", "audios", "audio", "train_detail", "training_detail"}
LINE_END = r"(?:\r\n|\r(?!\n)|\n)"
TURN = re.compile(rf"(?:\A\s*|{LINE_END}[ \t]*{LINE_END})(Human|Assistant):")


def user(content: str) -> Message:
    """A user message."""
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    """An assistant message."""
    return {"role": "assistant", "content": content}


def get_column(row: Row, name: str) -> Any:
    """The value of a required column.

    Raises: RowError if the row does not have it.
    """
    if name not in row:
        raise RowError("missing column", f'"{name}" is missing')
    return row[name]


def as_text(value: Any, name: str) -> str:
    """`value` if it is non-empty text.

    Raises: RowError for another type, blank text, or text that cannot be encoded as UTF-8.
    """
    if not isinstance(value, str):
        raise RowError("not text", f"{name} must be non-empty text", value)
    if not value.strip():
        raise RowError("empty text", f"{name} must be non-empty text", value)
    try:
        if not value.isascii():
            value.encode()
    except UnicodeEncodeError as error:
        problem = f"{name} must be Unicode text, got half a surrogate pair at {error.start + 1}"
        raise RowError("not Unicode", problem) from error
    return value


def as_messages(value: Any, name: str) -> list[Message]:
    """Messages with the keys role and content, from a list with role/content or from/value.

    A blank system message is left out. A thought in its own key ("reasoning_content") is put before
    the content, in `<think>`. Other keys are left out. A tool call or an image raises an error,
    because the dialogue would have another meaning without it.

    Raises: RowError for another type, an unknown speaker, or a message without text.
    """
    if not isinstance(value, list):
        raise RowError("not messages", f"{name} must be a list of messages", value)
    items = _spoken(value)
    if not items:
        raise RowError("not messages", f"{name} must contain at least one message", value)
    return [_as_message(item, f"{name} message {i}") for i, item in enumerate(items, start=1)]


def learned(value: list[Any], name: str) -> list[bool]:
    """For each message that `as_messages` returns, whether it is an answer that carries a loss.

    An answer with `weight: 0`, `train: false` or `mask: true` is only context for later ones.

    Raises: RowError for another weight.
    """
    return [
        SPEAKERS[item.get("from", item.get("role"))] == "assistant"
        and _has_loss(item, f"{name} message {i}")
        for i, item in enumerate(_spoken(value), start=1)
    ]


def _has_loss(message: Row, name: str) -> bool:
    """Whether an answer carries a loss: no key of the message excludes it."""
    found = True
    for key, value in message.items():
        if is_blank(value):
            continue
        if is_unclear(key, value):
            raise RowError("not a flag", f'{name} "{key}" must be {KNOWN_FLAGS}', value)
        if says_bad(key, value):
            problem = f'{name} "{key}" marks the answer as bad; set its weight to 0 or remove it'
            raise RowError("a bad answer", problem, value)
        if key not in LOSS_KEYS | MASK_KEYS:
            continue
        flag = as_flag(value)
        if flag is None or (key in MASK_KEYS and not isinstance(value, bool)):
            allowed = "true or false" if key in MASK_KEYS else "0 or 1"
            raise RowError("not a weight", f'{name} "{key}" must be {allowed}', value)
        found = found and flag == (key in LOSS_KEYS)
    return found


def is_blank(value: Any) -> bool:
    """Whether a value is empty: null, blank text, or an empty list or object."""
    if isinstance(value, str):
        return not value or value.isspace()
    return value is None or value in ([], {})


def is_absent(value: Any) -> bool:
    """Whether a list of tools, calls or images is empty, perhaps as JSON text."""
    empty = isinstance(value, str) and "".join(value.split()) in ("[]", "{}", "null")
    return empty or is_blank(value)


def _spoken(value: list[Any]) -> list[Any]:
    """The messages without a blank system message."""
    return [item for item in value if not (isinstance(item, dict) and _is_blank_system(item))]


def _is_blank_system(item: Row) -> bool:
    speaker, content = ("from", "value") if "from" in item else ("role", "content")
    return item.get(speaker) == "system" and is_blank(_join_parts(item.get(content)))


def _as_message(item: Any, name: str) -> Message:
    if not isinstance(item, dict):
        expected = 'must have "role" and "content" (or "from" and "value")'
        raise RowError("not messages", f"{name} {expected}", item)
    speaker_key, content_key = ("from", "value") if "from" in item else ("role", "content")
    speaker = item.get(speaker_key)
    if not isinstance(speaker, str) or speaker not in SPEAKERS:
        expected = f'"{speaker_key}" must be one of {", ".join(SPEAKERS)}'
        raise RowError("unknown speaker", f"{name} {expected}", speaker)
    for key, value in item.items():
        if key in UNREADABLE_KEYS and not is_absent(value):
            what = "a tool call" if key in ("tool_calls", "function_call") else f'"{key}"'
            raise RowError("tool call", f"{name} contains {what}; training supports only text")
    content = as_text(_join_parts(item.get(content_key)), f'{name} "{content_key}"')
    return {"role": SPEAKERS[speaker], "content": _with_thought(item, content, name)}


def _with_thought(item: Row, content: str, name: str) -> str:
    """The content; if a key of the message holds a thought, the thought comes first."""
    thoughts = [(key, item[key]) for key in THOUGHT_KEYS if item.get(key)]
    if not thoughts or END_OF_THOUGHT in content:
        return content
    key, thought = thoughts[0]
    thought = as_text(thought, f'{name} "{key}"').strip()
    return f"{THOUGHT}\n{thought}\n{END_OF_THOUGHT}\n\n{content}"


def _join_parts(content: Any) -> Any:
    """The text of `[{"type": "text", "text": …}, …]`; other content stays as it is."""
    if not isinstance(content, list) or not content:
        return content
    if any(not isinstance(part, dict) or part.get("type") != "text" for part in content):
        return content
    texts = [part.get("text") for part in content]
    return content if None in texts else "".join(map(str, texts))


def as_dialogue(value: Any, name: str) -> list[Message]:
    """Messages in order: an optional system message, then user and assistant in turn.

    Raises: RowError for the reasons of `as_messages`, and for any other order.
    """
    messages = as_messages(value, name)
    check_order(messages, name)
    return messages


def check_order(messages: list[Message], name: str) -> None:
    """Raise RowError unless user and assistant alternate after at most one system message."""
    start = 1 if messages[0]["role"] == "system" else 0
    for i, message in enumerate(messages[start:]):
        expected = "assistant" if i % 2 else "user"
        if message["role"] != expected:
            problem = f"must have the role {expected}, got {message['role']}"
            raise RowError("roles out of order", f"{name} message {start + i + 1} {problem}")
    if start == len(messages):
        problem = f"{name} must contain a user message, got only a system message"
        raise RowError("roles out of order", problem)


def as_prompt(value: Any, name: str) -> str | list[Message]:
    """Plain text, or messages that end with a user message.

    Raises: RowError for anything else.
    """
    if not isinstance(value, list):
        return as_text(value, name)
    messages = as_dialogue(value, name)
    if messages[-1]["role"] != "user":
        problem = f"{name} must end with a user message, got an assistant message"
        raise RowError("prompt does not end with the user", problem)
    return messages


def as_completion(
    value: Any, name: str, *, prompt: str | list[Message], wrap: bool = False
) -> str | list[Message]:
    """A completion of the same type as its prompt: a text, or one assistant message in a list.

    Args:
        value: a text, a message, or a list: one message, or the prompt's messages and one more.
        name: the completion's name in error messages.
        prompt: the row's prompt; a text needs a text, messages need a message.
        wrap: turn a text after a prompt of messages into an assistant message.

    Raises: RowError for another type, another speaker or several messages.
    """
    if isinstance(prompt, str):
        if isinstance(value, list | dict):
            raise RowError("text and messages mixed", f"{name} must be text, like the prompt")
        return as_text(value, name)
    if isinstance(value, str):
        if not wrap:
            raise RowError("text and messages mixed", f"{name} must be messages, like the prompt")
        return [assistant(as_text(value, name))]
    value = [value] if isinstance(value, dict) else value
    messages = as_messages(value, name)
    if len(messages) > 1 and messages[:-1] == prompt:  # a whole dialogue
        messages = messages[-1:]
    if not learned(value, name)[-1] and messages[-1]["role"] == "assistant":
        problem = f"{name} must be trained on, but has weight 0; remove the weight, or the row"
        raise RowError("an answer without loss", problem)
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        speakers = ", ".join(m["role"] for m in messages[:6])
        problem = f"{name} must be one assistant message, got: {speakers}"
        raise RowError("not one assistant message", problem)
    return messages


def parse_transcript(value: Any, name: str) -> list[Message]:
    """The messages of a `\\n\\nHuman: …\\n\\nAssistant: …` transcript.

    Raises: RowError if there are no such turns, a turn is empty or out of order, or the last turn
        is not the Assistant's.
    """
    head, *parts = TURN.split(as_text(value, name))
    if not parts or head.strip():
        expected = f'{name} must consist of turns that start with "Human:" and "Assistant:"'
        raise RowError("not a transcript", expected, value)
    messages = []
    for i, (speaker, turn) in enumerate(zip(parts[::2], parts[1::2], strict=True), start=1):
        content = as_text(turn.strip(), f"{name} turn {i} ({speaker})")
        messages.append({"role": SPEAKERS[speaker.lower()], "content": content})
    check_order(messages, name)
    if messages[-1]["role"] != "assistant":
        raise RowError("last turn is not Assistant", f"{name} must end with an Assistant turn")
    return messages
