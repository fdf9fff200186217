"""Strict reading of a recipe's YAML and command line into argument dataclasses."""

import dataclasses
import difflib
import enum
import errno
import math
import os
import sys
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from toolkit.errors import ConfigError, Interrupted, ToolkitError

# options that run code: whose, and how they are given
RUNS_PYTHON = {
    "trust_remote_code": ("Python that comes with a model", "true"),
    "reward_funcs": ("the Python that it names", "FILE.py:FUNCTION"),
}


def parse(
    dataclass_types: Sequence[type], argv: Sequence[str] | None = None, *, description: str = ""
) -> tuple[Any, ...]:
    """Read `--config file.yaml` and command-line overrides into the dataclasses, strictly.

    Args:
        dataclass_types: the argument classes, such as `(ScriptArguments, SFTConfig, ModelConfig)`.
        argv: the words after the program's name; default `sys.argv[1:]`.
        description: shown by `--help`, usually the recipe's docstring.

    Returns: one instance per class, in order.
    Raises: ConfigError for an unknown key, a wrong type, a value outside the choices, a missing
        file, or anything the classes' own checks refuse. `--help` exits with 0.
    """
    from trl import TrlParser

    class StrictParser(TrlParser):  # type: ignore[misc]
        def error(self, message: str) -> NoReturn:  # argparse would print the whole usage first
            raise ConfigError(f"command line: {message}; --help lists the options")

    words = _split_config_flag(list(sys.argv[1:] if argv is None else argv))
    parser = StrictParser(dataclass_types, description=description, allow_abbrev=False)
    parser.formatter_class = _PlainHelp(parser.formatter_class)
    parser.add_argument("--config", help="YAML file with any of the options below")
    values: dict[str, Any] = {}
    if "--config" in words:
        values = read_config(_config_path(words), dataclass_types)
    named = {*values, *(w.split("=", 1)[0][2:] for w in words if w.startswith("--"))}
    defaults = _device_defaults(dataclass_types, named)
    parser.set_defaults_with_config(**{**defaults, **values})
    try:
        *instances, namespace = parser.parse_args_into_dataclasses(words)
    except ConfigError:
        raise
    except (ValueError, TypeError, ImportError, OSError) as error:
        raise ConfigError(f"{_place(words)}: {_one_line(error)}") from error
    del namespace
    _require_finite(instances)
    return tuple(instances)


def _require_finite(instances: Sequence[Any]) -> None:
    """Refuse `nan` and `inf` of a command line; a YAML's are refused when it is read."""
    for instance in instances:
        for f in dataclasses.fields(instance):
            value = getattr(instance, f.name, None)
            if isinstance(value, float) and not math.isfinite(value) and value is not f.default:
                raise ConfigError(f"command line: --{f.name} must be a finite number, got {value}")


def run_cli(
    main: Callable[..., Any],
    dataclass_types: Sequence[type],
    argv: Sequence[str] | None = None,
    *,
    description: str = "",
) -> int:
    """Parse, then call `main` with the parsed classes; an input error becomes one line and exit code 2."""
    try:
        parsed = parse(dataclass_types, argv, description=description)
        _require_local_model(parsed)
        main(*parsed)
    except ToolkitError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 128 + error.signal if isinstance(error, Interrupted) else 2
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        place = error.filename or "the output"
        print(f"{place}: no space left on the device; make room and start again", file=sys.stderr)
        return 2
    return 0


def _require_local_model(parsed: Sequence[Any]) -> None:
    """Say at once, and not after minutes of reading data, that a model's folder is not there."""
    for arguments in parsed:
        name = getattr(arguments, "model_name_or_path", None)
        if name and is_local_path(name) and not Path(name).expanduser().is_dir():
            raise ConfigError(f"model_name_or_path: {name} is no folder")


def read_config(path: str, dataclass_types: Sequence[type]) -> dict[str, Any]:
    """The YAML mapping in `path`, every key known to one of the classes and of its type."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        loaded = yaml.load(text, Loader=_UniqueKeys)  # a SafeLoader
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the config file ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a YAML file ({_one_line(error)})") from error
    if not isinstance(loaded, dict):
        got = type(loaded).__name__
        raise ConfigError(f"{path}: expected a mapping of options to values, got {got}")
    known = _fields(dataclass_types)
    for key, value in loaded.items():
        if key == "trust_remote_code" and value is False:
            continue
        for option in RUNS_PYTHON.keys() & _keys({key: value}):
            code, example = RUNS_PYTHON[option]
            raise ConfigError(
                f"{path}: `{option}` is not read from a file, whose author may not be you: it runs "
                f"{code}. If you trust it, add --{option} {example} on the command line"
            )
        if key == "env":
            raise ConfigError(f"{path}: `env` is not read; set the variables in your shell")
        if key not in known:
            raise ConfigError(f"{path}: unknown option `{key}`{_did_you_mean(key, known)}")
        hint, choices = known[key]
        if key == "resume_from_checkpoint" and isinstance(value, bool):  # documented as a switch
            loaded[key] = value
            continue
        loaded[key] = _checked(value, hint, f"{path}: `{key}`")
        if choices and value is not None and value not in choices:
            raise ConfigError(
                f"{path}: `{key}` must be one of {', '.join(map(str, choices))}, got {value!r}"
            )
    return loaded


def _keys(value: Any) -> set[str]:
    """All keys of nested mappings and lists."""
    if isinstance(value, list):
        return set().union(*map(_keys, value))
    if not isinstance(value, dict):
        return set()
    return {str(key) for key in value}.union(*map(_keys, value.values()))


class _UniqueKeys(yaml.SafeLoader):
    """YAML's safe loader, which takes the last of two equal keys in silence, refusing them."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        twice = [key for key in keys if keys.count(key) > 1]
        if twice:
            raise yaml.YAMLError(f"`{twice[0]}` is given twice")
        return super().construct_mapping(node, deep)


