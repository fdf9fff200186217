"""RLOO's and GRPO's trainers on the tiny base, for the tests in this folder."""

from tests.conftest import fresh_roles
from toolkit.groups.config import GRPOConfig, RLOOConfig
from toolkit.groups.trainer import GRPOTrainer, RLOOTrainer
from toolkit.ppo.roles import attach_ppo_roles
from toolkit.trainers.callbacks import RunCallback

KINDS = {"rloo": (RLOOConfig, RLOOTrainer), "grpo": (GRPOConfig, GRPOTrainer)}


def roles_with(model_config, adapter_runs, *, rewards=1):
    """A policy from the SFT-like run, and reward roles."""
    roles = fresh_roles(model_config)
    runs = [str(adapter_runs / "reward")] * rewards
    attach_ppo_roles(
        roles, policy=str(adapter_runs / "sft"), rewards=runs, model=model_config, value=None
    )
    return roles


def make_group(
    kind,
    roles,
    tokenizer,
    dataset,
    folder,
    *,
    reward_funcs=(),
    held_out=None,
    eval_metrics=None,
    callbacks=(),
    **changes,
):
    """Generations of eight answers, four to a prompt, for one step each; two steps unless changed."""
    config, trainer = KINDS[kind]
    settings = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": [],
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "num_generations": 4,
        "max_steps": 2,
        "max_completion_length": 8,
        "beta": 0.1,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    return trainer(
        roles,
        config(**(settings | changes)),
        processing_class=tokenizer,
        train_dataset=dataset,
        eval_dataset=held_out,
        reward_funcs=reward_funcs,
        eval_metrics=eval_metrics,
        callbacks=[*callbacks, RunCallback()],
    )
