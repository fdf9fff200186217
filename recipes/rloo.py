"""REINFORCE leave-one-out with TRL's RLOOTrainer; the SFT adapter is the reference.

    toolkit rloo --config world/rloo --parent runs/world/sft --reward_model runs/world/reward \\
        --output_dir runs/world/rloo

Reads   prompts (docs/data.md), the SFT run, and the rewards, as for PPO: reward runs, Python functions
        (--reward_funcs FILE.py:FUNCTION), or both. Without an SFT run, the policy is a new adapter
        (--use_peft true), and the reference is the base.
Writes  the run directory: the policy's adapter, run.json, metrics.jsonl.
"""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from toolkit.cli import run
from toolkit.options.arguments import OnlineArguments
from toolkit.recipe import Options, Recipe
from toolkit.stages import resolve_rewards

if TYPE_CHECKING:
    from toolkit import Training
    from toolkit.groups.trainer import RLOOTrainer


def arguments() -> tuple[type, type]:
    from toolkit.groups.config import RLOOConfig  # heavy: imported when the recipe runs

    return RLOOConfig, OnlineArguments


def requirements(options: Options, planned: Mapping[str, Any]) -> Options:
    return resolve_rewards("rloo", options, planned)


def build(training: "Training") -> "RLOOTrainer":
    from toolkit.groups.trainer import RLOOTrainer

    return RLOOTrainer(training.roles(), training.args, **training.online_arguments())


def save(training: "Training", trainer: "RLOOTrainer") -> dict[str, Any]:
    from toolkit.ppo.warnings import warned

    trainer.save_model()
    return {"warnings": warned(trainer.state.log_history)}


RECIPE = Recipe(
    "rloo",
    __doc__,
    rows="prompt-only",
    arguments=arguments,
    requirements=requirements,
    build=build,
    save=save,
    not_streamed="the order of the prompts is drawn from all prompts",
)

if __name__ == "__main__":
    sys.exit(run(RECIPE))
