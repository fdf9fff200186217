"""Sample several answers per prompt and score them: best-of-n, rejection sampling, data for DPO.

    toolkit sample --config world/sample --parent runs/world/sft --reward_model runs/world/reward

Reads   prompts (docs/data.md), the run that answers (default: the base), and one or several reward runs.
        --reward_funcs FILE.py:FUNCTION adds Python functions to the score, or replaces the reward runs.
Writes  answers.jsonl: the answers to each prompt with their scores, the best first, while it samples;
        best.jsonl: the best answers, for SFT; pairs.jsonl: better and worse answers, for DPO and the
        reward model; run.json with the KL of best-of-n, the scores and their spread.

--resume_from_checkpoint true continues an interrupted run.
"""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.cli import run as run_command
from toolkit.errors import ConfigError
from toolkit.options.arguments import SampleArguments
from toolkit.recipe import Command
from toolkit.runs.inputs import require_separate
from toolkit.runs.parents import base_options, made_with, require_adapter, require_reward_models
from toolkit.runs.replacing import STREAMED
from toolkit.runs.run import Run

if TYPE_CHECKING:
    from trl import DatasetMixtureConfig, ScriptArguments

    from toolkit import ModelArguments


def main(
    args: SampleArguments,
    script: "ScriptArguments",
    mixture: "DatasetMixtureConfig",
    model: "ModelArguments",
) -> Run:
    require_separate(args.output_dir, args, script, mixture, model)
    if not args.reward_model and not args.reward_funcs:
        raise ConfigError(
            "sample: `reward_model` is missing; set --reward_model runs/world/reward, or --reward_funcs "
            "FILE.py:FUNCTION"
        )
    if script.dataset_streaming:
        raise ConfigError("sample: `dataset_streaming` is not supported; remove it")
    if args.parent is not None:
        require_adapter(args.parent, "parent")
    judges = [judge for run in args.reward_model for judge in require_reward_models(run)]

    from tqdm.auto import tqdm

    from toolkit.data.checks import check_texts
    from toolkit.data.encoding import encode_prompt
    from toolkit.data.loading import check_source, load_splits
    from toolkit.data.splits import hash_rows
    from toolkit.evaluation.best_of_n import (
        append_rows,
        count_finished,
        describe,
        rank_answers,
        write_files,
    )
    from toolkit.models.arguments import reject_adapter_options
    from toolkit.models.base import base_tokenizer
    from toolkit.models.roles import POLICY
    from toolkit.options.unsupported import reject_unsupported
    from toolkit.reward.functions import load_reward_functions
    from toolkit.runs.code_files import code_of
    from toolkit.runs.settings import ROWS, require_same
    from toolkit.sampling.generation import check_sampling
    from toolkit.sampling.settings import Sampling
    from toolkit.trainers.load_policy import load_roles

    reject_unsupported("sample", script)
    check_source(script, mixture, args)
    sources = [run for run in (args.parent, *judges) if run is not None]
    reject_adapter_options(
        model, because="the adapters come from the runs", made_with=[made_with(r) for r in sources]
    )
    functions = load_reward_functions(args.reward_funcs)
    parent = next(iter(sources), None)
    model = model.with_base_of(base_options(parent)) if parent else model
    file = Path(args.output_dir) / STREAMED
    resume = str(file) if args.resume_from_checkpoint and file.is_file() else None
    earlier = Run.load(args.output_dir) if resume else None
    parents = {"adapter": args.parent}
    parents |= {f"reward_{i}" if i else "reward": judge for i, judge in enumerate(judges)}
    configs = (args, script, mixture, model)
    with Run.start(
        args.output_dir, recipe="sample", configs=configs, parents=parents, resume=resume
    ) as run:
        trust = args.trust_remote_code
        tokenizer = base_tokenizer(model, parent=parent, trust_remote_code=trust)
        splits = load_splits(
            script, mixture, args, kind="prompt-only", seed=args.seed, folder=run.path
        )
        rows = check_texts(splits, tokenizer, args, folder=run.path)["train"]
        code = [code_of(function) for function in functions]
        run.inputs |= {ROWS["train"]: hash_rows(rows), "code of reward_funcs": str(code)}
        roles, tokenizer = load_roles(model, parent=parent, trust_remote_code=trust)
        run.base = roles.fingerprint
        if earlier is not None:
            require_same(file, _settings(earlier), _settings(run), longer=False)
        role = None if args.parent is None else POLICY
        if args.parent is not None:
            roles.attach(POLICY, args.parent)
        roles.attach_rewards(judges)
        prompts, n = list(rows["prompt"]), args.num_generations
        with roles.using(None):
            check_sampling(
                roles.base,
                [len(encode_prompt(tokenizer, prompt)) for prompt in prompts],
                args.max_new_tokens,
                fix="Leave them out, or lower `max_new_tokens`",
            )
        run.begin()
        began, batch = time.monotonic(), max(1, args.generation_batch_size // n)
        finished = count_finished(file, prompts, batch) if resume else 0
        if resume:
            print(f"{file}: continues after {finished} of {len(prompts)} prompts", flush=True)
        else:
            file.unlink(missing_ok=True)
        with tqdm(total=len(prompts) * n, initial=finished * n, unit="answer") as bar:
            for start in range(finished, len(prompts), batch):
                numbers = range(start, min(start + batch, len(prompts)))
                ranked = rank_answers(
                    roles,
                    tokenizer,
                    {number: rows[number] for number in numbers},
                    role=role,
                    functions=functions,
                    n=n,
                    sampling=Sampling(args.max_new_tokens, args.temperature),
                    seed=args.seed,
                    generation_batch_size=args.generation_batch_size,
                    batch_size=args.batch_size,
                )
                append_rows(file, ranked)
                bar.update(len(ranked) * n)
        results = write_files(file, best=args.write_best, pairs=args.write_pairs)
        results["seconds"] = round(time.monotonic() - began, 1)
        print(describe(results))
        return run.finish(**results)


def _settings(run: Run) -> dict[str, Any]:
    """What a resumed run must share with the run that it continues."""
    return run.settings | {"base": run.base}


def arguments() -> tuple[type, ...]:
    from trl import DatasetMixtureConfig, ScriptArguments

    from toolkit.models.arguments import ModelArguments

    return SampleArguments, ScriptArguments, DatasetMixtureConfig, ModelArguments


COMMAND = Command("sample", __doc__, main, arguments, is_stage=True, resumes=True)

if __name__ == "__main__":
    sys.exit(run_command(COMMAND))
