"""What a visitor asked for, checked and clamped on the server whatever the page let through."""

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

from toolkit.errors import CheckpointError, ConfigError
from toolkit.sampling.settings import Drawing

MAX_PROMPT_CHARACTERS = 8000
MAX_CONVERSATION_CHARACTERS = 32000
MAX_MESSAGES = 64
MAX_NEW_TOKENS = 512
MAX_TEMPERATURE = 2.0
MAX_TOP_K = 1000
MAX_BEAMS = 8
MAX_COLUMNS = 9  # eight checkpoints and the base
MAX_SEED = 2**31 - 1
DEFAULT_TEMPERATURE = 0.7
DEFAULT_NEW_TOKENS = 128
# Logits divided by less overflow in half precision, and the answer is the greedy one anyway.
MIN_TEMPERATURE = 0.05
# Of probability; below it only the likeliest token is left anyway.
MIN_TOP_P = 0.01
SPEAKERS = ("system", "user", "assistant")

Message = dict[str, str]


class Settings(TypedDict, total=False):
    """What may be asked beside prompt and checkpoints, as `checked_request` takes it."""

    reward: object
    system: object
    temperature: object
    top_k: object
    top_p: object
    beams: object
    max_new_tokens: object
    seed: object


@dataclass(frozen=True)
class Request:
    """A conversation for each of several checkpoints; all ids are the catalog's."""

    conversations: tuple[tuple[Message, ...], ...]
    checkpoints: tuple[str, ...]
    reward: str | None
    sampling: Drawing

    @property
    def seed(self) -> int:
        """Where each row's generator starts."""
        return self.sampling.seed

    @property
    def kl_temperature(self) -> float:
        """Where log-probabilities are read: the sampling temperature, or 1 for greedy answers."""
        return (self.sampling.temperature if self.sampling.beams == 1 else 0) or 1.0


def checked_request(
    *,
    prompt: object,
    checkpoints: object,
    reward: object = None,
    system: object = "",
    temperature: object = DEFAULT_TEMPERATURE,
    top_k: object = 0,
    top_p: object = 1.0,
    beams: object = 1,
    max_new_tokens: object = DEFAULT_NEW_TOKENS,
    seed: object = 0,
    known_checkpoints: Container[str],
    known_rewards: Container[str],
) -> Request:
    """Build a request from values that anybody may have sent.

    Numbers that are none (NaN, text, null) become the default, others are moved into range.

    Args:
        prompt: a text, or messages that end with the user's, or such messages by checkpoint id.
        system: put before the messages where it is not empty.

    Raises: CheckpointError for an id that is not in the catalog; ConfigError for an empty or too
        long prompt, or for no or too many checkpoints.
    """
    ids = _checkpoints(checkpoints, known_checkpoints)
    if reward in (None, ""):
        reward = None
    if reward is not None:
        _require_known(reward, known_rewards)
    conversations = tuple(
        _conversation(prompt.get(c) if isinstance(prompt, Mapping) else prompt, system) for c in ids
    )
    chosen = reward if isinstance(reward, str) else None
    return Request(
        conversations,
        ids,
        chosen,
        Drawing(
            max_new_tokens=_whole(max_new_tokens, 1, MAX_NEW_TOKENS, DEFAULT_NEW_TOKENS),
            temperature=_temperature(temperature),
            top_k=_whole(top_k, 0, MAX_TOP_K, 0),
            top_p=clamp(top_p, MIN_TOP_P, 1.0, 1.0),
            beams=_whole(beams, 1, MAX_BEAMS, 1),
            seed=_whole(seed, 0, MAX_SEED, 0),
        ),
    )


def clamp(value: object, low: float, high: float, default: float) -> float:
    """`value` as a number within [low, high]; `default` where it is not a number."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return default
    return default if math.isnan(number) else min(max(number, low), high)


def _whole(value: object, low: int, high: int, default: int) -> int:
    return round(clamp(value, low, high, default))


def _temperature(value: object) -> float:
    number = clamp(value, 0.0, MAX_TEMPERATURE, DEFAULT_TEMPERATURE)
    return number if number >= MIN_TEMPERATURE else 0.0


def _checkpoints(checkpoints: object, known: Container[str]) -> tuple[str, ...]:
    wanted = checkpoints if isinstance(checkpoints, Sequence) else ()
    wanted = [wanted] if isinstance(wanted, str) else list(wanted)
    for key in wanted:
        _require_known(key, known)
    if not wanted:
        raise ConfigError("choose at least one checkpoint")
    ids = tuple(dict.fromkeys(str(w) for w in wanted))
    if len(ids) > MAX_COLUMNS:
        raise ConfigError(f"choose at most {MAX_COLUMNS} checkpoints, not {len(ids)}")
    return ids


def _require_known(key: object, known: Container[str]) -> None:
    if not isinstance(key, str) or key not in known:
        raise CheckpointError(f"no checkpoint {str(key)[:40]!r} is known; reload the page")


def _conversation(value: object, system: object) -> tuple[Message, ...]:
    """Checked messages, the system's first, the user's last."""
    turns = value if isinstance(value, list | tuple) else [{"role": "user", "content": value}]
    if len(turns) > MAX_MESSAGES:
        raise ConfigError(
            f"the conversation has {len(turns)} messages; the limit is {MAX_MESSAGES}: clear it"
        )
    messages = []
    for turn in turns:
        if not isinstance(turn, Mapping) or turn.get("role") not in SPEAKERS:
            raise ConfigError(
                f"a message needs a role out of {', '.join(SPEAKERS)}, got {str(turn)[:80]!r}"
            )
        messages.append({"role": str(turn["role"]), "content": _text(turn.get("content"))})
    if not messages or messages[-1]["role"] != "user" or not messages[-1]["content"].strip():
        raise ConfigError("write a prompt first")
    if _text(system).strip():
        messages.insert(0, {"role": "system", "content": _text(system)})
    total = sum(len(m["content"]) for m in messages)
    if total > MAX_CONVERSATION_CHARACTERS:
        raise ConfigError(
            f"the conversation has {total} characters; the limit is "
            f"{MAX_CONVERSATION_CHARACTERS}: clear it"
        )
    return tuple(messages)


def _text(value: object) -> str:
    """Text that a tokenizer can encode; anything else is empty."""
    text = value if isinstance(value, str) else ""
    if len(text) > MAX_PROMPT_CHARACTERS:
        raise ConfigError(
            f"the prompt has {len(text)} characters; the limit is {MAX_PROMPT_CHARACTERS}"
        )
    # half of a surrogate pair is valid JSON, but no tokenizer can encode it; NUL ends C's strings
    return (
        text.encode("utf-8", "replace").decode("utf-8").replace("\0", "\N{REPLACEMENT CHARACTER}")
    )
