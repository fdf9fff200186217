"""Examples of reward functions.

toolkit ppo ... --value_role head --reward_funcs toolkit.reward.examples:positive_tone
toolkit ppo ... --value_role head --reward_funcs toolkit.reward.examples:short_sentence
toolkit grpo ... --reward_model ... --reward_funcs toolkit.reward.examples:correct_sum
"""

import functools
import re
from collections.abc import Sequence
from typing import Any

from toolkit.errors import ConfigError
from toolkit.world.gold import features

SENTENCE = re.compile(r"[^.!?\n]+\.")


def positive_tone(prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:
    """The tone of each answer: VADER's compound score, between −1 (negative) and 1 (positive).

    VADER is a lexicon with rules (Hutto and Gilbert 2014), so a reader can check each score by eye.

    Raises: ConfigError if the package vaderSentiment is not installed.
    """
    return [float(_vader().polarity_scores(_text(c))["compound"]) for c in completions]


def short_sentence(prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:
    """The format of each answer: 1 for one sentence of 3 to 12 words that ends with a full stop, else 0."""
    texts = [_text(completion).strip() for completion in completions]
    return [float(bool(SENTENCE.fullmatch(t)) and 3 <= len(t.split()) <= 12) for t in texts]


def correct_sum(prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float | None]:
    """A verifiable reward on the embedded world: 1 for the right sum, 0 for another answer.

    None for a prompt that asks for no sum.
    """
    answers = [features(_text(p), _text(c)) for p, c in zip(prompts, completions, strict=True)]
    return [float(f.correct) if f.kind == "sum" else None for f in answers]


def _text(completion: Any) -> str:
    """A prompt or completion as text; it is text or messages."""
    return completion if isinstance(completion, str) else str(completion[-1]["content"])


@functools.cache
def _vader() -> Any:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as error:
        raise ConfigError(
            "positive_tone: the package vaderSentiment is missing; run `pip install vaderSentiment`"
        ) from error
    return SentimentIntensityAnalyzer()
