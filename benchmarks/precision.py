"""A reward model on the same base in other precisions: how far its scores move.

python -m benchmarks.precision REWARD_RUN COMPARISONS [--rows 400]
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from trl import ModelConfig, ScriptArguments
from trl.scripts.utils import DatasetMixtureConfig

from toolkit.data.loading import load_splits
from toolkit.errors import ConfigError
from toolkit.evaluation.scoring import Pair, pad_id, score_ids
from toolkit.models.roles import REWARD
from toolkit.options.arguments import DataArguments
from toolkit.runs.run import Run
from toolkit.sampling.generation import encode_completion, encode_prompt
from toolkit.trainers.load_policy import load_roles

SIDES = ("chosen", "rejected")
PRECISIONS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "8 bit": {"dtype": "bfloat16", "load_in_8bit": True},
    "4 bit (nf4)": {"dtype": "bfloat16", "load_in_4bit": True},
    "4 bit, double": {"dtype": "bfloat16", "load_in_4bit": True, "use_bnb_nested_quant": True},
}
Scores = dict[str, NDArray[np.float64]]


def measure(reward: Path, comparisons: str, *, rows: int) -> list[dict[str, Any]]:
    """Scores of held-out answers in each precision against those in the first.

    Returns: per precision the accuracy, the root mean square and the largest move of a score in
        units of the scores' standard deviation in float32, and the share of pairs it orders alike.
    """
    run = Run.load(reward)
    found = {name: _scores(run, comparisons, rows, **p) for name, p in PRECISIONS.items()}
    first = next(iter(found.values()))
    spread = np.concatenate([first[side] for side in SIDES]).std()
    table = []
    for name, scores in found.items():
        moved = np.concatenate([scores[side] - first[side] for side in SIDES]) / spread
        right, at_first = (s["chosen"] > s["rejected"] for s in (scores, first))
        table.append(
            {
                "precision": name,
                "accuracy": float(right.mean()),
                "moved_rms": float(np.sqrt((moved**2).mean())),
                "moved_max": float(np.abs(moved).max()),
                "ordered_alike": float((right == at_first).mean()),
            }
        )
    return table


def _scores(run: Run, comparisons: str, rows: int, **precision: Any) -> Scores:
    model = replace(
        ModelConfig(model_name_or_path=str(run.base["id"]), dtype="float32"), **precision
    )
    roles, tokenizer = load_roles(model, parent=run.path)
    roles.attach(REWARD, run.path, head=True, any_precision=True)
    splits = load_splits(
        ScriptArguments(dataset_name=comparisons),
        DatasetMixtureConfig(),
        DataArguments(),
        kind="preference",
        seed=0,
    )
    if "test" not in splits:
        raise ConfigError(f"{comparisons} has no split 'test', it has {', '.join(splits)}")
    held_out = splits["test"].select(range(min(rows, len(splits["test"]))))

    def pairs(side: str) -> list[Pair]:
        return [
            (
                encode_prompt(tokenizer, r["prompt"]),
                encode_completion(tokenizer, r["prompt"], r[side]),
            )
            for r in held_out
        ]

    return {
        side: np.array(
            score_ids(roles, pairs(side), reward=REWARD, pad_id=pad_id(tokenizer), batch_size=32)
        )
        for side in SIDES
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reward", type=Path)
    parser.add_argument("comparisons")
    parser.add_argument("--rows", type=int, default=400)
    args = parser.parse_args()
    print("| precision | accuracy | moved, RMS | moved, most | ordered alike |")
    print("| --- | --- | --- | --- | --- |")
    for row in measure(args.reward, args.comparisons, rows=args.rows):
        print(
            f"| {row['precision']} | {row['accuracy']:.3f} | {row['moved_rms']:.3f} | "
            f"{row['moved_max']:.2f} | {row['ordered_alike']:.3f} |"
        )
