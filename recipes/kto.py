"""KTO with TRL's KTOTrainer: learn from single answers, each labelled good or bad.

    toolkit kto --config world/kto --parent runs/world/sft --output_dir runs/world/kto

Reads   unpaired rows, or comparisons split into single answers (docs/data.md), and the SFT run.
Writes  the run directory: the adapter, run.json, metrics.jsonl. The SFT adapter is the reference.
"""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from toolkit.cli import run
from toolkit.errors import ConfigError
from toolkit.options.arguments import ParentArguments
from toolkit.recipe import Options, Recipe

if TYPE_CHECKING:
    from transformers import Trainer

    from toolkit import Training


def arguments() -> tuple[type, type]:
    from trl import KTOConfig  # heavy: imported when the recipe runs, not when it is listed

    return KTOConfig, ParentArguments


def requirements(options: Options, planned: Mapping[str, Any]) -> Options:
    """Check the batch, because KTO estimates a row's KL with the answer of a neighbouring row."""
    args = options.args
    if args.loss_type == "apo_zero_unpaired":
        return options
    if args.per_device_train_batch_size < 2:
        raise ConfigError(
            "kto: `per_device_train_batch_size` must be at least 2, because KTO estimates the KL with "
            "answers to other prompts of the batch"
        )
    if args.train_sampling_strategy != "sequential":
        raise ConfigError(
            f"kto: `train_sampling_strategy` must be sequential, got {args.train_sampling_strategy}: "
            "the recipe shuffles the rows once, and a row's KL comes from its neighbour"
        )
    return options


def build(training: "Training") -> "Trainer":
    from toolkit.trainers.supervised import KTOTrainer

    held_out, seed = training.held_out, training.args.seed
    return KTOTrainer(
        training.policy(),  # the parent's adapter; the trainer copies it to the reference
        args=training.args,
        processing_class=training.tokenizer,
        # shuffled here, so that a row's neighbour is an answer to another prompt
        train_dataset=training.rows.shuffle(seed=seed),
        eval_dataset=None if held_out is None else held_out.shuffle(seed=seed),
        callbacks=training.callbacks,
    )


RECIPE = Recipe(
    "kto",
    __doc__,
    rows="unpaired",
    arguments=arguments,
    requirements=requirements,
    build=build,
    needs_parent=True,
    not_streamed="all rows are shuffled before the first step",
)

if __name__ == "__main__":
    sys.exit(run(RECIPE))
