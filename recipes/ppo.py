"""PPO: policy, SFT reference, value and reward are four adapters on one base.

    toolkit ppo --config world/ppo --parent runs/world/sft --reward_model runs/world/reward \\
        --output_dir runs/world/ppo

Reads   prompts (docs/data.md), the SFT run, and one or several reward runs. --reward_funcs
        FILE.py:FUNCTION adds Python functions to the reward models, or replaces them.
Writes  the run directory: the policy's adapter, value/, run.json, metrics.jsonl. With ema_decay the
        adapter is the average of the policy, and last/ holds the policy itself.
"""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from toolkit.cli import run
from toolkit.errors import ConfigError
from toolkit.options.arguments import PPOArguments
from toolkit.recipe import Options, Recipe
from toolkit.stages import resolve_rewards

if TYPE_CHECKING:
    from toolkit import PPOTrainer, Training


def arguments() -> tuple[type, type]:
    from toolkit.ppo.config import PPOConfig  # heavy: imported when the recipe runs

    return PPOConfig, PPOArguments


def requirements(options: Options, planned: Mapping[str, Any]) -> Options:
    args, own = options.args, options.own
    if own.reward_funcs and not own.reward_model and args.value_role == "adapter":
        raise ConfigError(
            "ppo: the value starts from the reward model, but no reward model is given: set "
            "--value_role zero (a new adapter) or head (a head on the policy)"
        )
    if args.ptx_coef and own.ptx_texts is None:
        raise ConfigError(
            f"ppo: `ptx_coef` is {args.ptx_coef}, but there are no pretraining texts: set "
            "`ptx_texts`, such as world:corpus"
        )
    return resolve_rewards("ppo", options, planned)


def build(training: "Training") -> "PPOTrainer":
    from toolkit.data.auxiliary import pretraining_texts
    from toolkit.ppo.trainer import PPOTrainer

    return PPOTrainer(
        training.roles(),
        training.args,
        ptx_texts=pretraining_texts(training.own.ptx_texts, training.tokenizer),
        **training.online_arguments(),
    )


def save(training: "Training", trainer: "PPOTrainer") -> dict[str, Any]:
    from toolkit.ppo.warnings import warned

    trainer.save_model()
    average = {} if trainer.ema is None else {"adapter": str(trainer.ema)}
    return {"warnings": warned(trainer.state.log_history)} | average


RECIPE = Recipe(
    "ppo",
    __doc__,
    rows="prompt-only",
    arguments=arguments,
    requirements=requirements,
    build=build,
    save=save,
    not_streamed="rollouts draw from all prompts",
)

if __name__ == "__main__":
    sys.exit(run(RECIPE))
