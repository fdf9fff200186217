"""Choose a run's checkpoint by the reward model's score on held-out prompts, as InstructGPT does for SFT.

    toolkit choose --config world/choose --parent runs/world/sft --reward_model runs/world/reward

Reads   the checkpoints of the run, one or several reward runs, and prompts (by default those that the run
        held out). --reward_funcs FILE.py:FUNCTION adds Python functions to the score, or replaces the
        reward runs.
Writes  a run with the adapter whose answers have the highest mean score; other recipes take it as their
        parent. run.json holds loss and score of each checkpoint.

The loss on held-out demonstrations rises long before the score falls (arXiv:2203.02155, section 3.5).
"""

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.cli import run as run_command
from toolkit.errors import ConfigError
from toolkit.options.arguments import ChooseArguments
from toolkit.recipe import Command, holds
from toolkit.runs.inputs import require_separate
from toolkit.runs.parents import base_options, made_with, require_adapter, require_reward_models
from toolkit.runs.replacing import checkpoints, step_of
from toolkit.runs.run import ADAPTER_FILES, Run

if TYPE_CHECKING:
    from toolkit import ModelArguments
    from toolkit.evaluation.evaluate import Evaluation


def main(args: ChooseArguments, model: "ModelArguments") -> Run:
    require_separate(args.output_dir, args, model)
    if args.parent is None or not (args.reward_model or args.reward_funcs):
        missing = "parent" if args.parent is None else "reward_model"
        raise ConfigError(
            f"choose: `{missing}` is missing; set --parent runs/world/sft --reward_model runs/world/reward"
        )
    require_adapter(args.parent, "parent")
    source, folders = Run.load(args.parent), checkpoints(Path(args.parent))
    if holds(source) != "policy" or len(folders) < 2:
        raise ConfigError(
            f"choose: `parent` must be a policy with two or more checkpoints, but {source.path} holds a "
            f"{holds(source)} with {len(folders)}; train with `save_strategy: epoch` and a larger "
            "`save_total_limit`"
        )
    for folder in folders:
        require_adapter(str(folder), "parent")
    judges = [judge for run in args.reward_model for judge in require_reward_models(run)]

    from toolkit.evaluation.evaluate import Checkpoint, evaluate_all
    from toolkit.evaluation.inputs import read_prompts
    from toolkit.models.arguments import reject_adapter_options
    from toolkit.models.base import BASE_FILE
    from toolkit.reward.functions import load_reward_functions
    from toolkit.sampling.settings import Sampling
    from toolkit.trainers.load_policy import load_roles

    reject_adapter_options(
        model, because="the adapters come from the run", made_with=[made_with(source.path)]
    )
    model = model.with_base_of(base_options(source.path))
    functions = load_reward_functions(args.reward_funcs)
    parents: dict[str, str | None] = {"adapter": args.parent}
    parents |= {f"reward_{i}" if i else "reward": judge for i, judge in enumerate(judges)}
    with Run.start(  # a run of the parent's recipe, because it holds the same kind of adapter
        args.output_dir, recipe=source.recipe, configs=(args, model), parents=parents
    ) as run:
        roles, tokenizer = load_roles(
            model, parent=source.path, trust_remote_code=args.trust_remote_code
        )
        run.base = roles.fingerprint
        prompts, columns = read_prompts(args, [source], tokenizer)
        for folder in folders:
            roles.attach(folder.name.replace("-", "_"), folder)
        roles.attach_rewards(judges)
        evaluation = evaluate_all(
            roles,
            tokenizer,
            {f.name: Checkpoint(f.name.replace("-", "_"), source.recipe) for f in folders},
            prompts,
            sampling=Sampling(args.max_new_tokens, args.temperature),
            others={},
            sft=folders[-1].name,
            rewards=roles.rewards,
            reward_funcs=functions,
            columns=columns,
            batch_size=args.batch_size,
            generation_batch_size=args.generation_batch_size,
            seed=args.seed,
            show_progress=True,
        )
        rows = compare(evaluation, source.metrics())
        best = max(rows, key=lambda row: row["score"]["mean"])
        run.begin()
        folder = source.path / f"checkpoint-{best['step']}"
        for name in (*ADAPTER_FILES, BASE_FILE):
            shutil.copyfile(folder / name, run.path / name)
        tokenizer.save_pretrained(run.path)
        print(table(rows, best["step"]))
        return run.finish(chosen=folder.name, checkpoints=rows)


def compare(evaluation: "Evaluation", log: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Loss, held-out loss, score and gold utility of each checkpoint."""
    from toolkit.evaluation.report import build

    rows = []
    for name, entry in build(evaluation)["checkpoints"].items():
        step = step_of(Path(name))
        row = {"step": step, "score": entry["proxy"], "gold": entry["gold"]}
        for key in ("loss", "eval_loss"):
            values = [line[key] for line in log if key in line and line.get("step", 0) <= step]
            row[key] = values[-1] if values else None
        rows.append(row)
    return rows


def table(rows: Sequence[Mapping[str, Any]], chosen: int) -> str:
    """The checkpoints as lines of text."""
    lines = [f"{'step':>6} {'loss':>7} {'held-out':>8}  score [95 %]            gold"]
    for row in rows:
        loss, held_out = (
            "–" if row[key] is None else f"{row[key]:.3f}" for key in ("loss", "eval_loss")
        )
        score, (low, high) = row["score"]["mean"], row["score"]["ci95"]
        gold = "–" if row["gold"] is None else f"{row['gold']['mean']:.3f}"
        mark = "  chosen" if row["step"] == chosen else ""
        interval = f"{score:.3f} [{low:.3f}, {high:.3f}]"
        lines.append(f"{row['step']:>6} {loss:>7} {held_out:>8}  {interval:<23} {gold}{mark}")
    return "\n".join(lines)


def arguments() -> tuple[type, ...]:
    from toolkit.models.arguments import ModelArguments

    return ChooseArguments, ModelArguments


COMMAND = Command("choose", __doc__, main, arguments, is_stage=True)

if __name__ == "__main__":
    sys.exit(run_command(COMMAND))
