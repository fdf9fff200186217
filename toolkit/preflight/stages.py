"""Which training runs a YAML describes: one recipe, or the stages of a pipeline."""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from toolkit.errors import ConfigError
from toolkit.models.arguments import ModelArguments
from toolkit.options.arguments import (
    EvaluateArguments,
    LabelArguments,
    PPOArguments,
    RewardArguments,
    SFTArguments,
    StartArguments,
)
from toolkit.options.command_line import parse
from toolkit.pipeline import Pipeline
from toolkit.preflight.fake_model import recorded_parent

RECIPES = ("sft", "reward", "ppo", "dpo", "kto")
KINDS = {"sft": "prompt-completion", "reward": "preference", "dpo": "preference"}
KINDS |= {"ppo": "prompt-only", "kto": "unpaired"}


@dataclass(frozen=True)
class Stage:
    """A training run as its recipe would be called.

    `made_before` maps the directories of earlier stages of a pipeline to what will be made there: a
    training run, the arguments of the labelling (`LabelArguments`), or None. What is not on disk
    yet, but will be.
    """

    recipe: str
    script: Any
    training: Any
    model: Any
    mixture: Any
    start: Any
    name: str = ""
    made_before: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, recipe: str, configs: Sequence[Any], **kwargs: Any) -> "Stage":
        """From a recipe's five argument classes, in their order."""
        return cls(recipe, *configs, **kwargs)

    @property
    def configs(self) -> tuple[Any, ...]:
        """The recipe's argument classes, in their order."""
        return self.script, self.training, self.model, self.mixture, self.start

    @property
    def parent(self) -> str | None:
        """The run whose adapter it starts from."""
        return getattr(self.start, "parent", None)

    @property
    def rewards(self) -> list[str]:
        """PPO's reward models."""
        return list(getattr(self.start, "reward_model", []))

    def without_devices(self) -> "Stage":
        """For another process: without the devices that the training arguments found in this one."""
        training = copy.copy(self.training)
        for name in ("_setup_devices", "distributed_state"):
            training.__dict__.pop(name, None)
        return dataclasses.replace(self, training=training)

    def starting_adapter(self) -> tuple[str | None, Any]:
        """What tells the shape of the adapter that it starts from: a run on disk, or model arguments.

        Through the stages of a pipeline that are not made yet, back to the one that starts a new
        adapter.
        """
        parent, model = self.parent, self.model
        while parent is not None and recorded_parent(parent) is None:
            before = self.made_before.get(str(parent))
            if not isinstance(before, Stage):
                return None, model
            parent, model = before.parent, before.model
        return parent, model

    @property
    def limit(self) -> int | None:
        """Tokens to which a row is cut; None where rows are packed, or not cut."""
        if self.recipe == "ppo" or getattr(self.training, "packing", False):
            return None
        found: int | None = self.training.max_length
        return found


def argument_classes(recipe: str) -> tuple[type, ...]:
    """The argument classes of a recipe's command line."""
    from trl import (
        DatasetMixtureConfig,
        DPOConfig,
        KTOConfig,
        RewardConfig,
        ScriptArguments,
        SFTConfig,
    )

    from toolkit.ppo.config import PPOConfig

    own: dict[str, tuple[type, type]] = {
        "sft": (SFTConfig, SFTArguments),
        "reward": (RewardConfig, RewardArguments),
        "ppo": (PPOConfig, PPOArguments),
        "dpo": (DPOConfig, StartArguments),
        "kto": (KTOConfig, StartArguments),
    }
    training, start = own[recipe]
    return ScriptArguments, training, ModelArguments, DatasetMixtureConfig, start


def find_stages(
    config: str, words: Sequence[str] = (), *, recipe: str | None = None
) -> list[Stage]:
    """The training runs of a YAML.

    Args:
        config: of a recipe or of a pipeline.
        words: further options of the command line, for a recipe's YAML only.
        recipe: which recipe it is for; by default its name says it, or else its options.

    Raises: ConfigError for a YAML that is of none, or of several recipes.
    """
    content = _content(config)
    if recipe is None and "stages" in content:
        if words:
            raise ConfigError(
                f"{words[0]}: a pipeline's stages take no options from here; check one stage's config"
            )
        return _pipeline(Pipeline.read(config))
    chosen = recipe or _recipe_of(config, content)
    return [Stage.of(chosen, parse(argument_classes(chosen), ["--config", config, *words]))]


def _pipeline(pipeline: Pipeline) -> list[Stage]:
    """The training runs of a pipeline; what the other stages are asked for is parsed too."""
    found: list[Stage] = []
    made: dict[str, Any] = {}
    for stage in pipeline.stages:
        words, makes = pipeline.command(stage)[2:], None
        if stage.recipe in RECIPES:
            configs = parse(argument_classes(stage.recipe), words)
            makes = Stage.of(stage.recipe, configs, name=stage.name, made_before=dict(made))
            found.append(makes)
        else:
            own = LabelArguments if stage.recipe == "label" else EvaluateArguments
            asked = parse((own, ModelArguments), words)[0]
            makes = asked if stage.recipe == "label" else None
        made[str(pipeline.directory(stage))] = makes
    return found


def _content(config: str) -> dict[str, Any]:
    try:
        found = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{config}: cannot read the config file ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{config}: not a YAML file ({' '.join(str(error).split())})") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{config}: expected a mapping of options to values, got {found!r}")
    return found


def _recipe_of(config: str, content: Mapping[str, Any]) -> str:
    name = Path(config).stem.split("-")[0].split("_")[0]
    if name in RECIPES:
        return name
    fitting = []
    for recipe in RECIPES:
        known = {f.name for cls in argument_classes(recipe) for f in dataclasses.fields(cls)}
        if set(content) <= known:
            fitting.append(recipe)
    if len(fitting) == 1:
        return fitting[0]
    which = f"those of {' and of '.join(fitting)}" if fitting else "those of no training recipe"
    raise ConfigError(
        f"{config}: its options are {which}; say which recipe it is for: --recipe "
        f"{'|'.join(fitting or RECIPES)}"
    )
