"""Checks of a pipeline's YAML before it becomes command lines."""

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit.errors import ConfigError
from toolkit.options.bounds import SEEDS
from toolkit.options.config import check_output_dir, code_option

# how a pipeline's user gives an option that runs code
_ADVICE = {
    "trust_remote_code": "run the pipeline with --trust_remote_code",
    "reward_funcs": "run the pipeline with --reward_funcs FILE.py:FUNCTION",
    "attn_implementation": "run the stage by itself with --attn_implementation OWNER/NAME",
}
MOST_STAGES, MOST_CHARACTERS = 100, 100_000
# options that the pipeline itself gives to its stages
_SET_BY_PIPELINE = ("config", "help", "resume_from_checkpoint", "timings")


def stage_options(
    options: Mapping[Any, Any], known: Mapping[str, str], place: str
) -> dict[str, Any]:
    """A stage's options, in which `{name}` is replaced by its text in `known`.

    Args:
        known: the pipeline's `values`, and the directories of the earlier stages, by name.
        place: the stage, for messages.

    Raises: ConfigError for an unknown name, an option that runs code, or a name or value that the
        command line would read as another option.
    """
    filled = {}
    for name, value in options.items():
        value = _filled(value, known, place)
        _refuse_code(name, value, place)
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise ConfigError(
                f"{place}: an option's name must consist of letters, digits and _, got {name!r}"
            )
        if name in _SET_BY_PIPELINE:
            raise ConfigError(f"{place}: `{name}` is set by the pipeline; remove it")
        if name == "output_dir" and not isinstance(value, str):
            raise ConfigError(f"{place}: `output_dir` must be text, got {value!r}")
        for word in value if isinstance(value, list) else [value]:
            check_word(word, f"{place}: `{name}`")
        filled[name] = value
    return filled


def require_keys(
    content: Any, types: dict[str, type], place: str, optional: set[str] | None = None
) -> None:
    """Check the keys of a mapping in a YAML and the types of their values.

    Raises: ConfigError for an unknown or missing key, or a value of another type.
    """
    if not isinstance(content, dict):
        raise ConfigError(f"{place}: expected a mapping, got {type(content).__name__}")
    for key in content:
        if key not in types:
            raise ConfigError(f"{place}: unknown key `{key}`; known keys are {', '.join(types)}")
    for key, kind in types.items():
        if key not in content and key in (optional or set()):
            continue
        if not isinstance(content.get(key), kind):
            raise ConfigError(f"{place}: `{key}` must be {kind.__name__}, got {content.get(key)!r}")


def read_values(content: Mapping[str, Any], given: Sequence[str], file: str) -> dict[str, str]:
    """The texts that replace `{name}` in the stages' options: the YAML's `values`, or `NAME=TEXT`.

    Raises: ConfigError for a value that is not text, or a name that is unknown or a stage's.
    """
    values: dict[str, str] = content.get("values", {})
    for name, value in values.items():
        if not isinstance(value, str) or name in content["stages"] or name == "output_dir":
            raise ConfigError(
                f"{file}: `values` must map names, which no stage has, to texts; got {name!r}: {value!r}"
            )
    changed = {}
    for word in given:
        name, equals, value = word.partition("=")
        if not equals or name not in values:
            known = ", ".join(map(str, values)) or "none"
            raise ConfigError(
                f"--values: expected NAME=TEXT with a name that {file} lists in `values` ({known}), "
                f"got {word!r}"
            )
        changed[name] = value
    return values | changed


def pipeline_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--values`, and the options that run code, which a pipeline's YAML must not set."""
    parser.add_argument(
        "--values",
        nargs="+",
        default=(),
        metavar="NAME=TEXT",
        help="texts in place of the YAML's `values`",
    )
    parser.add_argument(
        "--trust_remote_code", action="store_true", help="run Python that comes with the model"
    )
    parser.add_argument(
        "--reward_funcs",
        nargs="+",
        default=(),
        metavar="FILE.py:FUNCTION",
        help="reward functions for each stage that has this option",
    )


def check_word(word: Any, place: str) -> None:
    """Check a value that becomes one word of a command line.

    Raises: ConfigError for a value that is not text, a number or a boolean, or that starts like an option.
    """
    if not isinstance(word, str | int | float):
        raise ConfigError(
            f"{place} must be text, a number, a boolean or a list of these, got {word!r}; set it in the "
            "stage's config"
        )
    if isinstance(word, str) and ("\0" in word or len(word) > MOST_CHARACTERS):
        raise ConfigError(
            f"{place} must have at most {MOST_CHARACTERS:,} characters and no NUL character; set it in the "
            "stage's config"
        )
    if isinstance(word, str) and word.startswith("-") and not _is_number(word):
        raise ConfigError(f"{place} would be read as another option, got {word!r}; remove the dash")


def check_size(content: Mapping[str, Any], file: str) -> None:
    """Check the seed, the number of stages and the stages' names.

    Raises: ConfigError that names the fault.
    """
    seed, stages = content["seed"], content["stages"]
    if isinstance(seed, bool) or not 0 <= seed <= SEEDS:
        raise ConfigError(f"{file}: `seed` must be an integer in 0…{SEEDS}, got {seed}")
    if len(stages) > MOST_STAGES:
        raise ConfigError(f"{file}: has {len(stages)} stages; at most {MOST_STAGES} are supported")
    if "output_dir" in stages:
        raise ConfigError(
            f"{file}: a stage's name cannot be `output_dir`, which stands for the pipeline's folder"
        )


def check_folders(folders: Mapping[str, Path], file: str) -> None:
    """Check that each stage has a folder of its own, not inside an earlier stage's folder.

    Args:
        folders: the folder that each stage writes to. A report may be in the pipeline's own folder.

    Raises: ConfigError that names the stages.
    """
    resolved: dict[str, Path] = {}
    for name, folder in folders.items():
        check_output_dir(str(folder))
        own = folder.resolve()
        for other, taken in resolved.items():
            if own == taken or taken in own.parents:
                raise ConfigError(
                    f"{file}: stage `{name}`: its folder {folder} is or lies in the folder of stage "
                    f"`{other}`; choose another `output_dir`"
                )
        resolved[name] = own


def _refuse_code(name: Any, value: Any, place: str) -> None:
    """Raises: ConfigError for an option that runs code, also if it is a word inside a value."""
    words = value if isinstance(value, list) else [value]
    as_options = [w for w in (name, *words) if isinstance(w, str) and (w is name or w[:1] == "-")]
    option = code_option(name, value)
    for word in as_options:
        key, _, rest = word.lstrip("-").partition("=")
        option = option or code_option(key.strip().replace("-", "_"), rest or value)
    if option is not None:
        raise ConfigError(
            f"{place}: `{option}` cannot be set in a file, because it runs code; if you trust that "
            f"code, {_ADVICE[option]}"
        )


def _filled(value: Any, known: Mapping[str, str], place: str) -> Any:
    """Replace `{name}` by its text in `known`."""
    if isinstance(value, list):
        return [_filled(v, known, place) for v in value]
    if not isinstance(value, str):
        return value
    for name in re.findall(r"\{(\w+)\}", value):
        if name not in known:
            raise ConfigError(
                f"{place}: {value!r} names `{name}`, which is neither an earlier stage nor in `values`"
            )
    return re.sub(r"\{(\w+)\}", lambda m: known[m[1]], value)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
