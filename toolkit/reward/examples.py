"""An example of a reward function, which needs no reward model.

toolkit ppo ... --value_role head --reward_funcs toolkit.reward.examples:positive_tone
"""

import functools
from collections.abc import Sequence
from typing import Any

from toolkit.errors import ConfigError


def positive_tone(prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:
    """The tone of each answer: VADER's compound score, between −1 (negative) and 1 (positive).

    VADER is a lexicon with rules (Hutto and Gilbert 2014), so a reader can check each score by eye.

    Raises: ConfigError if the package vaderSentiment is not installed.
    """
    return [float(_vader().polarity_scores(_text(c))["compound"]) for c in completions]


def _text(completion: Any) -> str:
    """A completion as text; it is text or messages."""
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
