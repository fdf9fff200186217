"""Commands and recipes: what a file in `recipes/` declares, and how a name finds its file.

The folder of the recipes is the only registry. `TOOLKIT_RECIPES` names further folders, so that a
recipe of your own is one file and needs no edit here.
"""

import importlib.util
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

from toolkit.data.convert import Kind
from toolkit.errors import ConfigError, exit_is_error
from toolkit.options.config import SHIPPED
from toolkit.runs.run import ENSEMBLE, Run

FOLDERS = "TOOLKIT_RECIPES"
Holds = Literal["policy", "reward model", "ensemble", "other"]


class Options(NamedTuple):
    """The parsed options of a training recipe, one argument class each.

    `args` is the trainer's config, `own` the recipe's own arguments.
    """

    script: Any
    args: Any
    model: Any
    mixture: Any
    own: Any

    @property
    def parent(self) -> str | None:
        """The run whose adapter this run starts from."""
        return getattr(self.own, "parent", None)

    @property
    def rewards(self) -> list[str]:
        """The reward models."""
        return list(getattr(self.own, "reward_model", []))

    @property
    def max_length(self) -> int | None:
        """Tokens to which a row is truncated; None if rows are packed or not truncated."""
        is_packed = getattr(self.args, "packing", False)
        return None if is_packed else getattr(self.args, "max_length", None)


@dataclass(frozen=True)
class _Named:
    name: str
    doc: str

    @property
    def summary(self) -> str:
        """The first line of the help text."""
        return self.doc.strip().splitlines()[0]


@dataclass(frozen=True)
class Command(_Named):
    """What `toolkit NAME` runs: one file in `recipes/` that defines `COMMAND` or `RECIPE`.

    Args:
        name: the name of the file without `.py`.
        doc: the help text, usually the file's docstring.
        run: called with one instance of each argument class; without `arguments`, with the words of
            the command line, and returns the exit code.
        arguments: the argument classes; a function, because they import heavy libraries.
        is_stage: pipelines may call it.
        takes_timings: a pipeline passes the seconds of the earlier stages as `--timings`.
    """

    run: Callable[..., Any]
    arguments: Callable[[], tuple[type, ...]] | None = None
    is_stage: bool = False
    takes_timings: bool = False


def _same(options: Options, planned: Mapping[str, Any]) -> Options:
    return options


