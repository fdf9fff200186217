"""The app's command line, read without importing torch or Gradio so that `--help` is immediate."""

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
NOT_ENCRYPTED = """warning: {host} lets other machines in over plain HTTP, so that passwords and \
conversations can be read on the way; put a reverse proxy with TLS in front (docs/app.md)"""


@dataclass(frozen=True)
class AppArguments:
    """What the app serves and where."""

    runs: Path
    host: str
    port: int
    model_name_or_path: str
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
        """Names under which the app may be asked; "*" is any.

        Without a login a page of another site must not reach it under that site's name, whose
        address was changed to this machine's (DNS rebinding). With one it cannot: the cookie
        belongs to the name that the visitor logged in under.
        """
        return ["*"] if self.auth is not None else [*LOOPBACK_NAMES, self.host]

    @property
    def login(self) -> tuple[str, str] | None:
        """User and password that a visitor must give, or None where everybody may look.

        The password comes from the environment, or is asked for where somebody sits at a terminal;
        a command line is seen by every user of the machine. Where other machines are let in, a
        warning says that the connection is not encrypted.

        Raises: ConfigError where a login is needed and a part of it is missing.
        """
        if self.auth is None:
            if not is_loopback(self.host):
                raise ConfigError(
                    f"--host {self.host} opens the app to other machines: add --auth USER and put "
                    f"the password into the environment variable {PASSWORD}"
                )
            return None
        if not self.auth:
            raise ConfigError("--auth needs a user name")
        password = os.environ.get(PASSWORD, "") or _typed_password(self.auth)
        if not password:
            raise ConfigError(
                f"--auth needs the password: set the environment variable {PASSWORD}, or start the "
                "app at a terminal, where it asks"
            )
        if not is_loopback(self.host):
            print(NOT_ENCRYPTED.format(host=self.host), file=sys.stderr, flush=True)
        return self.auth, password


def _typed_password(user: str) -> str:
    """The password as typed at the terminal, unseen; nothing where there is no terminal."""
    if not sys.stdin.isatty():
        return ""
    return getpass.getpass(f"Password that visitors give as {user}: ")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _add_question(parser: argparse.ArgumentParser) -> None:
    """Options of a question that is answered without a page."""
    add = parser.add_argument_group("ask without a page", "print the answer and stop").add_argument
    add("--ask", metavar="PROMPT", help="what to ask")
    add("--conversation", metavar="JSON", help="a list of messages in the place of --ask")
    add("--checkpoint", action="append", help="a run's name, or base (default); may be repeated")
    add("--reward", metavar="RUN", help="the reward run that scores the answer (default: none)")
    add("--temperature", type=float, default=0.7, help="0 is greedy (default: 0.7)")
    add("--top_k", type=int, default=0, help="draw among the k likeliest tokens (default: all)")
    add("--top_p", type=float, default=1.0, help="draw within this probability (default: 1)")
    add("--beams", type=int, default=1, help="beam search instead of drawing (default: 1, none)")
    add("--max_new_tokens", type=int, default=128, help="where an answer is cut (default: 128)")
    add("--seed", type=int, default=0, help="where chance starts (default: 0)")


def parse_arguments(argv: Sequence[str] | None = None, *, description: str) -> AppArguments:
    """Read the command line; default `sys.argv[1:]`.

    Raises: ConfigError for an unknown option or a value that cannot be used.
    """

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:  # argparse would print the whole usage first
            raise ConfigError(f"command line: {message}; --help lists the options")

    parser = Parser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--runs", type=Path, default=Path("runs"), help="folder with the runs (default: runs)")
    add("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    add("--port", type=int, default=7860, help="port to listen on (default: 7860)")
    add(
        "--model_name_or_path",
        default="world:base",
        help="the base that the runs were trained on: a folder, a hub id, or world:base (default)",
    )
    add(
        "--model_revision",
        default="main",
        help="the commit of the hub's model that the runs were trained on (default: main)",
    )
    add("--load_in_4bit", action="store_true", help="the runs were trained on the base in 4 bit")
    add("--load_in_8bit", action="store_true", help="the runs were trained on the base in 8 bit")
    add(
        "--auth",
        metavar="USER",
        help=f"ask visitors for this user name and the password in ${PASSWORD}, which is asked for "
        "at the terminal where it is not set; required where --host lets other machines in",
    )
    add("--prompts", type=Path, metavar="FILE", help="prompts that Arena and Rank draw from")
    add(
        "--judgements",
        type=Path,
        metavar="FILE",
        help="where votes and rankings are stored (default: judgements.sqlite in the runs folder)",
    )
    add("--smoke", action="store_true", help="ask one question through the page, print it, stop")
    _add_question(parser)
    found = AppArguments(**vars(parser.parse_args(argv)))
    if not 0 < found.port < 65536:
        raise ConfigError(f"--port must be between 1 and 65535, got {found.port}")
    if found.load_in_4bit and found.load_in_8bit:
        raise ConfigError("choose one of --load_in_4bit and --load_in_8bit")
    if found.runs.exists() and not found.runs.is_dir():
        raise ConfigError(f"--runs {found.runs} is not a folder")
    return found
