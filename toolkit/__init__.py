"""Parameter-efficient RLHF on one GPU: SFT, reward model, PPO, RLOO, GRPO, DPO and KTO on one frozen base.

The public names are in `__all__`; each is imported from its module when it is first used, so that
`import toolkit` stays cheap. Importing the package sets `HF_HUB_DISABLE_TELEMETRY=1` and
`GRADIO_ANALYTICS_ENABLED=False`, because huggingface_hub and Gradio read them at import. Values of the
environment are kept.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

__version__ = "0.1.0"

_MODULES = {
    "Command": "recipe",
    "GRPOConfig": "groups.config",
    "GRPOTrainer": "groups.trainer",
    "ModelArguments": "models.arguments",
    "Options": "recipe",
    "PPOConfig": "ppo.config",
    "PPOTrainer": "ppo.trainer",
    "RLOOConfig": "groups.config",
    "RLOOTrainer": "groups.trainer",
    "Recipe": "recipe",
    "Roles": "models.roles",
    "Run": "runs.run",
    "ToolkitError": "errors",
    "Training": "training",
    "list_runs": "runs.listing",
    "load_base": "models.base",
    "load_ppo_roles": "ppo.roles",
    "load_splits": "data.loading",
    "train": "runner",
}
__all__ = ["__version__", *_MODULES]

if TYPE_CHECKING:
    from toolkit.data.loading import load_splits as load_splits
    from toolkit.errors import ToolkitError as ToolkitError
    from toolkit.groups.config import GRPOConfig as GRPOConfig
    from toolkit.groups.config import RLOOConfig as RLOOConfig
    from toolkit.groups.trainer import GRPOTrainer as GRPOTrainer
    from toolkit.groups.trainer import RLOOTrainer as RLOOTrainer
    from toolkit.models.arguments import ModelArguments as ModelArguments
    from toolkit.models.base import load_base as load_base
    from toolkit.models.roles import Roles as Roles
    from toolkit.ppo.config import PPOConfig as PPOConfig
    from toolkit.ppo.roles import load_ppo_roles as load_ppo_roles
    from toolkit.ppo.trainer import PPOTrainer as PPOTrainer
    from toolkit.recipe import Command as Command
    from toolkit.recipe import Options as Options
    from toolkit.recipe import Recipe as Recipe
    from toolkit.runner import train as train
    from toolkit.runs.listing import list_runs as list_runs
    from toolkit.runs.run import Run as Run
    from toolkit.training import Training as Training


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
