"""The training runs in a YAML of a recipe (one run) or of a pipeline (its training stages)."""

import argparse
import copy
import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.early import check_early
from toolkit.errors import ConfigError
from toolkit.options.command_line import parse
from toolkit.options.config import find_config, is_local_path, load_yaml, options_of
from toolkit.options.stage_options import pipeline_arguments
from toolkit.pipeline import Pipeline
from toolkit.reading import read_json
from toolkit.recipe import Options, Recipe, find_recipe, recipes
from toolkit.reward.functions import load_reward_functions
from toolkit.runs.parents import is_finished, require_reward_models
from toolkit.runs.run import Run


@dataclass(frozen=True)
class Stage:
    """A training run: its recipe and its options.

    `planned` maps each directory that an earlier stage of the pipeline will write to that stage: a training
    run (`Stage`), the arguments of another command, or None.
    """

    recipe: Recipe
    options: Options
    name: str = ""
    planned: Mapping[str, Any] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        """Return attributes of the options, such as `args` and `parent`."""
        if name == "options" or name.startswith("__"):  # while a copy is made
            raise AttributeError(name)
        return getattr(self.options, name)

    def without_devices(self) -> "Stage":
        """A copy for another process, in which the training arguments choose their devices again."""
        args = copy.copy(self.args)
        for name in ("_setup_devices", "distributed_state"):
            args.__dict__.pop(name, None)
        return dataclasses.replace(self, options=self.options._replace(args=args))

    def starting_adapter(self) -> tuple[str | None, Any]:
        """The adapter that this run starts from: the path of a run, or the options of a new adapter.

        If a parent stage has not run yet, this is the adapter that the parent stage starts from.
        """
        parent, model = self.parent, self.model
        while parent is not None and not has_adapter_config(parent):
            stage = self.planned.get(str(parent))
            if not isinstance(stage, Stage):
                return None, model
            parent, model = stage.parent, stage.model
        return parent, model


def find_stages(
    config: str, words: Sequence[str] = (), *, recipe: str | None = None
) -> list[Stage]:
    """The training runs in a YAML.

    Args:
        config: the YAML of a recipe or of a pipeline.
        words: further options of the command line; for a pipeline only `--values` and those that run code.
        recipe: a recipe's name; default: the one in the file's name (my-sft-2), or the only one with
            these options.

    Raises: ConfigError for a YAML that fits no recipe, or several.
    """
    config = find_config(config)
    content = load_yaml(config)
    if recipe is None and "stages" in content:
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        pipeline_arguments(parser)
        code, others = parser.parse_known_args(words)
        if others:
            raise ConfigError(
                f"{others[0]}: a pipeline's stages have their options in its YAML; to try other options, "
                "check the config of one stage"
            )
        return _pipeline(Pipeline.read(config, **vars(code)))
    chosen = find_recipe(recipe or _recipe_of(config, content))
    check_early(chosen, ["--config", config, *words])
    options = parse(chosen.argument_classes(), ["--config", config, *words])
    return [Stage(chosen, Options(*options))]


def _pipeline(pipeline: Pipeline) -> list[Stage]:
    """The training runs of a pipeline. The options of its other stages are only parsed."""
    stages: list[Stage] = []
    planned: dict[str, Any] = {}
    for stage in pipeline.stages:
        command, words = pipeline.command_of(stage), pipeline.words(stage)
        if isinstance(command, Recipe):
            options = Options(*parse(command.argument_classes(), words))
            parsed: Any = Stage(command, options, name=stage.name, planned=dict(planned))
            stages.append(parsed)
        else:
            assert command.arguments is not None
            parsed = parse(command.arguments(), words)[0]
        planned[str(pipeline.directory(stage))] = parsed
    return stages


def _recipe_of(config: str, content: Mapping[str, Any]) -> str:
    """The recipe in the name of a YAML, or the only one that has all its options."""
    known = recipes()
    stem, longest_first = Path(config).stem.lower(), sorted(known, key=len, reverse=True)
    named = re.findall(f"(?<![a-z0-9])({'|'.join(longest_first)})(?![a-z0-9])", stem)
    if len(set(named)) == 1 or (named and stem.startswith(named[0])):  # not after-sft-dpo
        return str(named[0])
    matching = [
        name
        for name, recipe in known.items()
        if set(content) <= set(options_of(recipe.argument_classes()))
    ]
    if len(matching) == 1:
        return matching[0]
    fit = f"fit {' and '.join(matching)}" if matching else "fit no training recipe"
    raise ConfigError(
        f"{config}: the options in this file {fit}; name the recipe: --recipe {'|'.join(matching or known)}"
    )


def has_adapter_config(run: str) -> bool:
    """Whether a run's directory has a readable adapter config."""
    try:
        read_json(Path(run) / "adapter_config.json")
    except (OSError, ValueError):
        return False
    return True


def is_planned(name: str | None, planned: Mapping[str, Any]) -> bool:
    """Whether an earlier stage of the pipeline has yet to write the run or dataset of this name.

    A run or dataset that exists and is finished is checked like any other.
    """
    folder = Path(written_by(name))
    if str(folder) not in planned:
        return False
    if (folder / "run.json").is_file() and not (folder / "adapter_config.json").is_file():
        return Run.load(folder).state != "finished"  # comparisons, or an ensemble
    return not is_finished(folder) if is_local_path(str(folder)) else True


def written_by(name: str | None) -> str:
    """The folder of the stage that writes a run or dataset; a stage's JSONL file is a dataset, too."""
    name = str(name)
    return str(Path(name).parent) if name.endswith(".jsonl") else name


def resolve_rewards(recipe: str, options: Options, planned: Mapping[str, Any]) -> Options:
    """Check the sources of the rewards: `reward_model`, `reward_funcs`, or both.

    Returns: the options, with each ensemble of reward models replaced by its members.
    Raises: ConfigError without rewards, or for a function that cannot be imported; CheckpointError
        for a run that is missing, unfinished, or not a reward model.
    """
    own = options.own
    load_reward_functions(own.reward_funcs)  # a broken function stops here, before anything loads
    if not own.reward_model and not own.reward_funcs:
        raise ConfigError(
            f"{recipe}: `reward_model` is missing; set --reward_model runs/world/reward, or "
            "--reward_funcs FILE.py:FUNCTION"
        )
    resolved: list[str] = []
    for run in own.reward_model:
        if is_planned(run, planned):
            size = getattr(getattr(planned[str(run)], "own", None), "ensemble", 1)
            resolved += [run] if size == 1 else [f"{run}/member-{i}" for i in range(size)]
        else:
            resolved += require_reward_models(run)
    return options._replace(own=dataclasses.replace(own, reward_model=resolved))