def _fields(dataclass_types: Sequence[type]) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """option -> (type, choices) over all classes."""
    found: dict[str, tuple[Any, tuple[Any, ...]]] = {}
    for cls in dataclass_types:
        hints = typing.get_type_hints(cls)
        for f in dataclasses.fields(cls):
            if f.init:
                named = f.metadata.get("choices") or _names_of(hints[f.name])
                found[f.name] = (hints[f.name], tuple(named))
    return found


def _names_of(hint: Any) -> list[str]:
    """What an option may be called that is an enumeration, or a text that stands for one of it."""
    kinds = [k for k in typing.get_args(hint) if isinstance(k, type) and issubclass(k, enum.Enum)]
    return [str(member.value) for kind in kinds for member in kind]


def _checked(value: Any, hint: Any, place: str) -> Any:
    """`value` if it is of type `hint` (an int may stand for a float), else ConfigError."""
    options = typing.get_args(hint) if _is_union(hint) else (hint,)
    if value is None and type(None) in options:
        return None
    for option in options:
        ok, converted = _matches(value, option, place)
        if ok:
            return converted
    wanted = " or ".join(_name(o) for o in options if o is not type(None))
    raise ConfigError(f"{place} must be {wanted}, got {value!r} ({type(value).__name__})")


def _matches(value: Any, option: Any, place: str) -> tuple[bool, Any]:
    origin = typing.get_origin(option)
    if option is Any:
        return True, value
    if origin is typing.Literal:
        return value in typing.get_args(option), value
    if origin is list or option is list:
        inner = (typing.get_args(option) or (Any,))[0]
        if isinstance(value, str) and inner is str:  # one word is a list of one, as in a shell
            value = [value]
        if not isinstance(value, list):
            return False, value
        return True, [_checked(v, inner, f"{place}[{i}]") for i, v in enumerate(value)]
    if origin is dict or option is dict:
        return isinstance(value, dict), value
    if isinstance(option, type) and dataclasses.is_dataclass(option):
        return isinstance(value, option) or _is_mapping_of(value, option, place), value
    if option is float:
        if isinstance(value, str):  # YAML reads 1e-5, without a dot, as text
            try:
                value = float(value)
            except ValueError:
                return False, value
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and math.isfinite(value), value
    if option is int:
        return isinstance(value, int) and not isinstance(value, bool), value
    if isinstance(option, type) and issubclass(option, str) and option is not str:  # enums
        return isinstance(value, str), value
    return (isinstance(value, option), value) if isinstance(option, type) else (True, value)


def _is_mapping_of(value: Any, option: Any, place: str) -> bool:
    """Whether `value` is a mapping whose keys and values fit the dataclass `option`."""
    if not isinstance(value, dict):
        return False
    known = _fields([option])
    for key, inner in value.items():
        if key not in known:
            raise ConfigError(f"{place}: unknown option `{key}`{_did_you_mean(key, known)}")
        value[key] = _checked(inner, known[key][0], f"{place}.{key}")
    missing = [
        f.name
        for f in dataclasses.fields(option)
        if f.name not in value
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{place}: `{missing[0]}` is missing")
    return True


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _name(option: Any) -> str:
    return option.__name__ if isinstance(option, type) else str(option).replace("typing.", "")


def _did_you_mean(key: Any, known: typing.Iterable[str]) -> str:
    close = difflib.get_close_matches(str(key), known, n=1)
    return f"; did you mean `{close[0]}`?" if close else ""


def _split_config_flag(words: list[str]) -> list[str]:
    """`--config=x` as `--config x`, which is all that TrlParser reads."""
    return [part for w in words for part in (w.split("=", 1) if w.startswith("--config=") else [w])]


def _config_path(words: list[str]) -> str:
    """Remove `--config x` from `words` and return x."""
    at = words.index("--config")
    if at + 1 >= len(words):
        raise ConfigError("command line: --config needs the path of a YAML file")
    words.pop(at)
    path = words.pop(at)
    if "--config" in words:
        raise ConfigError("command line: --config is given twice")
    return path


def _device_defaults(dataclass_types: Sequence[type], named: set[str]) -> dict[str, Any]:
    """TRL's configs assume a GPU with bf16; what this machine has decides unless the user does.

    Args:
        dataclass_types: one of them has `use_cpu`, or there is nothing to decide.
        named: the options that the user sets.
    """
    if "use_cpu" not in _fields(dataclass_types):
        return {}
    import torch

    if not torch.cuda.is_available():
        return {"use_cpu": True}
    # a card before Ampere emulates bf16, slowly, and counts as supporting it unless asked so
    if "bf16" in named or torch.cuda.is_bf16_supported(including_emulation=False):
        return {}
    return {"bf16": False, "fp16": True}


def _place(words: Sequence[str]) -> str:
    return "arguments" if words else "config"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


class _PlainHelp:
    """TRL's help formatter with the recipe's docstring left as it was written."""

    def __init__(self, formatter: Any) -> None:
        self.formatter = formatter

    def __call__(self, prog: str) -> Any:
        made = self.formatter(prog)
        fill = made._fill_text
        made._fill_text = lambda text, width, indent: (
            text if "\n" in text else fill(text, width, indent)
        )
        return made


def is_local_path(name: str) -> bool:
    """Whether a model or dataset name means a place on this machine rather than on the hub."""
    return (
        os.path.exists(name)
        or name.startswith((".", "/", "~"))
        or name.count("/") > 1
        or Path(name).suffix in {".json", ".jsonl", ".gz", ".csv", ".parquet"}
    )
