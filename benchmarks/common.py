"""Common parts of the scripts: a command line, Markdown tables, JSON input, timing."""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit.errors import ConfigError, ToolkitError

ROOT = Path(__file__).resolve().parent.parent


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser whose help text starts with the script's docstring."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def run_main(main: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> None:
    """Call `main`; print an input error as one line and exit with status 2."""
    try:
        main(args)
    except ToolkitError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(2)


def require_known(kind: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raises: ConfigError for the first name that is not in `known`."""
    for name in names:
        if name not in known:
            raise ConfigError(f"unknown {kind} {name!r}; available: {', '.join(known)}")


def read_json(file: Path, *, fix: str) -> dict[str, Any]:
    """Raises: ConfigError with the fix where the file cannot be read."""
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be read ({error}); {fix}") from error


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A header, the line below it, and one line per row."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def seconds_in_turn(
    functions: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median seconds of each function; they run in turn, so that the machine's drift hits all alike.

    `clock=time.process_time` leaves out the time that other processes took the core.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(warm_up + rounds):
        for name, function in functions.items():
            start = clock()
            function()
            seconds[name].append(clock() - start)
    return {name: statistics.median(values[warm_up:]) for name, values in seconds.items()}
