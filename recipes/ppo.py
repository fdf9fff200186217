"""PPO: policy, SFT reference, value and reward as four adapters on one base.

    python recipes/ppo.py --config recipes/configs/world/ppo.yaml --parent runs/world/sft \\
        --reward_model runs/world/reward --output_dir runs/world/ppo

Reads   prompts (contracts: docs/data.md), the SFT run and the reward run; with --reward_funcs
        FILE.py:FUNCTION Python functions beside the reward run, or in its place.
Writes  the run's directory: the policy's adapter, value/, run.json, metrics.jsonl; with ema_decay
        the adapter is the policy's average, and last/ the policy itself.
"""

import sys

import toolkit  # noqa: F401  (turns telemetry off before any library is imported)
from toolkit.data.loading import load_splits
from toolkit.options.arguments import PPOArguments
from toolkit.options.command_line import run_cli
from toolkit.preflight.requirements import opening, require_test_split
from toolkit.runs.run import Run


def main(script, training, model, mixture, start) -> Run:
    configs = (script, training, model, mixture, start)
    resume = opening("ppo", configs)  # after which `reward_model` names the members of an ensemble

    from transformers import set_seed

    from toolkit.data.auxiliary import pretraining_texts
    from toolkit.data.checks import check_texts
    from toolkit.evaluation.monitor import gold_monitor
    from toolkit.ppo.roles import load_ppo_roles
    from toolkit.ppo.trainer import PPOTrainer
    from toolkit.ppo.warnings import WatchCallback, warned
    from toolkit.preflight.report import preflight
    from toolkit.reward.functions import load_reward_functions
    from toolkit.trainers.callbacks import RunCallback
    from toolkit.trainers.interruption import interruptible

    parents = {"adapter": start.parent}
    parents |= {f"reward_{i}" if i else "reward": r for i, r in enumerate(start.reward_model)}
    functions = load_reward_functions(start.reward_funcs)
    with Run.start(
        training.output_dir, recipe="ppo", configs=configs, parents=parents, resume=resume
    ) as run:
        set_seed(training.seed)
        splits = load_splits(
            script, mixture, start, kind="prompt-only", seed=training.seed, folder=run.path
        )
        require_test_split(training, splits)
        roles, tokenizer = load_ppo_roles(
            model,
            policy=start.parent,
            rewards=start.reward_model,
            value=training.value_role,
            trust_remote_code=training.trust_remote_code,
        )
        run.base = roles.fingerprint
        splits = check_texts(splits, tokenizer, start, folder=run.path)
        held_out = splits.get("test") if training.eval_strategy != "no" else None
        if held_out is not None:
            held_out = held_out.select(range(min(start.eval_prompts, len(held_out))))
        trainer = PPOTrainer(
            roles,
            training,
            processing_class=tokenizer,
            train_dataset=splits["train"],
            eval_dataset=held_out,
            reward_funcs=functions,
            ptx_texts=pretraining_texts(start.ptx_texts, tokenizer),
            eval_metrics=None if held_out is None else gold_monitor(held_out["prompt"]),
            callbacks=[WatchCallback(), RunCallback(run)],
        )
        preflight("ppo", configs, tokenizer, trainer.train_dataset, ptx=trainer.updater.ptx)
        with interruptible(trainer):
            trainer.train(resume_from_checkpoint=resume)
        trainer.save_model()
        results = {
            "steps": trainer.state.global_step,
            "warnings": warned(trainer.state.log_history),
        }
        if trainer.ema is not None:
            results["adapter"] = str(trainer.ema)
        return run.finish(**results)


def arguments() -> tuple[type, ...]:
    from trl import DatasetMixtureConfig, ScriptArguments

    from toolkit.models.arguments import ModelArguments
    from toolkit.ppo.config import PPOConfig

    return ScriptArguments, PPOConfig, ModelArguments, DatasetMixtureConfig, PPOArguments


if __name__ == "__main__":
    sys.exit(run_cli(main, arguments(), description=__doc__))
