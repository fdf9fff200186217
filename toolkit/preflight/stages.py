"""Which training runs a YAML describes: one recipe, or the stages of a pipeline."""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from toolkit.errors import ConfigError
from toolkit.options.command_line import parse
from toolkit.options.config import find_config, options_of
from toolkit.pipeline import Pipeline
from toolkit.preflight.fake_model import recorded_parent
from toolkit.recipe import Options, Recipe, find_recipe, recipes


@dataclass(frozen=True)
class Stage:
    """A training run as its recipe would be called.

    `planned` maps the directories that earlier stages of a pipeline will write to those stages: a
    training run (`Stage`), the arguments of another command, or None.
    """

    recipe: Recipe
    options: Options
    name: str = ""
    planned: Mapping[str, Any] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        """`script`, `args`, `model`, `mixture` and `own` are those of the options."""
        if name in Options._fields:
            return getattr(self.options, name)
        raise AttributeError(name)

    @property
    def parent(self) -> str | None:
        """The run whose adapter it starts from."""
        return getattr(self.own, "parent", None)

    @property
    def rewards(self) -> list[str]:
        """The reward models."""
        return list(getattr(self.own, "reward_model", []))

    def without_devices(self) -> "Stage":
        """For another process: without the devices that the training arguments found in this one."""
        args = copy.copy(self.args)
        for name in ("_setup_devices", "distributed_state"):
            args.__dict__.pop(name, None)
        return dataclasses.replace(self, options=self.options._replace(args=args))

    def starting_adapter(self) -> tuple[str | None, Any]:
        """What tells the shape of the adapter that it starts from: a run on disk, or model arguments.

        Through the stages of a pipeline that are not made yet, back to the one that starts a new
        adapter.
        """
        parent, model = self.parent, self.model
        while parent is not None and recorded_parent(parent) is None:
            before = self.planned.get(str(parent))
            if not isinstance(before, Stage):
                return None, model
            parent, model = before.parent, before.model
        return parent, model

    @property
    def limit(self) -> int | None:
        """Tokens to which a row is truncated; None where rows are packed, or not truncated."""
        packing = getattr(self.args, "packing", False)
        return None if packing else getattr(self.args, "max_length", None)


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
    config = find_config(config)
    content = _content(config)
    if recipe is None and "stages" in content:
        if words:
            raise ConfigError(
                f"{words[0]}: options of a pipeline's stages stand in its YAML; check the config of "
                "one stage to try others"
            )
        return _pipeline(Pipeline.read(config))
    chosen = find_recipe(recipe or _recipe_of(config, content))
    options = parse(chosen.argument_classes(), ["--config", config, *words])
    return [Stage(chosen, Options(*options))]


def _pipeline(pipeline: Pipeline) -> list[Stage]:
    """The training runs of a pipeline; the options of its other stages are parsed, too."""
    stages: list[Stage] = []
    planned: dict[str, Any] = {}
    for stage in pipeline.stages:
        command, words = pipeline.command_of(stage), pipeline.words(stage)
        if isinstance(command, Recipe):
            options = Options(*parse(command.argument_classes(), words))
            makes: Any = Stage(command, options, name=stage.name, planned=dict(planned))
            stages.append(makes)
        else:
            assert command.arguments is not None
            makes = parse(command.arguments(), words)[0]
        planned[str(pipeline.directory(stage))] = makes
    return stages


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
    """The recipe that a YAML is for: the one its file is named after, or the only one with its options."""
    known = recipes()
    name = Path(config).stem.split("-")[0]
    if name in known:
        return name
    fitting = [
        name
        for name, recipe in known.items()
        if set(content) <= set(options_of(recipe.argument_classes()))
    ]
    if len(fitting) == 1:
        return fitting[0]
    which = f"those of {' and of '.join(fitting)}" if fitting else "those of no training recipe"
    raise ConfigError(
        f"{config}: its options are {which}; name the recipe: --recipe {'|'.join(fitting or known)}"
    )
