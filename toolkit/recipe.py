"""Commands and recipes: the declarations of a file in `recipes/`, and the search for a command's file.

The folder of the recipes is the only registry. `TOOLKIT_RECIPES` names further folders, so that you can add
a recipe as one file without an edit here.
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
    """A command, run by `toolkit NAME`: one file in `recipes/` that defines `COMMAND` or `RECIPE`.

    Args:
        name: the name of the file without `.py`.
        doc: the help text, usually the file's docstring.
        run: called with one instance of each argument class. If `arguments` is None, it gets the words of
            the command line and returns the exit code.
        arguments: returns the argument classes; a function, because importing them loads heavy libraries.
        is_stage: a pipeline may have it as a stage.
        takes_timings: a pipeline passes the seconds of the earlier stages as `--timings`.
        resumes: a pipeline passes `--resume_from_checkpoint` after an interruption, as to a recipe.
    """

    run: Callable[..., Any]
    arguments: Callable[[], tuple[type, ...]] | None = None
    is_stage: bool = False
    takes_timings: bool = False
    resumes: bool = False


def _same(options: Options, planned: Mapping[str, Any]) -> Options:
    return options


@dataclass(frozen=True)
class Recipe(_Named):
    """A training recipe: everything that the shared training function and `check` need.

    Args:
        name: the name of the file without `.py`.
        doc: the help text, usually the file's docstring.
        rows: the kind of rows that it trains on (docs/data.md).
        arguments: returns the trainer's config class and the recipe's own argument class; a function,
            because importing them loads heavy libraries.
        build: makes the trainer from a `toolkit.training.Training`, which loads rows and models. The shared
            function checks the requirements before this call, and trains and saves after it.
        requirements: further checks before anything is loaded. It gets the options and the directories that
            earlier pipeline stages will write (directory -> stage), and returns the resolved options.
        save: writes files and returns results for run.json; default: writes adapter and tokenizer.
        fit: replaces `build`, training and `save` if a recipe trains several models in one run.
        holds: the content of a finished run directory, in words.
        needs_parent: `parent` is required.
        takes_texts: whether plain text rows without a prompt are also accepted.
        drops_long_rows: rows longer than `max_length` are left out; default: truncated.
        streams: whether `dataset_streaming` works; if not, `not_streamed` is the reason.
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
        """Whether the recipe trains on demonstrations; its policy is then the reference of later stages."""
        return self.rows == "prompt-completion" and self.holds == "policy"

    def argument_classes(self) -> tuple[type, ...]:
        """The argument classes, in the order of the fields of `Options`."""
        from trl import DatasetMixtureConfig, ScriptArguments

        from toolkit.models.arguments import ModelArguments

        with exit_is_error(f"recipe {self.name}"):
            config, own = self.arguments()
        return ScriptArguments, config, ModelArguments, DatasetMixtureConfig, own

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle only the name, because the functions are in a file that cannot be imported by name."""
        return find_recipe, (self.name,)


AnyCommand = Command | Recipe


def files() -> dict[str, Path]:
    """The file of each command by name: the shipped ones, then those of `TOOLKIT_RECIPES`.

    A file is ignored if its name starts with `_` or is not a Python identifier.

    Raises: ConfigError for a folder that does not exist, and for two files with the same name.
    """
    own = [Path(f).expanduser() for f in os.environ.get(FOLDERS, "").split(os.pathsep) if f]
    for folder in own:
        if not folder.is_dir():
            raise ConfigError(f"{FOLDERS}: {folder} is not a folder; correct the variable")
    shipped = [*sorted((SHIPPED / "recipes").glob("*.py")), SHIPPED / "app.py"]
    by_name: dict[str, Path] = {}
    for file in (*shipped, *(file for folder in own for file in sorted(folder.glob("*.py")))):
        if not file.stem.isidentifier() or file.stem.startswith("_"):
            continue
        first = by_name.setdefault(file.stem, file)
        if first.resolve() != file.resolve():
            raise ConfigError(
                f"{FOLDERS}: {file} has the name of another command, {first}; rename the file"
            )
    return by_name


def commands() -> dict[str, AnyCommand]:
    """All commands by name, including the app; a file that cannot be used is reported and left out."""
    loaded: dict[str, AnyCommand] = {}
    for name, file in files().items():
        try:
            loaded[name] = _load(file)
        except ConfigError as error:
            print(f"warning: {error}", file=sys.stderr)
    return loaded


def recipes() -> dict[str, Recipe]:
    """All training recipes by name."""
    return {name: command for name, command in commands().items() if isinstance(command, Recipe)}


def find(name: str) -> AnyCommand | None:
    """The command with this name, or None.

    Raises: ConfigError for a file that cannot be imported or defines no command.
    """
    file = files().get(name)
    return None if file is None else _load(file)


def find_recipe(name: str) -> Recipe:
    """The training recipe with this name.

    Raises: ConfigError if no training recipe has this name.
    """
    recipe = find(name)
    if not isinstance(recipe, Recipe):
        raise ConfigError(f"no training recipe {name!r}; use one of {', '.join(recipes())}")
    return recipe


def holds(run: Run) -> Holds:
    """The content of a run directory, from its recipe or, if the recipe is unknown, from its files."""
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


def is_online(run: Run) -> bool:
    """Whether a run's policy was trained on its own answers, as in PPO."""
    recipe = _known(run)
    return isinstance(recipe, Recipe) and recipe.rows == "prompt-only"


def _known(run: Run) -> AnyCommand | None:
    """The command that wrote a run; None if the command is missing or cannot be imported."""
    try:
        return find(run.recipe)
    except ConfigError:
        return None


_loaded: dict[Path, AnyCommand] = {}


def _load(file: Path) -> AnyCommand:
    """The command that a file defines; each file is imported only once."""
    file = file.resolve()
    if file not in _loaded:
        module = _import(file)
        command = getattr(module, "RECIPE", None) or getattr(module, "COMMAND", None)
        if not isinstance(command, Command | Recipe) or command.name != file.stem:
            raise ConfigError(
                f"{file}: must define RECIPE or COMMAND with the name {file.stem!r}, got {command!r}"
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
    except (Exception, SystemExit) as error:  # a file may raise anything during its import
        raise ConfigError(
            f"{file}: cannot be imported ({type(error).__name__}: {error})"
        ) from error
    return module


def with_words(command: AnyCommand, words: Sequence[str]) -> list[str]:
    """The command line that runs a command in its own process.

    `-P` keeps the working directory off the import path: a file there must not replace a library.
    """
    return [sys.executable, "-P", "-m", "toolkit", command.name, *words]
