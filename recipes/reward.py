"""Reward model: TRL's RewardTrainer with InstructGPT's ranking loss, started from the SFT adapter.

    python recipes/reward.py --config recipes/configs/world/reward.yaml \\
        --parent runs/world/sft --output_dir runs/world/reward

Reads   preference rows (contracts: toolkit/data/formats.py), the SFT run, demonstrations.
Writes  the run's directory: the adapter, head.safetensors (its bias makes the demonstrations
        score 0 on average), run.json, metrics.jsonl, and where there are held-out comparisons
        reward_report.json and calibration.png; with --ensemble N runs member-0, member-1, … and a
        report on their mean.
"""

import sys

import toolkit  # noqa: F401  (turns telemetry off before any library is imported)
from toolkit.data.auxiliary import load_demonstrations
from toolkit.data.loading import load_splits
from toolkit.options.arguments import RewardArguments
from toolkit.options.command_line import run_cli
from toolkit.preflight.requirements import opening, require_test_split
from toolkit.runs.resuming import asked
from toolkit.runs.run import ENSEMBLE, Run


def main(script, training, model, mixture, start) -> Run:
    configs = (script, training, model, mixture, start)
    resume = opening("reward", configs)
    single = start.ensemble == 1
    members_stay = not single and asked(training.resume_from_checkpoint)

    from transformers import set_seed

    from toolkit.data.checks import check_texts
    from toolkit.evaluation.judge import RewardJudge
    from toolkit.models.base import load_base
    from toolkit.models.fingerprint import fingerprint
    from toolkit.preflight.report import preflight
    from toolkit.reward.training import (
        Comparisons,
        RewardModelTrainer,
        train_ensemble,
        train_reward_model,
    )

    with Run.start(
        training.output_dir,
        recipe="reward" if single else ENSEMBLE,
        configs=configs,
        parents={"adapter": start.parent},
        resume=training.output_dir if members_stay else resume,
    ) as run:
        set_seed(training.seed)
        splits = load_splits(
            script, mixture, start, kind="preference", seed=training.seed, folder=run.path
        )
        require_test_split(training, splits)
        shown = load_demonstrations(start, seed=training.seed)
        base, tokenizer = load_base(
            model,
            scalar=True,
            parent=start.parent,
            trust_remote_code=training.trust_remote_code,
        )
        limit = training.max_length
        splits = check_texts(
            splits, tokenizer, start, max_length=limit, truncates=False, folder=run.path
        )
        run.base = fingerprint(model, tokenizer)
        data = Comparisons.prepare(
            splits,
            tokenizer,
            shown,
            max_length=training.max_length,
            shuffle_pairs=start.shuffle_pairs,
        )
        preflight("reward", configs, tokenizer, data.train)
        tokens = data.step_tokens(training.per_device_train_batch_size)
        trainer = RewardModelTrainer(base, tokenizer, run.base, model, most_tokens=tokens)
        judge = None
        if data.test_rows:
            judge = RewardJudge(tokenizer, data.test_rows, data.demonstrations)
        else:
            print("no held-out comparisons to judge the reward model on: set `test_split_size`")
        if not single:
            return train_ensemble(trainer, data, configs, run, judge=judge)
        return train_reward_model(trainer, data, training, start, run, resume=resume, judge=judge)


def arguments() -> tuple[type, ...]:
    from trl import DatasetMixtureConfig, RewardConfig, ScriptArguments

    from toolkit.models.arguments import ModelArguments

    return ScriptArguments, RewardConfig, ModelArguments, DatasetMixtureConfig, RewardArguments


if __name__ == "__main__":
    sys.exit(run_cli(main, arguments(), description=__doc__))
