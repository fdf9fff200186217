"""Checks of a recipe's command line before libraries are imported, which takes seconds."""

import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from toolkit.data.sources import check_name
from toolkit.errors import ConfigError
from toolkit.options.command_line import require_local_model
from toolkit.options.config import (
    SHIPPED,
    better_name,
    find_config,
    is_local_path,
    load_yaml,
    reject_key,
)
from toolkit.recipe import Recipe, files
from toolkit.runs.inputs import require_separate
from toolkit.runs.parents import require_adapter, require_reward_models

HELP = {"-h", "--help"}
# the files that define the options of the recipes in `recipes/`, beside the recipe's own file, by package
DEFINITIONS = {
    "trl": ("trainer/*config.py", "scripts/utils.py"),
    "transformers": ("training_args.py",),
    "toolkit": ("options/arguments.py", "models/arguments.py", "ppo/config.py", "groups/config.py"),
}


def check_early(recipe: Recipe, words: Sequence[str]) -> None:
    """Check the config file, the names of options, and the local paths. Parsing checks the rest.

    Raises: ConfigError, DatasetError or CheckpointError with the message that a later check has.
    """
    if HELP & set(words):
        return
    options = _options(words)
    file = files().get(recipe.name)  # a file elsewhere may import its options from further files
    known = _known_options(file) if file and file.parent == SHIPPED / "recipes" else []
    for name in options if known else ():
        if name not in {*known, "config"} and not name.startswith("no_"):
            hint = better_name(name, known) or "; --help lists the options"
            raise ConfigError(f"command line: unknown option `--{name}`{hint}")
    values: dict[str, Any] = {}
    if len(options.get("config", [])) == 1:
        path = find_config(options["config"][0])
        values = load_yaml(path)
        for key, value in values.items() if known else ():
            reject_key(path, key, value, known)
    _check_paths(values | {n: v[0] if len(v) == 1 else v for n, v in options.items()})


def _options(words: Sequence[str]) -> dict[str, list[str]]:
    """The options of a command line with their values."""
    options: dict[str, list[str]] = {}
    values: list[str] = []
    for word in words:
        if not word.startswith("--"):
            values.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        values = options.setdefault(name.replace("-", "_"), [])
        values += [value] if equals else []
    return options


def _known_options(recipe: Path) -> list[str]:
    """The annotated names in a recipe's file and in `DEFINITIONS`: all its options, and other names.

    Returns: an empty list if a version of a library has other files.
    """
    sources = [recipe]
    for package, patterns in DEFINITIONS.items():
        spec = find_spec(package)  # does not import the package
        folder = Path(str(spec.origin)).parent if spec else Path()
        for pattern in patterns:
            found = sorted(folder.glob(pattern))
            if not found:
                return []
            sources += found
    text = "\n".join(file.read_text(encoding="utf-8") for file in sources)
    return sorted(set(re.findall(r"^    (\w+): ", text, re.MULTILINE)))


def _check_paths(values: Mapping[str, Any]) -> None:
    """Check that the base, the data, the parent and the reward models exist if they are local."""
    model, data, parent = (
        values.get(name) for name in ("model_name_or_path", "dataset_name", "parent")
    )
    rewards, output = values.get("reward_model"), values.get("output_dir")
    if isinstance(output, str):
        require_separate(output, values)
    if isinstance(model, str):
        require_local_model(model)
    if isinstance(parent, str) and not Path(parent).is_dir():
        require_adapter(parent, "parent")
    for run in [rewards] if isinstance(rewards, str) else rewards or ():
        if isinstance(run, str) and not Path(run).is_dir():
            require_reward_models(run)
    if isinstance(data, str) and is_local_path(data) and not Path(data).expanduser().exists():
        check_name(data, values.get("dataset_config"))
