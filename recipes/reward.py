"""Reward model: TRL's RewardTrainer with InstructGPT's ranking loss, started from the SFT adapter.

    python recipes/reward.py --config recipes/configs/world/reward.yaml \\
        --parent runs/world/sft --output_dir runs/world/reward

Reads   preference rows (contracts: toolkit/data/formats.py), the SFT run, demonstrations.
Writes  the run's directory: the adapter, head.safetensors (its bias makes the demonstrations
        score 0 on average), run.json, metrics.jsonl, and where there are held-out comparisons
        reward_report.json and calibration.png; with --ensemble N runs member-0, member-1, … and a
        report on their mean.
"""

import copy
import sys
from dataclasses import replace
from pathlib import Path

import toolkit  # noqa: F401  (turns telemetry off before any library is imported)
from toolkit.arguments import DataArguments, RewardArguments
from toolkit.config import run_cli
from toolkit.data.loading import check_source, load_splits
from toolkit.runs import ENSEMBLE, Run, is_finished, last_checkpoint, require_adapter

MOST_DEMONSTRATIONS = 1000  # enough for a mean; a hub dataset may hold a million


def main(script, training, model, mixture, start) -> Run:
    if start.parent is not None:
        require_adapter(start.parent, "parent")
    check_source(script, mixture, start)
    if start.demonstrations is not None:
        check_source(replace(script, dataset_name=start.demonstrations), type(mixture)())
    single = start.ensemble == 1
    resume = last_checkpoint(training.output_dir, training.resume_from_checkpoint)

    from transformers import set_seed

    from toolkit.data.checks import check_texts
    from toolkit.evaluation.judge import Remembered
    from toolkit.models.arguments import refuse_adapter_options
    from toolkit.models.base import fingerprint, load_base
    from toolkit.preflight.report import preflight
    from toolkit.trainers.reward_training import Comparisons, Member

    if start.parent is not None:
        refuse_adapter_options(model, because=f"the adapter is that of the parent {start.parent}")
    configs = (script, training, model, mixture, start)
    with Run.start(
        training.output_dir,
        recipe="reward" if single else ENSEMBLE,
        configs=configs,
        parents={"adapter": start.parent},
        resume=resume,
    ) as run:
        set_seed(training.seed)
        splits = load_splits(
            script, mixture, start, kind="preference", seed=training.seed, folder=run.path
        )
        shown = _demonstrations(start, training.seed)
        base, tokenizer = load_base(
            model,
            scalar=True,
            parent=start.parent,
            trust_remote_code=training.trust_remote_code,
        )
        limit = training.max_length
        splits = check_texts(splits, tokenizer, start, max_length=limit, folder=run.path)
        run.base = fingerprint(model, tokenizer)
        data = Comparisons.prepare(
            splits,
            tokenizer,
            shown,
            max_length=training.max_length,
            shuffle_pairs=start.shuffle_pairs,
        )
        preflight("reward", configs, tokenizer, data.train)
        member = Member(base, tokenizer, run.base, model)
        if single:
            notes = member.train(data, training, start, resume=resume)
            return run.finish(**notes, **_judge(Remembered(member.score), data, member, run))
        return run.finish(**_train_members(run, member, data, configs))


def _train_members(run, member, data, configs):
    """One reward model after the other on the same base; those that a resumed run has are kept."""
    from transformers import set_seed

    from toolkit.evaluation.judge import Remembered, judge_ensemble, judge_scorer
    from toolkit.evaluation.reward_report import write_reward_report

    training, start = configs[1], configs[4]
    members = []
    for number in range(start.ensemble):
        own = copy.copy(training)
        own.output_dir, own.seed = str(run.path / f"member-{number}"), training.seed + number
        wanted = bool(training.resume_from_checkpoint)
        if wanted and is_finished(own.output_dir):
            member.restore(Path(own.output_dir))
            members.append(Remembered(member.score))
            if data.judged:
                judge_scorer(members[-1], member.tokenizer, data.judged)
        else:
            resume = last_checkpoint(own.output_dir, wanted)
            with Run.start(
                own.output_dir,
                recipe="reward",
                configs=(*configs[:1], own, *configs[2:]),
                parents=run.parents,
                resume=resume,
            ) as part:
                part.base = run.base
                if number:  # the first is what the recipe makes without an ensemble
                    set_seed(own.seed)
                notes = member.train(data, own, start, resume=resume)
                members.append(Remembered(member.score))
                part.finish(**notes, **_judge(members[-1], data, member, part))
        member.release()
    if not data.judged:
        return {"members": len(members)}
    return write_reward_report(judge_ensemble(members, member.tokenizer, data.judged), run.path)


def _judge(scorer, data, member, run):
    """What the held-out comparisons say of the reward model, if there are any."""
    from toolkit.evaluation.judge import judge_scorer
    from toolkit.evaluation.reward_report import write_reward_report

    if not data.judged:
        print("no held-out comparisons, so the reward model is not judged: set `test_split_size`")
        return {}
    section = judge_scorer(
        scorer, member.tokenizer, data.judged, demonstrations=data.demonstrations
    )
    return write_reward_report(section, run.path)


def _demonstrations(start, seed):
    """The (prompt, completion) rows whose scores shall average 0, read before the training."""
    if start.demonstrations is None:
        return []
    from trl import DatasetMixtureConfig, ScriptArguments

    source = ScriptArguments(dataset_name=start.demonstrations)
    # the training data's mixture would take precedence, and its format is another
    most = min(start.max_rows or MOST_DEMONSTRATIONS, MOST_DEMONSTRATIONS)
    asked = DataArguments(drop_bad_rows=start.drop_bad_rows, max_rows=most)
    rows = load_splits(source, DatasetMixtureConfig(), asked, kind="prompt-completion", seed=seed)
    return [(row["prompt"], row["completion"]) for row in rows["train"]]


def arguments() -> tuple[type, ...]:
    from trl import DatasetMixtureConfig, RewardConfig, ScriptArguments

    from toolkit.models.arguments import ModelArguments

    return ScriptArguments, RewardConfig, ModelArguments, DatasetMixtureConfig, RewardArguments


if __name__ == "__main__":
    sys.exit(run_cli(main, arguments(), description=__doc__))
