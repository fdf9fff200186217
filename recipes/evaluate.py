"""Evaluate any number of runs on one base, and compare them with SFT in a report.

    toolkit evaluate --config world/evaluate \\
        --runs runs/world/sft runs/world/ppo --output_dir runs/world/report

Reads   the runs, the reward run (or an ensemble's mean score), prompts, comparisons,
        demonstrations.
Writes  report.json, report.md, report.txt and the plots (PNG).
"""

import sys
import time
from dataclasses import replace
from pathlib import Path

from toolkit.cli import run as run_command
from toolkit.errors import ConfigError
from toolkit.options.arguments import DataArguments, EvaluateArguments
from toolkit.reading import parse_json
from toolkit.recipe import Command, holds, is_supervised
from toolkit.runs.parents import base_options, made_with, require_adapter
from toolkit.runs.run import MANIFEST, Run

FEW_SHOT = 4  # demonstrations before each prompt of a base without a chat template of its own


def main(args, model) -> Run:
    from toolkit.runs.parents import require_reward_models

    for folder in args.runs:
        require_adapter(folder, "runs")
    judges = [] if args.reward_model is None else require_reward_models(args.reward_model)
    sources = {Path(folder).name: Run.load(folder) for folder in args.runs}
    sft = next((name for name, source in sources.items() if is_supervised(source)), None)
    if sft is None or len(sources) < len(args.runs):
        raise ConfigError(
            "evaluate: `runs` must contain an SFT run, and runs must have different names"
        )
    for name, source in sources.items():
        if name == "base":
            raise ConfigError(f"evaluate: a run cannot be named base, got {source.path}; rename it")
        if holds(source) != "policy":
            raise ConfigError(
                f"evaluate: `runs` must hold policies, but {source.path} holds a {holds(source)}; pass a "
                "reward model as --reward_model"
            )
    timings = _timings(args.timings)

    from transformers import set_seed

    from toolkit.data.auxiliary import held_out_texts, load_demonstrations, load_split
    from toolkit.evaluation.evaluate import Checkpoint, evaluate_all, role_ids
    from toolkit.evaluation.held_out import held_out_prompts, held_out_rows
    from toolkit.evaluation.judge import judge_reward_model
    from toolkit.evaluation.render import to_text, write
    from toolkit.evaluation.report import build, examples
    from toolkit.models.arguments import reject_adapter_options
    from toolkit.models.base import base_tokenizer
    from toolkit.models.roles import REWARD
    from toolkit.sampling.settings import Sampling
    from toolkit.trainers.load_policy import load_roles

    reject_adapter_options(
        model,
        because="the adapters come from the runs",
        made_with=[made_with(run.path) for run in sources.values()],
    )
    model = model.with_base_of(base_options(sources[sft].path))
    began = time.monotonic()
    parents = {name: str(run.path) for name, run in sources.items()}
    with Run.start(
        args.output_dir, recipe="evaluate", configs=(args, model), parents=parents
    ) as run:
        set_seed(args.seed)
        trust = args.trust_remote_code
        parent = sources[sft].path
        tokenizer = base_tokenizer(model, parent=parent, trust_remote_code=trust)
        options = {"drop_bad_rows": args.drop_bad_rows, "seed": args.seed, "tokenizer": tokenizer}
        if args.prompts is None:
            later = [run for name, run in sources.items() if name != sft]
            rows = held_out_prompts([*later, sources[sft]], tokenizer)
        else:
            rows = load_split(args.prompts, args.prompts_split, option="prompts_split", **options)
        prompts = [row["prompt"] for row in rows][: args.max_prompts] * args.samples_per_prompt
        data_args = DataArguments(drop_bad_rows=args.drop_bad_rows)
        demonstrations = load_demonstrations(
            args.demonstrations, data_args, seed=args.seed, tokenizer=tokenizer
        )
        if args.comparisons is None and judges and (Path(args.reward_model) / MANIFEST).is_file():
            comparisons = held_out_rows(Run.load(args.reward_model), tokenizer)
        else:
            comparisons = load_split(
                args.comparisons, "test", option="comparisons", kind="preference", **options
            )
        roles, tokenizer = load_roles(model, parent=parent, trust_remote_code=trust)
        run.base = roles.fingerprint
        ids = role_ids(sources)
        checkpoints = {"base": Checkpoint(None, "base")}
        for name, source in sources.items():
            roles.attach(ids[name], source.path)
            checkpoints[name] = Checkpoint(ids[name], source.recipe)
        names = [REWARD] if len(judges) == 1 else [f"{REWARD}_{i}" for i in range(len(judges))]
        for name, judge in zip(names, judges, strict=True):
            roles.attach(name, judge, head=True)
        main, others = Sampling(args.max_new_tokens, args.temperature), None
        if args.other_temperatures is not None:
            others = {f"{t:g}": replace(main, temperature=t) for t in args.other_temperatures}
        few_shot = args.few_shot
        if few_shot is None:
            own = base_tokenizer(model, parent=None, trust_remote_code=trust).chat_template
            few_shot = 0 if own and own == tokenizer.chat_template else FEW_SHOT
        evaluation = evaluate_all(
            roles,
            tokenizer,
            checkpoints,
            prompts,
            sampling=main,
            others=others,
            sft=sft,
            rewards=names,
            few_shot=[tuple(map(_as_text, row)) for row in demonstrations[:few_shot]],
            texts=held_out_texts(args.texts, tokenizer),
            batch_size=args.batch_size,
            generation_batch_size=args.generation_batch_size,
            seed=args.seed,
            show_progress=True,
        )
        reward_report = None
        if judges and comparisons:
            reward_report = judge_reward_model(
                roles,
                tokenizer,
                comparisons,
                demonstrations=demonstrations,
                labeler_agreement=_agreement(args.comparisons),
                rewards=names,
                seed=args.seed,
                batch_size=args.batch_size,
            )
        timings["report"] = round(time.monotonic() - began, 1)
        report = build(evaluation, reward_model=reward_report, timings_s=timings)
        logs = (source.metrics() for source in sources.values())
        curves = next((rows for rows in logs if any("objective/kl" in row for row in rows)), [])
        run.begin()
        write(run.path, report, examples=examples(evaluation, 8), training=curves)
        (run.path / "report.txt").write_text(to_text(report), encoding="utf-8")
        print(to_text(report))
        return run.finish()


def _as_text(side):
    """The text of a prompt or a completion; for messages, the text of the last message."""
    return side if isinstance(side, str) else side[-1]["content"]


def _agreement(comparisons):
    """The share of pairs on which two labelers agree, if recipes/label.py made the comparisons."""
    is_run = (Path(comparisons) / "run.json").is_file()
    return Run.load(comparisons).results.get("test_agreement") if is_run else None


def _timings(text):
    try:
        return dict(parse_json(text)) if text else {}
    except (ValueError, TypeError) as error:
        message = f"evaluate: `timings` must be JSON of stage to seconds, got {text!r} ({error})"
        raise ConfigError(message) from error


def arguments() -> tuple[type, ...]:
    from toolkit.models.arguments import ModelArguments

    return EvaluateArguments, ModelArguments


COMMAND = Command("evaluate", __doc__, main, arguments, is_stage=True, takes_timings=True)

if __name__ == "__main__":
    sys.exit(run_command(COMMAND))
