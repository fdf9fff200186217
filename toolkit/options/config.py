"""Read a recipe's YAML strictly: each key must be an option, each value of the option's type."""

import dataclasses
import difflib
import enum
import errno
import math
import os
import types
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from toolkit.errors import ConfigError
from toolkit.options.old_names import current_name
from toolkit.reading import MAX_YAML_BYTES, parse_json, parse_yaml, read_text

# recipes, configs and app.py: inside the installed package, or at the top of a clone
_PACKAGE = Path(__file__).resolve().parents[1]
SHIPPED = _PACKAGE / "_shipped" if (_PACKAGE / "_shipped").is_dir() else _PACKAGE.parent

LONGEST_NAME = 255  # bytes of a file's name in common file systems
# options that run code: which code, and an example value
RUNS_PYTHON = {
    "trust_remote_code": ("Python that comes with a model", "true"),
    "reward_funcs": ("the Python that it names", "FILE.py:FUNCTION"),
    "attn_implementation": ("a kernel of the hub", "OWNER/NAME"),  # only with a slash
}


def shipped_configs() -> dict[str, str]:
    """The shipped configs as name -> file; a name is, for example, `world/sft`."""
    folder = SHIPPED / "recipes" / "configs"
    return {
        f.relative_to(folder).with_suffix("").as_posix(): str(f) for f in folder.rglob("*.yaml")
    }


def find_config(name: str) -> str:
    """A config file: a path, or a shipped config by its name."""
    shipped, key = shipped_configs(), name.removesuffix(".yaml")
    if not Path(name).is_file() and key not in shipped:
        hint = _did_you_mean(key, shipped)
        raise ConfigError(f"{name}: neither a config file nor the name of a shipped config{hint}")
    return name if Path(name).is_file() else shipped[key]


def load_yaml(path: str) -> dict[str, Any]:
    """The YAML mapping in a file.

    Raises: ConfigError for a file that cannot be read, is not YAML, or is not a mapping.
    """
    try:
        loaded = parse_yaml(read_text(Path(path), at_most=MAX_YAML_BYTES))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the config file ({error.strerror})") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not a YAML file ({one_line(error)})") from error
    if not isinstance(loaded, dict):
        got = type(loaded).__name__
        raise ConfigError(f"{path}: expected a mapping of options to values, got {got}")
    return loaded


def read_config(path: str, dataclass_types: Sequence[type]) -> dict[str, Any]:
    """Read a YAML mapping; each key must be an option of a class, with a value of its type."""
    path = find_config(path)
    loaded = load_yaml(path)
    known = options_of(dataclass_types)
    for key, value in loaded.items():
        reject_key(path, key, value, known)
        if key == "trust_remote_code":
            continue
        hint, choices = known[key]
        if key == "resume_from_checkpoint" and isinstance(value, bool):  # documented as a boolean
            loaded[key] = value
            continue
        loaded[key] = _checked(value, hint, f"{path}: `{key}`")
        if choices and value is not None and value not in choices:
            raise ConfigError(
                f"{path}: `{key}` must be one of {', '.join(map(str, choices))}, got {value!r}"
            )
    return loaded


def reject_key(path: str, key: Any, value: Any, known: typing.Collection[str]) -> None:
    """Raise ConfigError if a config file cannot set an option. `known` has the names of all options."""
    is_off = key == "trust_remote_code" and value is False
    option = None if is_off else code_option(key, value)
    if option is not None:
        code, example = RUNS_PYTHON[option]
        raise ConfigError(
            f"{path}: `{option}` cannot be set in a file, because it runs {code}. If you trust that "
            f"code, add --{option} {example} on the command line"
        )
    if key == "env":
        raise ConfigError(f"{path}: `env` is not supported; set the variables in your shell")
    if key not in known and not is_off:
        raise ConfigError(f"{path}: unknown option `{str(key)[:80]}`{better_name(key, known)}")


def code_option(key: Any, value: Any) -> str | None:
    """The option of `RUNS_PYTHON` that a key sets, directly or in mappings, lists or JSON text."""
    if key in RUNS_PYTHON and (key != "attn_implementation" or "/" in str(value)):
        return str(key)
    # options of mappings accept JSON
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            value = parse_json(value)
        except ValueError:
            return None
    inner: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list):
        inner = [(None, part) for part in value]
    return next(filter(None, (code_option(*pair) for pair in inner)), None)


def options_of(dataclass_types: Sequence[type]) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """The options of all classes: name -> (type, choices)."""
    options: dict[str, tuple[Any, tuple[Any, ...]]] = {}
    for cls in dataclass_types:
        hints = typing.get_type_hints(cls)
        for f in dataclasses.fields(cls):
            if f.init:
                choices = f.metadata.get("choices") or _names_of(hints[f.name])
                options[f.name] = (hints[f.name], tuple(choices))
    return options


def _names_of(hint: Any) -> list[str]:
    """The values of an option whose type is an enumeration, or text that names a member."""
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
        if isinstance(value, str) and inner is str:
            value = [value]  # as on the command line
        if not isinstance(value, list):
            return False, value
        return True, [_checked(v, inner, f"{place}[{i}]") for i, v in enumerate(value)]
    if origin is dict or option is dict:
        return isinstance(value, dict), value
    if isinstance(option, type) and dataclasses.is_dataclass(option):
        return isinstance(value, option) or _is_mapping_of(value, option, place), value
    if option is float:
        if isinstance(value, str):  # YAML reads 1e-5 (without a dot) as text
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
    known = options_of([option])
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


def better_name(key: Any, known: typing.Collection[str]) -> str:
    """A hint to end a message with: the current name of an old option, or a similar name."""
    current = current_name(str(key), known)
    return _did_you_mean(key, known) if current is None else f"; {current}"


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def is_local_path(name: str) -> bool:
    """Whether the name of a model or dataset is a local path, not a name on the hub."""
    return (
        os.path.exists(name)
        or name.startswith((".", "/", "~"))
        or name.count("/") > 1
        or Path(name).suffix in {".json", ".jsonl", ".ndjson", ".gz", ".csv", ".tsv", ".parquet"}
    )


def check_output_dir(path: str) -> None:
    """Check that a folder to write to can have this path; nothing is created.

    Raises: ConfigError with the reason.
    """
    reason = None if path.isprintable() else "its name has a control character"
    if any(len(os.fsencode(part)) > LONGEST_NAME for part in Path(path).parts):
        # also in a folder that does not exist yet
        reason = reason or os.strerror(errno.ENAMETOOLONG)
    try:
        if reason is None:
            os.lstat(Path(path) / ("x" * 80))  # as long as the names of temporary files
    except FileNotFoundError:
        if any(p.is_symlink() and not p.exists() for p in (Path(path), *Path(path).parents)):
            reason = "a symbolic link in it leads to a missing folder"
    except OSError as error:
        reason = error.strerror
    if reason or not path:
        name = shortened(path)
        raise ConfigError(
            f"output_dir: {name!r} cannot be a folder ({reason or 'it is empty'}); choose another"
        )


def shortened(path: Any) -> str:
    """A path as text of at most 200 characters, for messages."""
    text = str(path)
    return text if len(text) <= 200 else f"{text[:100]}…{text[-99:]}"
