"""A visitor's request, validated on the server, and a checkpoint's answer to it."""

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
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
MIN_TEMPERATURE = 0.05  # logits divided by less overflow in half precision; lower means greedy
MIN_TOP_P = 0.01  # a smaller share of probability keeps only the most likely token
SPEAKERS = ("system", "user", "assistant")

Message = dict[str, str]


class Settings(TypedDict, total=False):
    """Optional arguments of `checked_request`."""

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
    """A validated request: one conversation for each checkpoint. All ids are in the catalog."""

    conversations: tuple[tuple[Message, ...], ...]
    checkpoints: tuple[str, ...]
    reward: str | None
    sampling: Drawing

    @property
    def kl_temperature(self) -> float:
        """The temperature for KL: the sampling temperature, or 1 for greedy and beam search."""
        return (self.sampling.temperature if self.sampling.beams == 1 else 0) or 1.0


@dataclass(frozen=True)
class Answer:
    """The answer of one checkpoint: complete, or partial if `done` is False.

    Attributes:
        checkpoint: id of the checkpoint; `name` is its name on the page.
        tokens: the number of tokens, the end token included; `ids` are these tokens.
        ended: whether the model ended the answer itself.
        score: the reward model's scalar at the last token.
        z: standard deviations of the score above the mean of `z_source`.
        kl: Σ over the tokens of log π − log π_ref, in nats; as a one-sample estimate it may be negative.
        reference: the name of π_ref.
        notes: why a number is missing.
        problem: why there is no answer.
        speed: tokens per second, including the time of the prefill.
        adapter: sha256 of the weights file that generated the answer, None for the base.
    """

    checkpoint: str
    name: str
    text: str = ""
    tokens: int = 0
    ended: bool = False
    score: float | None = None
    kl: float | None = None
    reference: str = ""
    notes: tuple[str, ...] = ()
    problem: str | None = None
    z: float | None = None
    z_source: str = ""
    done: bool = True
    ids: tuple[int, ...] = field(default=(), repr=False)
    speed: float | None = field(default=None, compare=False)
    adapter: str | None = field(default=None, repr=False)


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
    """Build a request from untrusted values.

    Values that are not numbers (NaN, text, null) become the default. Numbers are clamped to their range.

    Args:
        prompt: a text, or messages that end with a user message, or such messages by checkpoint id.
        system: a system message, put first unless it is empty.

    Raises: CheckpointError for an id that is not in the catalog; ConfigError for an empty or too
        long prompt, or for no or too many checkpoints.
    """
    ids = _checkpoints(checkpoints, known_checkpoints)
    reward = None if reward in (None, "") else _known(reward, known_rewards)
    conversations = tuple(
        _conversation(prompt.get(c) if isinstance(prompt, Mapping) else prompt, system) for c in ids
    )
    return Request(
        conversations,
        ids,
        reward,
        Drawing(
            max_new_tokens=clamp_new_tokens(max_new_tokens),
            temperature=clamp_temperature(temperature),
            top_k=_whole(top_k, 0, MAX_TOP_K, 0),
            top_p=clamp(top_p, MIN_TOP_P, 1.0, 1.0),
            beams=_whole(beams, 1, MAX_BEAMS, 1),
            seed=_whole(seed, 0, MAX_SEED, 0),
        ),
    )


def clamp(value: object, low: float, high: float, default: float) -> float:
    """`value` as a number in [low, high], or `default` if it is not a number."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return default
    return default if math.isnan(number) else min(max(number, low), high)


def _whole(value: object, low: int, high: int, default: int) -> int:
    return round(clamp(value, low, high, default))


def clamp_temperature(value: object) -> float:
    """A sampling temperature in its range; 0 is greedy."""
    number = clamp(value, 0.0, MAX_TEMPERATURE, DEFAULT_TEMPERATURE)
    return number if number >= MIN_TEMPERATURE else 0.0


def clamp_new_tokens(value: object) -> int:
    """The length limit of an answer in its range."""
    return _whole(value, 1, MAX_NEW_TOKENS, DEFAULT_NEW_TOKENS)


def _checkpoints(values: object, known: Container[str]) -> tuple[str, ...]:
    values = [values] if isinstance(values, str) else values
    keys = list(values) if isinstance(values, Sequence) else []
    if not keys:
        raise ConfigError("choose at least one checkpoint")
    ids = tuple(dict.fromkeys(_known(key, known) for key in keys))
    if len(ids) > MAX_COLUMNS:
        raise ConfigError(f"choose at most {MAX_COLUMNS} checkpoints, not {len(ids)}")
    return ids


def _known(key: object, known: Container[str]) -> str:
    if not isinstance(key, str) or key not in known:
        raise CheckpointError(f"unknown checkpoint {str(key)[:40]!r}; reload the page")
    return key


def _conversation(value: object, system: object) -> tuple[Message, ...]:
    """The validated messages: an optional system message first, a user message last."""
    turns = value if isinstance(value, list | tuple) else [{"role": "user", "content": value}]
    if len(turns) > MAX_MESSAGES:
        raise ConfigError(
            f"a conversation has at most {MAX_MESSAGES} messages, got {len(turns)}; start a new one"
        )
    messages = []
    for turn in turns:
        if not isinstance(turn, Mapping) or turn.get("role") not in SPEAKERS:
            raise ConfigError(
                f"the role of a message must be one of {', '.join(SPEAKERS)}, got {str(turn)[:80]!r}"
            )
        messages.append({"role": str(turn["role"]), "content": _text(turn.get("content"))})
    if not messages or messages[-1]["role"] != "user" or not messages[-1]["content"].strip():
        raise ConfigError("write a prompt first")
    if _text(system).strip():
        messages.insert(0, {"role": "system", "content": _text(system)})
    total = sum(len(m["content"]) for m in messages)
    if total > MAX_CONVERSATION_CHARACTERS:
        raise ConfigError(
            f"the conversation has {total} characters, at most {MAX_CONVERSATION_CHARACTERS} are "
            "allowed; start a new one"
        )
    return tuple(messages)


def _text(value: object) -> str:
    """The text, with characters that a tokenizer cannot encode replaced; "" for other types."""
    text = value if isinstance(value, str) else ""
    if len(text) > MAX_PROMPT_CHARACTERS:
        raise ConfigError(
            f"the text has {len(text)} characters, at most {MAX_PROMPT_CHARACTERS} are allowed; "
            "shorten it"
        )
    # half of a surrogate pair is valid JSON, but no tokenizer can encode it; NUL ends a C string
    return (
        text.encode("utf-8", "replace").decode("utf-8").replace("\0", "\N{REPLACEMENT CHARACTER}")
    )
