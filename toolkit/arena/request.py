"""What a visitor asked for, checked and clamped on the server whatever the page let through."""

import math
from collections.abc import Container, Sequence
from dataclasses import dataclass

from toolkit.errors import CheckpointError, ConfigError
from toolkit.models.generation import Sampling

MAX_PROMPT_CHARACTERS = 8000
MAX_NEW_TOKENS = 512
MAX_TEMPERATURE = 2.0
MAX_COLUMNS = 6
MAX_SEED = 2**31 - 1
DEFAULT_TEMPERATURE = 0.7
DEFAULT_NEW_TOKENS = 128
# Logits divided by less overflow in half precision, and the answer is the greedy one anyway.
MIN_TEMPERATURE = 0.05


@dataclass(frozen=True)
class Request:
    """One prompt for several checkpoints; all ids are the catalog's."""

    prompt: str
    checkpoints: tuple[str, ...]
    reward: str | None
    sampling: Sampling
    seed: int

    @property
    def kl_temperature(self) -> float:
        """Where log-probabilities are read: the sampling temperature, or 1 for greedy answers."""
        return self.sampling.temperature or 1.0


def checked_request(
    *,
    prompt: object,
    checkpoints: object,
    reward: object = None,
    temperature: object = DEFAULT_TEMPERATURE,
    max_new_tokens: object = DEFAULT_NEW_TOKENS,
    seed: object = 0,
    known_checkpoints: Container[str],
    known_rewards: Container[str],
) -> Request:
    """Build a request from values that anybody may have sent.

    Numbers that are none (NaN, text, null) become the default, others are moved into range.

    Raises: CheckpointError for an id that is not in the catalog; ConfigError for an empty or too
        long prompt, or for no or too many checkpoints.
    """
    wanted = checkpoints if isinstance(checkpoints, Sequence) else ()
    wanted = [wanted] if isinstance(wanted, str) else list(wanted)
    if reward in (None, ""):
        reward = None
    scorers = [] if reward is None else [reward]
    for given, known in [(wanted, known_checkpoints), (scorers, known_rewards)]:
        for key in given:
            if not isinstance(key, str) or key not in known:
                raise CheckpointError(f"no checkpoint {str(key)[:40]!r} is known; reload the page")
    if not wanted:
        raise ConfigError("choose at least one checkpoint")
    ids = tuple(dict.fromkeys(str(w) for w in wanted))
    if len(ids) > MAX_COLUMNS:
        raise ConfigError(f"choose at most {MAX_COLUMNS} checkpoints, not {len(ids)}")
    sampling = Sampling(
        max_new_tokens=round(clamp(max_new_tokens, 1, MAX_NEW_TOKENS, DEFAULT_NEW_TOKENS)),
        temperature=_temperature(temperature),
    )
    seed_number = round(clamp(seed, 0, MAX_SEED, 0))
    chosen = reward if isinstance(reward, str) else None
    return Request(_prompt(prompt), ids, chosen, sampling, seed_number)


def clamp(value: object, low: float, high: float, default: float) -> float:
    """`value` as a number within [low, high]; `default` where it is not a number."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return default
    return default if math.isnan(number) else min(max(number, low), high)


def _temperature(value: object) -> float:
    number = clamp(value, 0.0, MAX_TEMPERATURE, DEFAULT_TEMPERATURE)
    return number if number >= MIN_TEMPERATURE else 0.0


def _prompt(value: object) -> str:
    text = value if isinstance(value, str) else ""
    if not text.strip():
        raise ConfigError("write a prompt first")
    if len(text) > MAX_PROMPT_CHARACTERS:
        raise ConfigError(
            f"the prompt has {len(text)} characters; the limit is {MAX_PROMPT_CHARACTERS}"
        )
    # half of a surrogate pair is valid JSON, but no tokenizer can encode it
    return text.encode("utf-8", "replace").decode("utf-8")
