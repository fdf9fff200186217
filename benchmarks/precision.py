"""A reward model's scores with its base in lower precisions, against float32.

    python benchmarks/precision.py runs/quickstart/reward runs/quickstart/comparisons [--rows 400]

Reads   a reward run and the held-out split of its comparisons. Prints the table of docs/reward.md.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from trl import ModelConfig, ScriptArguments
from trl.scripts.utils import DatasetMixtureConfig

from benchmarks.common import markdown_table, parser, run_main
from toolkit.data.encoding import encode_completion, encode_prompt
from toolkit.data.loading import load_splits
from toolkit.errors import ConfigError
from toolkit.evaluation.scoring import Pair, pad_id, score_ids
from toolkit.models.roles import REWARD
from toolkit.options.arguments import DataArguments
from toolkit.runs.run import Run
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
    """Compare the scores of held-out answers in each precision with those in float32.

    Returns: per precision, the accuracy; the root mean square and the largest change of a score, in
        standard deviations of the float32 scores; and the share of pairs in the same order.
    """
    run = Run.load(reward)
    scored = {name: _scores(run, comparisons, rows, **p) for name, p in PRECISIONS.items()}
    first = scored["float32"]
    spread = np.concatenate([first[side] for side in SIDES]).std()
    table = []
    for name, scores in scored.items():
        change = np.concatenate([scores[side] - first[side] for side in SIDES]) / spread
        correct, correct_first = (s["chosen"] > s["rejected"] for s in (scores, first))
        table.append(
            {
                "precision": name,
                "accuracy": float(correct.mean()),
                "moved_rms": float(np.sqrt((change**2).mean())),
                "moved_max": float(np.abs(change).max()),
                "ordered_alike": float((correct == correct_first).mean()),
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


def main(args: argparse.Namespace) -> None:
    """Print the table."""
    rows = [
        [
            row["precision"],
            f"{row['accuracy']:.3f}",
            f"{row['moved_rms']:.3f}",
            f"{row['moved_max']:.2f}",
            f"{row['ordered_alike']:.3f}",
        ]
        for row in measure(args.reward, args.comparisons, rows=args.rows)
    ]
    header = ["precision", "accuracy", "moved, RMS", "moved, most", "ordered alike"]
    print(markdown_table(header, rows))


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("reward", type=Path, help="a reward run")
    options.add_argument("comparisons", help="its comparisons, with a split `test`")
    options.add_argument("--rows", type=int, default=400, help="held-out pairs (400)")
    run_main(main, options.parse_args())
