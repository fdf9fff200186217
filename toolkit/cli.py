"""The command `toolkit`: every recipe and tool by its name."""

import logging
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from toolkit import __version__
from toolkit.early import HELP as HELP_OPTIONS
from toolkit.early import check_early
from toolkit.errors import ToolkitError, exit_is_error
from toolkit.options.command_line import report_interrupt, run_cli, system_error
from toolkit.options.output import keep_going
from toolkit.recipe import AnyCommand, Command, Recipe, commands, find
from toolkit.runs.signals import stop_with_parent

HELP = (*HELP_OPTIONS, "help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run `toolkit NAME …`.

    Args:
        argv: the words after `toolkit`; default `sys.argv[1:]`.

    Returns: the exit code.
    """
    keep_going()
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if not words or words[0] in HELP:
            print(_overview())
            return 0
        if words[0] == "--version":
            print(__version__)
            return 0
        command = find(words[0])
        if command is None:
            print(f"toolkit: no command {words[0]!r}; toolkit --help lists them", file=sys.stderr)
            return 2
        return run(command, words[1:])
    except ToolkitError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return report_interrupt()


def run(command: AnyCommand, words: Sequence[str] | None = None) -> int:
    """Run one command with the words of its command line, and return the exit code.

    Args:
        command: a file's `COMMAND` or `RECIPE`.
        words: default `sys.argv[1:]`.
    """
    keep_going()
    stop_with_parent()
    _quiet_libraries()
    try:
        return _run(command, list(sys.argv[1:] if words is None else words))
    except KeyboardInterrupt:  # while libraries are imported, which takes seconds
        return report_interrupt()


def _run(command: AnyCommand, words: Sequence[str]) -> int:
    if isinstance(command, Recipe):

        def train(*configs: object) -> object:
            from toolkit.runner import train  # heavy: not for --help

            with exit_is_error(f"toolkit {command.name}"):
                return train(command, *configs)

        def classes() -> Sequence[type]:
            check_early(command, words)
            return command.argument_classes()

        function: Any = train
    elif command.arguments is not None:
        classes, function = command.arguments, command.run
    else:
        return _run_words(command, words)
    prog = f"toolkit {command.name}"
    return run_cli(function, classes, words, description=command.doc, prog=prog)


def _run_words(command: Command, words: Sequence[str]) -> int:
    """Run a command that reads its words itself; a system error about a path prints one line."""
    try:
        return int(command.run(words))
    except OSError as error:
        line = system_error(error)
        if line is None:
            raise
        print(line, file=sys.stderr)
        return 2


def _overview() -> str:
    """The help text: every command with its summary."""
    found = commands()
    width = max(map(len, found))
    trains = {name for name, command in found.items() if isinstance(command, Recipe)}

    def lines(names: Sequence[str]) -> str:
        return "".join(f"  {name:<{width}}  {found[name].summary}\n" for name in names)

    return (
        "usage: toolkit COMMAND [--config NAME_OR_FILE] [options]\n\n"
        f"Train:\n{lines([n for n in found if n in trains])}\n"
        f"Other commands:\n{lines([n for n in found if n not in trains])}\n"
        "toolkit COMMAND --help lists the options of a command. Shipped configs are named like\n"
        "world/sft; --config also takes a path."
    )


def _quiet_libraries() -> None:
    """Silence library messages that ask for no action of the user.

    bitsandbytes reports at import that an optional CPU kernel is absent; transformers warns of
    future option names that TRL's configs still use.
    """
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    for option in ("`gradient_checkpointing", "`is_gradient_checkpointing"):
        warnings.filterwarnings("ignore", message=option, category=FutureWarning)
