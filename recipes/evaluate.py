"""Evaluate any number of runs on one base, and compare them with SFT in a report.

    toolkit evaluate --config world/evaluate \\
        --runs runs/world/sft runs/world/ppo --output_dir runs/world/report

Reads   the runs, the reward run (or an ensemble's mean score), prompts, comparisons,
        demonstrations. --reward_funcs adds Python functions to the score, as in PPO.
Writes  report.json, report.md, report.txt and the plots (PNG).
"""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.cli import run as run_command
from toolkit.errors import ConfigError
from toolkit.options.arguments import EvaluateArguments
from toolkit.reading import parse_json
from toolkit.recipe import Command, holds, is_supervised
from toolkit.runs.inputs import require_separate
from toolkit.runs.parents import base_options, made_with, require_adapter, require_reward_models
from toolkit.runs.run import Run

if TYPE_CHECKING:
    from toolkit import ModelArguments
    from toolkit.evaluation.evaluate import Evaluation
    from toolkit.reward.functions import RewardFunction


def main(args: EvaluateArguments, model: "ModelArguments") -> Run:
    require_separate(args.output_dir, args, model, may_hold_runs=True)
    sources, sft = load_runs(args.runs, reserved=["base", *(f"best_of_{n}" for n in args.best_of)])
    judges = [] if args.reward_model is None else require_reward_models(args.reward_model)
    timings = read_timings(args.timings)

    from toolkit.evaluation.render import to_text, write
    from toolkit.evaluation.report import build, examples
    from toolkit.models.arguments import reject_adapter_options
    from toolkit.reward.functions import load_reward_functions

    reject_adapter_options(
        model,
        because="the adapters come from the runs",
        made_with=[made_with(run.path) for run in sources.values()],
    )
    model = model.with_base_of(base_options(sources[sft].path))
    functions = load_reward_functions(args.reward_funcs)
    began = time.monotonic()
    parents = {name: str(source.path) for name, source in sources.items()}
    with Run.start(
        args.output_dir, recipe="evaluate", configs=(args, model), parents=parents
    ) as run:
        evaluation, reward_model = measure(args, model, run, sources, sft, judges, functions)
        timings["report"] = round(time.monotonic() - began, 1)
        report = build(evaluation, reward_model=reward_model, timings_s=timings)
        logs = (source.metrics() for source in sources.values())
        curves = next((rows for rows in logs if any("objective/kl" in row for row in rows)), [])
        run.begin()
        write(run.path, report, examples=examples(evaluation), training=curves)
        print(to_text(report))
        return run.finish()


def load_runs(folders: list[str], *, reserved: list[str]) -> tuple[dict[str, Run], str]:
    """The evaluated runs by name, and the name of the SFT run."""
    for folder in folders:
        require_adapter(folder, "runs")
    sources = {Path(folder).name: Run.load(folder) for folder in folders}
    sft = next((name for name, source in sources.items() if is_supervised(source)), None)
    if sft is None or len(sources) < len(folders):
        raise ConfigError(
            "evaluate: `runs` must contain an SFT run, and runs must have different names"
        )
    for name, source in sources.items():
        if name in reserved:
            raise ConfigError(
                f"evaluate: a run cannot be named {name}, got {source.path}; rename it"
            )
        if holds(source) != "policy":
            raise ConfigError(
                f"evaluate: `runs` must hold policies, but {source.path} holds a {holds(source)}; pass a "
                "reward model as --reward_model"
            )
    return sources, sft


def read_timings(text: str | None) -> dict[str, float]:
    try:
        return dict(parse_json(text)) if text else {}
    except (ValueError, TypeError) as error:
        message = f"evaluate: `timings` must be JSON of stage to seconds, got {text!r} ({error})"
        raise ConfigError(message) from error


def measure(
    args: EvaluateArguments,
    model: "ModelArguments",
    run: Run,
    sources: dict[str, Run],
    sft: str,
    judges: list[str],
    functions: "list[RewardFunction]",
) -> "tuple[Evaluation, dict[str, Any] | None]":
    """Load all adapters on one base, and evaluate the policies and the reward model."""
    from transformers import set_seed

    from toolkit.data.auxiliary import held_out_texts
    from toolkit.evaluation.evaluate import Checkpoint, evaluate_all
    from toolkit.evaluation.inputs import read_inputs, samplings, shown_to_base
    from toolkit.evaluation.judge import judge_reward_model
    from toolkit.models.base import base_tokenizer
    from toolkit.trainers.load_policy import load_roles

    set_seed(args.seed)
    parent, trust = sources[sft].path, args.trust_remote_code
    tokenizer = base_tokenizer(model, parent=parent, trust_remote_code=trust)
    later = [source for name, source in sources.items() if name != sft]
    inputs = read_inputs(args, [*later, sources[sft]], tokenizer)
    roles, tokenizer = load_roles(model, parent=parent, trust_remote_code=trust)
    run.base = roles.fingerprint
    checkpoints = {"base": Checkpoint(None, "base")}
    for number, (name, source) in enumerate(sources.items()):
        checkpoints[name] = Checkpoint(f"checkpoint_{number}", source.recipe)
        roles.attach(f"checkpoint_{number}", source.path)
    roles.attach_rewards(judges)
    main, others = samplings(args)
    evaluation = evaluate_all(
        roles,
        tokenizer,
        checkpoints,
        inputs.prompts,
        sampling=main,
        others=others,
        sft=sft,
        rewards=roles.rewards,
        reward_funcs=functions,
        columns=inputs.columns,
        few_shot=shown_to_base(args, model, inputs.demonstrations, tokenizer),
        texts=held_out_texts(args.texts, tokenizer),
        best_of=args.best_of,
        batch_size=args.batch_size,
        generation_batch_size=args.generation_batch_size,
        seed=args.seed,
        show_progress=True,
    )
    if not (judges and inputs.comparisons):
        return evaluation, None
    return evaluation, judge_reward_model(
        roles,
        tokenizer,
        inputs.comparisons,
        demonstrations=inputs.demonstrations,
        labeler_agreement=inputs.labeler_agreement,
        rewards=roles.rewards,
        seed=args.seed,
        batch_size=args.batch_size,
    )


def arguments() -> tuple[type, ...]:
    from toolkit.models.arguments import ModelArguments

    return EvaluateArguments, ModelArguments


COMMAND = Command("evaluate", __doc__, main, arguments, is_stage=True, takes_timings=True)

if __name__ == "__main__":
    sys.exit(run_command(COMMAND))
