"""Direct preference optimization with TRL's DPOTrainer; the SFT adapter is the reference.

    toolkit dpo --config world/dpo --parent runs/world/sft --output_dir runs/world/dpo

Reads   preference rows (docs/data.md) and the SFT run.
Writes  the run directory: the adapter, run.json, metrics.jsonl.
"""

import sys
from typing import TYPE_CHECKING

from toolkit.cli import run
from toolkit.options.arguments import ParentArguments
from toolkit.recipe import Recipe

if TYPE_CHECKING:
    from transformers import Trainer

    from toolkit import Training


def arguments() -> tuple[type, type]:
    from trl import DPOConfig  # heavy: imported when the recipe runs, not when it is listed

    return DPOConfig, ParentArguments


def build(training: "Training") -> "Trainer":
    from toolkit.trainers.supervised import DPOTrainer

    return DPOTrainer(
        training.policy(),  # the parent's adapter; the trainer copies it to the reference
        args=training.args,
        processing_class=training.tokenizer,
        train_dataset=training.rows,
        eval_dataset=training.held_out,
        callbacks=training.callbacks,
    )


RECIPE = Recipe(
    "dpo",
    __doc__,
    rows="preference",
    arguments=arguments,
    build=build,
    needs_parent=True,
    streams=True,
)

if __name__ == "__main__":
    sys.exit(run(RECIPE))
