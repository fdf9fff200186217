"""Parse a command line and its YAML file into argument dataclasses, strictly."""

import dataclasses
import errno
import math
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from toolkit.errors import ConfigError, ToolkitError
from toolkit.options.config import (
    better_name,
    check_output_dir,
    is_local_path,
    one_line,
    options_of,
    read_config,
    shortened,
)

PATH_ERRORS = (
    errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ELOOP,
)  # fmt: skip
LIMITS: Mapping[int | None, str] = {
    errno.ENOSPC: "no space left on the device; free space",
    errno.EDQUOT: "no space left on the device; free space",
    errno.EFBIG: "larger than this shell allows; raise `ulimit -f`",
    errno.EMFILE: "too many open files; raise `ulimit -n`",
    errno.ENFILE: "too many open files on this machine; close some",
}
# the numbers of processes that launchers pass to accelerate, which would wait for all of them
PROCESSES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def parse(
    dataclass_types: Sequence[type],
    argv: Sequence[str] | None = None,
    *,
    description: str = "",
    prog: str | None = None,
) -> tuple[Any, ...]:
    """Read `--config file.yaml` and command-line overrides into the dataclasses, strictly.

    Args:
        dataclass_types: the argument classes, such as `(ScriptArguments, SFTConfig, ModelConfig)`.
        argv: the words after the program's name; default `sys.argv[1:]`.
        description: the text of `--help`, usually the recipe's docstring.
        prog: the command's name in `--help`; default the name of the script.

    Returns: one instance per class, in order.
    Raises: ConfigError for an unknown key, a wrong type, a value outside the choices, a missing
        file, or a value that a class rejects. `--help` exits with 0.
    """
    from trl import TrlParser

    class StrictParser(TrlParser):  # type: ignore[misc]
        def error(self, message: str) -> NoReturn:  # argparse would print the whole usage first
            raise ConfigError(f"command line: {message}; --help lists the options")

    words = _split_config_flag(list(sys.argv[1:] if argv is None else argv))
    for word in words:
        if not _is_text(word):
            raise ConfigError(f"command line: {word!a} is not UTF-8 text; rename the file")
    known = options_of(dataclass_types)
    parser = StrictParser(dataclass_types, description=description, allow_abbrev=False, prog=prog)
    parser.formatter_class = _PlainHelp(parser.formatter_class)
    parser.add_argument("--config", help="YAML file with any of the options below")
    for word in words:
        name = word.split("=", 1)[0]
        if name.startswith("--") and name not in parser._option_string_actions:
            hint = better_name(name[2:], known) or "; --help lists the options"
            raise ConfigError(f"command line: unknown option `{name}`{hint}")
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
        raise ConfigError(f"{_place(words)}: {one_line(error)}") from error
    del namespace
    _require_finite(instances)
    for instance in instances:
        if (folder := getattr(instance, "output_dir", None)) is not None:
            check_output_dir(folder)
    return tuple(instances)


