"""Gold metrics of the evaluations that PPO runs during training on the embedded world."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from toolkit.evaluation.evaluate import world_prompts
from toolkit.evaluation.metrics import behaviour_rates, rounded
from toolkit.sampling.generation import Prompt
from toolkit.world.gold import features

SHOWN = ("correct", "hallucinated", "harmful_compliance", "over_refusal", "polite")


def gold_monitor(prompts: Sequence[Prompt]) -> Callable[..., Mapping[str, float | None]] | None:
    """`PPOTrainer`'s `eval_metrics` for prompts of the embedded world; None for other prompts."""
    return None if world_prompts(prompts) is None else gold_metrics


def gold_metrics(
    prompts: Sequence[Prompt], completions: Sequence[Prompt], **_: Any
) -> dict[str, float | None]:
    """Mean gold utility and the rates of `SHOWN`, with names that start with `gold/`.

    Args:
        prompts: questions of the world, texts or messages.
        completions: one answer to each, in the same format.

    Raises: DatasetError for a prompt that is not a question of the world.
    """
    pairs = zip(prompts, completions, strict=True)
    answers = [features(_text(prompt), _text(completion)) for prompt, completion in pairs]
    rates = behaviour_rates(answers)
    mean = rounded(np.mean([f.utility for f in answers]))
    return {"gold/mean": mean} | {f"gold/{name}": rates[name] for name in SHOWN}


def _text(text: Prompt) -> str:
    return text if isinstance(text, str) else text[-1]["content"]