@dataclass(frozen=True)
class Recipe(_Named):
    """A training recipe: everything that the shared training function and `check` need.

    Args:
        name: the name of the file without `.py`.
        doc: the help text, usually the file's docstring.
        rows: the kind of rows it trains on (docs/data.md).
        arguments: the trainer's config class and the recipe's own argument class; a function,
            because they import heavy libraries.
        build: makes the trainer from a `toolkit.training.Training`, which loads rows and models. The
            shared function checks the requirements before, and trains and saves afterwards.
        requirements: further checks before anything is loaded. Gets the options and what earlier
            stages of a pipeline will write (directory -> stage); returns the resolved options.
        save: writes files and returns results for run.json; default: writes adapter and tokenizer.
        fit: replaces build, train and save, for a recipe that trains several models in one run.
        holds: what a finished run directory holds.
        needs_parent: `parent` is required.
        takes_texts: plain text rows without a prompt are accepted, too.
        drops_long_rows: rows longer than `max_length` are left out; default: truncated.
        streams: `dataset_streaming` works; else `not_streamed` is the reason why not.
    """

    rows: Kind
    arguments: Callable[[], tuple[type, type]]
    build: Callable[[Any], Any]
    requirements: Callable[[Options, Mapping[str, Any]], Options] = _same
    save: Callable[[Any, Any], dict[str, Any]] | None = None
    fit: Callable[[Any], dict[str, Any]] | None = None
    holds: Holds = "policy"
    needs_parent: bool = False
    takes_texts: bool = False
    drops_long_rows: bool = False
    streams: bool = False
    not_streamed: str = "its trainer reads all rows before the first step"

    @property
    def is_supervised(self) -> bool:
        """Whether it trains on demonstrations; later stages are compared with its policy."""
        return self.rows == "prompt-completion" and self.holds == "policy"

    def argument_classes(self) -> tuple[type, ...]:
        """The classes of `Options`, in that order."""
        from trl import DatasetMixtureConfig, ScriptArguments

        from toolkit.models.arguments import ModelArguments

        with exit_is_error(f"recipe {self.name}"):
            config, own = self.arguments()
        return ScriptArguments, config, ModelArguments, DatasetMixtureConfig, own

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the name, because the functions are in a file that cannot be imported by name."""
        return find_recipe, (self.name,)


AnyCommand = Command | Recipe


def files() -> dict[str, Path]:
    """The file of each command by name: the shipped ones, then those of `TOOLKIT_RECIPES`.

    If several files have the same name, the first is used. Files whose name is no Python identifier
    or starts with `_` are ignored.

    Raises: ConfigError for a folder that does not exist.
    """
    own = [Path(f).expanduser() for f in os.environ.get(FOLDERS, "").split(os.pathsep) if f]
    for folder in own:
        if not folder.is_dir():
            raise ConfigError(f"{FOLDERS}: {folder} is not a folder; correct the variable")
    found = [file for folder in (SHIPPED / "recipes", *own) for file in sorted(folder.glob("*.py"))]
    by_name: dict[str, Path] = {}
    for file in (*found, SHIPPED / "app.py"):
        if file.stem.isidentifier() and not file.stem.startswith("_"):
            by_name.setdefault(file.stem, file)
    return by_name


def commands() -> dict[str, AnyCommand]:
    """Every command by name, the app included; a file that cannot be used is reported and left out."""
    loaded: dict[str, AnyCommand] = {}
    for name, file in files().items():
        try:
            loaded[name] = _load(file)
        except ConfigError as error:
            print(f"warning: {error}", file=sys.stderr)
    return loaded


def recipes() -> dict[str, Recipe]:
    """Every training recipe by name."""
    return {name: command for name, command in commands().items() if isinstance(command, Recipe)}


def find(name: str) -> AnyCommand | None:
    """The command of this name, or None.

    Raises: ConfigError for a file that cannot be imported or defines no command.
    """
    file = files().get(name)
    return None if file is None else _load(file)


def find_recipe(name: str) -> Recipe:
    """The training recipe of this name.

    Raises: ConfigError if no training recipe has this name.
    """
    recipe = find(name)
    if not isinstance(recipe, Recipe):
        raise ConfigError(f"no training recipe {name!r}; use one of {', '.join(recipes())}")
    return recipe


def holds(run: Run) -> Holds:
    """What a run directory holds; if its recipe is unknown, its files decide."""
    if run.recipe == ENSEMBLE:
        return "ensemble"
    command = _known(run)
    if command is not None:
        return command.holds if isinstance(command, Recipe) else "other"
    if (run.path / "head.safetensors").is_file():
        return "reward model"
    return "policy" if (run.path / "adapter_config.json").is_file() else "other"


def is_supervised(run: Run) -> bool:
    """Whether a run's policy was trained on demonstrations."""
    recipe = _known(run)
    return isinstance(recipe, Recipe) and recipe.is_supervised


def _known(run: Run) -> AnyCommand | None:
    """The command that wrote a run, or None where it is missing or broken."""
    try:
        return find(run.recipe)
    except ConfigError:
        return None


_loaded: dict[Path, AnyCommand] = {}


def _load(file: Path) -> AnyCommand:
    """The command that a file defines; a file is imported once."""
    file = file.resolve()
    if file not in _loaded:
        module = _import(file)
        command = getattr(module, "RECIPE", None) or getattr(module, "COMMAND", None)
        if not isinstance(command, Command | Recipe) or command.name != file.stem:
            raise ConfigError(
                f"{file}: expected RECIPE or COMMAND with the name {file.stem!r}, got {command!r}"
            )
        _loaded[file] = command
    return _loaded[file]


def _import(file: Path) -> ModuleType:
    name = f"toolkit_recipes_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever a file raises while it is imported
        raise ConfigError(
            f"{file}: cannot be imported ({type(error).__name__}: {error})"
        ) from error
    return module


def with_words(command: AnyCommand, words: Sequence[str]) -> list[str]:
    """The command line that runs a command in a process of its own.

    `-P` keeps the working directory off the import path: a file there must not replace a library.
    """
    return [sys.executable, "-P", "-m", "toolkit", command.name, *words]
