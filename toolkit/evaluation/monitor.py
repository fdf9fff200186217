"""What gold sees in the answers of an evaluation while PPO trains on the embedded world."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from toolkit.evaluation.evaluate import world_prompts
from toolkit.evaluation.metrics import behaviour_rates
from toolkit.sampling.generation import Prompt
from toolkit.world.gold import features

SHOWN = ("correct", "hallucinated", "harmful_compliance", "over_refusal", "polite")


def gold_monitor(prompts: Sequence[Prompt]) -> Callable[..., Mapping[str, float | None]] | None:
    """`PPOTrainer`'s `eval_metrics` for prompts of the embedded world; None for any others."""
    return None if world_prompts(prompts) is None else gold_metrics


def gold_metrics(
    prompts: Sequence[Prompt], completions: Sequence[Prompt], **_: Any
) -> dict[str, float | None]:
    """Mean gold utility and the shares of `SHOWN`, by names that start with `gold/`.

    Args:
        prompts: questions of the world, texts or messages.
        completions: an answer to each, alike.

    Raises: DatasetError for a prompt that the world cannot ask.
    """
    pairs = zip(prompts, completions, strict=True)
    found = [features(_text(prompt), _text(said)) for prompt, said in pairs]
    rates = behaviour_rates(found)
    mean = round(float(np.mean([f.utility for f in found])), 6)
    return {"gold/mean": mean} | {f"gold/{name}": rates[name] for name in SHOWN}


def _text(said: Prompt) -> str:
    return said if isinstance(said, str) else said[-1]["content"]
