"""Prompts per second of reward-model training: each of K answers once, against every pair separately.

    python benchmarks/ranking_loss.py [--completions 9] [--rounds 7]

Prints the speed of docs/reward.md: forward and backward on the embedded base.
"""

import random
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from trl import ModelConfig

from benchmarks.common import parser, seconds_in_turn
from toolkit.models.base import fingerprint, load_base
from toolkit.reward.adapter import scalar_adapter
from toolkit.reward.ranking import RankingCollator, group_comparisons, last_scores, ranking_loss

PROMPT, SHORTEST, LONGEST = 32, 8, 32


def measure(
    *,
    completions: int,
    rounds: int,
    base: str | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median prompts per second of both variants: forward and backward of one prompt's pairs.

    Args:
        completions: K; answers of 8 to 32 random tokens to a prompt of 32.
        rounds: timed runs of each variant, in turn.
        base: a model's folder; the embedded base by default. A new LoRA is trained on it.
        clock: seconds of the wall, or of this process (`time.process_time`).
    """
    torch.manual_seed(0)
    model = ModelConfig(
        model_name_or_path=base,
        dtype="float32",
        use_peft=True,
        lora_target_modules=["all-linear"],
    )
    whole, tokenizer = load_base(model, scalar=True)
    adapted = scalar_adapter(whole, fingerprint(model, tokenizer), parent=None, model=model)
    ranked = _rows(completions, len(tokenizer))
    separate = [{k: v for k, v in row.items() if k != "group_id"} for row in ranked]
    batches = {
        name: RankingCollator(0)(list(group_comparisons(Dataset.from_list(rows))))
        for name, rows in (("together", ranked), ("pairs", separate))
    }
    steps = {name: partial(_step, adapted, batch) for name, batch in batches.items()}
    seconds = seconds_in_turn(steps, rounds=rounds, clock=clock)
    rates = {name: 1 / s for name, s in seconds.items()}
    passes = {name: len(batch["input_ids"]) for name, batch in batches.items()}
    return {
        "completions": completions,
        "passes_together": passes["together"],
        "passes_pairs": passes["pairs"],
        "prompts_per_s_together": round(rates["together"], 3),
        "prompts_per_s_pairs": round(rates["pairs"], 3),
        "times_as_fast": round(rates["together"] / rates["pairs"], 2),
    }


def _step(adapted: Any, batch: dict[str, torch.Tensor]) -> None:
    scores = last_scores(adapted, batch["input_ids"], batch["attention_mask"])
    keys = ("better", "worse", "margins", "weights")
    ranking_loss(scores, *(batch[key] for key in keys)).backward()  # type: ignore[no-untyped-call]
    adapted.zero_grad()


def _rows(completions: int, vocabulary: int) -> list[dict[str, object]]:
    """All pairs of one ranking."""
    rng = random.Random(0)
    prompt = [rng.randrange(1, vocabulary) for _ in range(PROMPT)]
    answers = [
        prompt + [rng.randrange(1, vocabulary) for _ in range(rng.randrange(SHORTEST, LONGEST + 1))]
        for _ in range(completions)
    ]
    return [
        {"chosen_ids": answers[i], "rejected_ids": answers[j], "group_id": 0}
        for i in range(completions)
        for j in range(i + 1, completions)
    ]


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--completions", type=int, default=9, help="K answers per prompt (9)")
    options.add_argument("--rounds", type=int, default=7, help="timed runs of each variant (7)")
    args = options.parse_args()
    for key, value in measure(completions=args.completions, rounds=args.rounds).items():
        print(f"{key:24s} {value}")
