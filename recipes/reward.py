"""Train a reward model from the SFT adapter with TRL's RewardTrainer and InstructGPT's ranking loss.

    toolkit reward --config world/reward --parent runs/world/sft --output_dir runs/world/reward

Reads   preference rows (docs/data.md), the SFT run, demonstrations.
Writes  the run directory: the adapter, head.safetensors (its bias makes the demonstrations score 0
        on average), run.json and metrics.jsonl; with held-out comparisons also reward_report.json
        and calibration.png. --ensemble N trains N reward models, in member-0, member-1, …, and the
        report describes the mean of their scores.
"""

import sys
from typing import TYPE_CHECKING, Any

from toolkit.cli import run
from toolkit.options.arguments import RewardArguments
from toolkit.recipe import Recipe

if TYPE_CHECKING:
    from transformers import Trainer

    from toolkit import Training
    from toolkit.reward.training import Comparisons, RewardModelTrainer


def arguments() -> tuple[type, type]:
    from trl import RewardConfig  # heavy: imported when the recipe runs, not when it is listed

    return RewardConfig, RewardArguments


def prepare(training: "Training") -> "tuple[Comparisons, RewardModelTrainer]":
    """Make the comparisons, grouped by prompt, and a trainer of reward models on one base."""
    from toolkit.data.auxiliary import load_demonstrations
    from toolkit.reward.training import Comparisons, RewardModelTrainer

    args, own, tokenizer = training.args, training.own, training.tokenizer
    data = Comparisons.prepare(
        training.splits,
        tokenizer,
        load_demonstrations(own.demonstrations, own, seed=args.seed, tokenizer=tokenizer),
        max_length=args.max_length,
        shuffle_pairs=own.shuffle_pairs,
    )
    base = training.load_base(scalar=True)
    tokens = data.step_tokens(args.per_device_train_batch_size)
    return data, RewardModelTrainer(
        base, tokenizer, training.fingerprint, training.model, most_tokens=tokens
    )


def build(training: "Training") -> "Trainer":
    data, trainer = prepare(training)
    return trainer.build(data, training.args, training.own)


def fit(training: "Training") -> dict[str, Any]:
    """Train one reward model, or the members of an ensemble in turn, and judge them."""
    from toolkit.evaluation.judge import RewardJudge
    from toolkit.preflight.report import print_report
    from toolkit.reward.training import train_reward_models

    data, trainer = prepare(training)
    recipe, options, tokenizer = training.recipe, training.options, training.tokenizer
    print_report(recipe, options, tokenizer, data.train)
    judge = None
    if data.test_rows:
        judge = RewardJudge(tokenizer, data.test_rows, data.demonstrations)
    else:
        print(
            "reward model not evaluated: there are no held-out comparisons; set `test_split_size`"
        )
    train_reward_models(
        trainer,
        data,
        options,
        training.run,
        recipe=recipe.name,
        resume=training.resume,
        judge=judge,
    )
    return {}


RECIPE = Recipe(
    "reward",
    __doc__,
    rows="preference",
    arguments=arguments,
    build=build,
    fit=fit,
    holds="reward model",
    drops_long_rows=True,
    not_streamed="all pairs of a ranking must be grouped before training",
)

if __name__ == "__main__":
    sys.exit(run(RECIPE))