def _is_text(word: str) -> bool:
    """Whether a word of the command line is text; the system passes other bytes as surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in word)


def _require_finite(instances: Sequence[Any]) -> None:
    """Reject `nan` and `inf` on the command line; `read_config` rejects them in a YAML."""
    for instance in instances:
        for f in dataclasses.fields(instance):
            value = getattr(instance, f.name, None)
            if isinstance(value, float) and not math.isfinite(value) and value is not f.default:
                raise ConfigError(f"command line: --{f.name} must be a finite number, got {value}")


def run_cli(
    main: Callable[..., Any],
    dataclass_types: Sequence[type] | Callable[[], Sequence[type]],
    argv: Sequence[str] | None = None,
    *,
    description: str = "",
    prog: str | None = None,
) -> int:
    """Parse and call `main` with the instances; an input error prints one line and exits with 2.

    `dataclass_types` may also be a function that returns the classes.
    With TOOLKIT_TRACEBACK=1 in the environment, the traceback is also printed.
    """
    parsed: tuple[Any, ...] = ()
    try:
        _require_one_process()
        types = dataclass_types() if callable(dataclass_types) else dataclass_types
        parsed = parse(types, argv, description=description, prog=prog)
        for arguments in parsed:
            require_local_model(getattr(arguments, "model_name_or_path", None))
        main(*parsed)
    except ToolkitError as error:
        if os.environ.get("TOOLKIT_TRACEBACK", "0") != "0":
            traceback.print_exc()
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return report_interrupt()
    except Exception as error:
        folders = (getattr(arguments, "output_dir", None) for arguments in parsed)
        line = system_error(error, output=next(filter(None, folders), "the output"))
        if line is None:
            raise
        print(line, file=sys.stderr)
        return 2
    return 0


def _require_one_process() -> None:
    """Reject a launcher of several processes, and drop the variables of a launcher of one process."""
    for name in PROCESSES:
        if os.environ.get(name, "1") not in ("", "1"):
            raise ConfigError(
                f"the environment has {name}={os.environ[name]}, but a run is one process: start it "
                f"without a launcher such as torchrun; if an earlier command left it, `unset {name}`"
            )
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)


def system_error(error: Exception, *, output: str = "the output") -> str | None:
    """One line for a system error that a path, a full disk or a limit causes; None for any other error.

    Args:
        output: the place that the line names if the error names no file.
    """
    file = getattr(error, "filename", None)
    limit = LIMITS.get(_error_number(error))
    if limit is not None:
        again = "and start again (training: with --resume_from_checkpoint true)"
        return f"{file or output}: {limit} {again}"
    if isinstance(error, OSError) and error.errno in PATH_ERRORS and file:
        return f"{shortened(file)}: cannot be used ({error.strerror}); correct the path"
    return None


def report_interrupt() -> int:
    """Print one line after Ctrl-C; returns the exit code."""
    print("interrupted", file=sys.stderr)
    return 128 + signal.SIGINT


def _error_number(error: Exception) -> int | None:
    """The number of a system error, also of one that safetensors raises."""
    if isinstance(error, OSError):
        return error.errno
    match = re.search(r"os error (\d+)", str(error))
    return int(match[1]) if match and type(error).__name__ == "SafetensorError" else None


def require_local_model(name: str | None) -> None:
    """Report a missing model folder before the data is read, which can take minutes."""
    if name and is_local_path(name) and not Path(name).expanduser().is_dir():
        raise ConfigError(f"model_name_or_path: {name} is not a folder; correct the path")


def _split_config_flag(words: list[str]) -> list[str]:
    """Rewrite `--config=x` as `--config x`, the only form that TrlParser reads."""
    return [part for w in words for part in (w.split("=", 1) if w.startswith("--config=") else [w])]


def _config_path(words: list[str]) -> str:
    """Remove `--config x` from `words` and return x."""
    at = words.index("--config")
    if at + 1 >= len(words):
        raise ConfigError("command line: --config needs the path of a YAML file")
    words.pop(at)
    path = words.pop(at)
    if "--config" in words:
        raise ConfigError("command line: --config is given twice; remove one")
    return path


def _device_defaults(dataclass_types: Sequence[type], named: set[str]) -> dict[str, Any]:
    """Defaults for this machine's device, because TRL's configs assume a GPU with bf16.

    Args:
        dataclass_types: the argument classes; the defaults apply if one of them has `use_cpu`.
        named: the options that the user sets; they are not changed.
    """
    if "use_cpu" not in options_of(dataclass_types):
        return {}
    import torch

    if not torch.cuda.is_available():
        return {"use_cpu": True}
    # GPUs before Ampere emulate bf16 slowly, and torch reports that as support by default
    if "bf16" in named or torch.cuda.is_bf16_supported(including_emulation=False):
        return {}
    return {"bf16": False, "fp16": True}


def _place(words: Sequence[str]) -> str:
    return "arguments" if words else "config"


class _PlainHelp:
    """TRL's help formatter, except that it keeps the line breaks of the recipe's docstring."""

    def __init__(self, formatter: Any) -> None:
        self.formatter = formatter

    def __call__(self, prog: str) -> Any:
        formatter = self.formatter(prog)
        fill = formatter._fill_text
        formatter._fill_text = lambda text, width, indent: (
            text if "\n" in text else fill(text, width, indent)
        )
        return formatter
