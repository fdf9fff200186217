"""The app's command line. It imports neither torch nor Gradio, so that `--help` is fast."""

import argparse
import getpass
import ipaddress
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from toolkit.errors import ConfigError

PASSWORD = "TOOLKIT_APP_PASSWORD"
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1", "[::1]")
NOT_ENCRYPTED = """warning: --host {host} serves other machines over plain HTTP, so passwords and \
conversations can be intercepted; put a reverse proxy with TLS in front (docs/app.md)"""


@dataclass(frozen=True)
class AppArguments:
    """The command-line options, by name."""

    runs: Path
    host: str
    port: int
    base: str | None
    model_name_or_path: str | None
    model_revision: str
    load_in_4bit: bool
    load_in_8bit: bool
    auth: str | None
    prompts: Path | None
    judgements: Path | None
    smoke: bool
    ask: str | None
    conversation: str | None
    checkpoint: list[str] | None
    reward: str | None
    temperature: float
    top_k: int
    top_p: float
    beams: int
    max_new_tokens: int
    seed: int

    @property
    def host_names(self) -> list[str]:
        """The host names that requests may use; "*" allows any name.

        Without a login, this stops DNS rebinding: a page of another site points its own name at this
        machine's address. With a login this is not needed, because the cookie belongs to one host name.
        """
        return ["*"] if self.auth is not None else [*LOOPBACK_NAMES, self.host]

    @property
    def login(self) -> tuple[str, str] | None:
        """The user name and password for visitors, or None without a login.

        The password comes from the environment or from a terminal prompt. It never comes from the command
        line, because every user of the machine can read that. Prints a warning if other machines can
        connect, because the connection is not encrypted.

        Raises: ConfigError if a login is required and a part of it is missing.
        """
        if self.auth is None:
            if not is_loopback(self.host):
                raise ConfigError(
                    f"--host {self.host} opens the app to other machines: add --auth USER and set "
                    f"the password in the environment variable {PASSWORD}"
                )
            return None
        if not self.auth:
            raise ConfigError("--auth needs a user name; add one")
        password = os.environ.get(PASSWORD, "")
        if not password and sys.stdin.isatty():
            password = getpass.getpass(f"Password for visitors who log in as {self.auth}: ")
        if not password:
            raise ConfigError(
                f"--auth needs a password: set the environment variable {PASSWORD}, or start the app "
                "at a terminal, which prompts for it"
            )
        if not is_loopback(self.host):
            print(NOT_ENCRYPTED.format(host=self.host), file=sys.stderr, flush=True)
        return self.auth, password


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:  # argparse would print the usage first
        raise ConfigError(f"command line: {message}; --help lists the options")


def parse_arguments(argv: Sequence[str] | None = None, *, description: str | None) -> AppArguments:
    """Read the command line, by default `sys.argv[1:]`.

    Raises: ConfigError for an unknown option or an invalid value.
    """
    parser = _Parser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--runs", type=Path, default=Path("runs"), help="folder with the runs (default: runs)")
    add("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    add("--port", type=int, default=7860, help="port to listen on (default: 7860)")
    add(
        "--base",
        metavar="NAME",
        help="which base to load if the runs have several (default: that of the newest run)",
    )
    add(
        "--model_name_or_path",
        help="the base, instead of that of the runs: a folder, a hub id, or world:base",
    )
    add("--model_revision", default="main", help="the commit of a named hub model (default: main)")
    add("--load_in_4bit", action="store_true", help="load the named base in 4 bit")
    add("--load_in_8bit", action="store_true", help="load the named base in 8 bit")
    add(
        "--auth",
        metavar="USER",
        help=f"require a login with this user name and the password in ${PASSWORD} (if it is not "
        "set, the terminal prompts for it); required if --host opens the app to other machines",
    )
    add("--prompts", type=Path, metavar="FILE", help="file for Draw a prompt on Arena and Rank")
    add(
        "--judgements",
        type=Path,
        metavar="FILE",
        help="where judgements are stored (default: judgements.sqlite in the runs folder)",
    )
    add("--smoke", action="store_true", help="ask a question through the page, print answers, stop")

    group = parser.add_argument_group("without the page", "print answers and stop")
    add = group.add_argument
    add("--ask", metavar="PROMPT", help="the prompt")
    add("--conversation", metavar="JSON", help="a JSON list of messages, instead of --ask")
    add("--checkpoint", action="append", help="a run's name or base (default); can be repeated")
    add("--reward", metavar="RUN", help="the reward run that scores the answers (default: none)")
    add("--temperature", type=float, default=0.7, help="0 is greedy (default: 0.7)")
    add("--top_k", type=int, default=0, help="sample from the k most likely tokens (default: all)")
    add(
        "--top_p",
        type=float,
        default=1.0,
        help="sample from the likeliest tokens with this total probability (default: 1)",
    )
    add("--beams", type=int, default=1, help="number of beams; above 1, beam search (default: 1)")
    add("--max_new_tokens", type=int, default=128, help="maximum tokens (default: 128)")
    add("--seed", type=int, default=0, help="random seed (default: 0)")

    arguments = AppArguments(**vars(parser.parse_args(argv)))
    if not 0 < arguments.port < 65536:
        raise ConfigError(f"--port must be between 1 and 65535, got {arguments.port}")
    details = (arguments.model_revision != "main", arguments.load_in_4bit, arguments.load_in_8bit)
    if arguments.model_name_or_path is None and any(details):
        raise ConfigError(
            "--model_revision, --load_in_4bit and --load_in_8bit are for a base that "
            "--model_name_or_path names; remove them, because runs record how their base was loaded"
        )
    if arguments.model_name_or_path is not None and arguments.base is not None:
        raise ConfigError("--base and --model_name_or_path exclude each other; remove one")
    if arguments.load_in_4bit and arguments.load_in_8bit:
        raise ConfigError("--load_in_4bit and --load_in_8bit exclude each other; remove one")
    if arguments.runs.exists() and not arguments.runs.is_dir():
        raise ConfigError(f"--runs {arguments.runs} is not a folder; name the folder of runs")
    return arguments
