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
from pathlib import Path

import toolkit  # noqa: F401  (turns telemetry off before any library is imported)
from toolkit.data.demonstrations import load_demonstrations
from toolkit.data.loading import load_splits
from toolkit.options.arguments import RewardArguments
from toolkit.options.command_line import run_cli
from toolkit.preflight.requirements import opening, require_test_split
from toolkit.runs.parents import is_finished
from toolkit.runs.resuming import asked, last_checkpoint
from toolkit.runs.run import ENSEMBLE, Run

JUDGING = "judging"  # of a finished run's results, until its report is there


def main(script, training, model, mixture, start) -> Run:
    configs = (script, training, model, mixture, start)
    resume = opening("reward", configs)
    single = start.ensemble == 1
    members_stay = not single and asked(training.resume_from_checkpoint)

    from transformers import set_seed

    from toolkit.data.checks import check_texts
    from toolkit.evaluation.judge import Remembered
    from toolkit.models.base import load_base
    from toolkit.models.fingerprint import fingerprint
    from toolkit.preflight.report import preflight
    from toolkit.reward.training import Comparisons, RewardModelTrainer

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
        splits = check_texts(splits, tokenizer, start, max_length=limit, cut=False, folder=run.path)
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
        member = RewardModelTrainer(base, tokenizer, run.base, model, most_tokens=tokens)
        if not single:
            return run.finish(**_train_members(run, member, data, configs))
        notes = member.train(data, training, start, run=run, resume=resume)
        _finish_unjudged(run, notes, data)
        return _judge(Remembered(member.score), data, member, run)


def _train_members(run, member, data, configs):
    """One reward model after the other on the same base; those that a resumed run has are kept."""
    from transformers import set_seed

    from toolkit.evaluation.judge import Remembered, judge_ensemble, judge_scorer
    from toolkit.evaluation.reward_report import write_reward_report

    training, start = configs[1], configs[4]
    goes_on = asked(training.resume_from_checkpoint)
    run.begin()
    members = []
    for number in range(start.ensemble):
        own = copy.copy(training)
        own.output_dir, own.seed = str(run.path / f"member-{number}"), training.seed + number
        if goes_on and is_finished(own.output_dir):
            member.restore(Path(own.output_dir))
            part = Run.load(own.output_dir)
        else:
            resume = last_checkpoint(own.output_dir, goes_on)
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
                notes = member.train(data, own, start, run=part, resume=resume)
                _finish_unjudged(part, notes, data)
        members.append(Remembered(member.score))
        if JUDGING in part.results or not data.judged:
            _judge(members[-1], data, member, part)
        else:  # its report is written, but the ensemble's needs the scores
            judge_scorer(members[-1], member.tokenizer, data.judged)
        member.release()
    if not data.judged:
        return {"members": len(members)}
    return write_reward_report(judge_ensemble(members, member.tokenizer, data.judged), run.path)


def _finish_unjudged(run, notes, data):
    """The reward model is whole, whatever comes of its judging."""
    run.finish(**notes, **({JUDGING: "to come"} if data.judged else {}))


def _judge(scorer, data, member, run):
    """A finished run with what the held-out comparisons say of it, if there are any.

    Where that fails the run stays finished and says so.
    """
    from toolkit.evaluation.judge import judge_scorer
    from toolkit.evaluation.reward_report import write_reward_report

    if not data.judged:
        print("no held-out comparisons, so the reward model is not judged: set `test_split_size`")
        return run
    try:
        section = judge_scorer(
            scorer, member.tokenizer, data.judged, demonstrations=data.demonstrations
        )
        found = write_reward_report(section, run.path)
    except BaseException as error:
        run.results[JUDGING] = f"failed, {type(error).__name__}: {error}"
        run.save()
        print(f"{run.path}: the reward model is finished and can be used; judging it failed")
        raise
    del run.results[JUDGING]
    return run.finish(**found)


def arguments() -> tuple[type, ...]:
    from trl import DatasetMixtureConfig, RewardConfig, ScriptArguments

    from toolkit.models.arguments import ModelArguments

    return ScriptArguments, RewardConfig, ModelArguments, DatasetMixtureConfig, RewardArguments


if __name__ == "__main__":
    sys.exit(run_cli(main, arguments(), description=__doc__))
