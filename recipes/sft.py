"""Supervised fine-tuning with TRL's SFTTrainer: the base learns to answer prompts.

    toolkit sft --config world/sft --output_dir runs/world/sft

Reads   prompt-completion, messages or text rows (docs/data.md).
Writes  the run directory: the adapter, run.json, metrics.jsonl.

The loss is on completion tokens only.
"""

import sys
from typing import TYPE_CHECKING

from toolkit.cli import run
from toolkit.options.arguments import SFTArguments
from toolkit.recipe import Recipe

if TYPE_CHECKING:
    from transformers import Trainer

    from toolkit import Training


def arguments() -> tuple[type, type]:
    from trl import SFTConfig  # heavy: imported when the recipe runs, not when it is listed

    return SFTConfig, SFTArguments


def build(training: "Training") -> "Trainer":
    from toolkit.models.peft_methods import build_peft_config
    from toolkit.trainers.supervised import SFTTrainer

    args, is_new = training.args, training.parent is None
    return SFTTrainer(
        training.base if is_new else training.policy(),
        args,
        processing_class=training.tokenizer,
        peft_config=build_peft_config(
            training.model, training.base, gradient_checkpointing=args.gradient_checkpointing
        )
        if is_new
        else None,
        train_dataset=training.rows,
        eval_dataset=training.held_out,
        callbacks=training.callbacks,
    )


RECIPE = Recipe(
    "sft",
    __doc__,
    rows="prompt-completion",
    arguments=arguments,
    build=build,
    takes_texts=True,
    streams=True,
)

if __name__ == "__main__":
    sys.exit(run(RECIPE))
