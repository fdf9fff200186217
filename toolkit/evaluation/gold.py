"""The true utility of answers to questions of the embedded world."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from toolkit.data.encoding import Prompt
from toolkit.evaluation.metrics import behaviour_rates, rounded
from toolkit.world.gold import features
from toolkit.world.questions import parse

GOLD_RATES = ("correct", "hallucinated", "harmful_compliance", "over_refusal", "polite")


def world_prompts(prompts: Sequence[Prompt]) -> list[str] | None:
    """The prompts' texts if all of them are questions of the embedded world, else None."""
    texts = []
    for prompt in prompts:
        if not isinstance(prompt, str):
            if [m["role"] for m in prompt] != ["user"]:
                return None
            prompt = prompt[0]["content"]
        if parse(prompt) is None:
            return None
        texts.append(prompt)
    return texts


def gold_monitor(prompts: Sequence[Prompt]) -> Callable[..., Mapping[str, float | None]] | None:
    """`PPOTrainer`'s `eval_metrics` for prompts of the embedded world; None for other prompts."""
    return None if world_prompts(prompts) is None else gold_metrics


def gold_metrics(
    prompts: Sequence[Prompt], completions: Sequence[Prompt], **_: Any
) -> dict[str, float | None]:
    """Mean gold utility and the rates `GOLD_RATES`; all names start with `gold/`.

    Args:
        prompts: questions of the world, texts or messages.
        completions: one answer to each prompt, in the same format.

    Raises: DatasetError for a prompt that is not a question of the world.
    """
    texts = (
        [t if isinstance(t, str) else t[-1]["content"] for t in pair]
        for pair in zip(prompts, completions, strict=True)
    )
    answers = [features(prompt, completion) for prompt, completion in texts]
    rates = behaviour_rates(answers)
    mean = rounded(np.mean([f.utility for f in answers]))
    return {"gold/mean": mean} | {f"gold/{name}": rates[name] for name in GOLD_RATES}
