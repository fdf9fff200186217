"""The command that gives an answer again, without a page."""

import json
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from toolkit.app.answering.request import Message
from toolkit.app.arguments import AppArguments
from toolkit.app.catalog import BASE_ID, Catalog
from toolkit.app.texts import measures
from toolkit.errors import CheckpointError, ConfigError
from toolkit.sampling.settings import Drawing

if TYPE_CHECKING:
    from toolkit.app.workbench import Workbench


def command(
    options: Sequence[str],
    *,
    checkpoint: str,
    messages: Sequence[Message],
    drawing: Drawing,
    reward: str | None,
) -> str:
    """One line for a shell.

    Args:
        options: how the app was started, so that it finds the same base and runs.
        checkpoint: its name, as `reward` is.
    """
    plain = len(messages) == 1
    asked = messages[0]["content"] if plain else json.dumps(list(messages), ensure_ascii=False)
    # with "=", a prompt that begins with a dash is no option
    words = [f"--{'ask' if plain else 'conversation'}={asked}", "--checkpoint", checkpoint]
    if reward is not None:
        words += ["--reward", reward]
    if drawing.beams > 1:
        words += ["--beams", str(drawing.beams)]
    else:
        words += ["--temperature", str(drawing.temperature)]
        if drawing.temperature > 0:
            words += ["--seed", str(drawing.seed)]
            words += ["--top_k", str(drawing.top_k)] if drawing.top_k else []
            words += ["--top_p", str(drawing.top_p)] if drawing.top_p < 1 else []
    words += ["--max_new_tokens", str(drawing.max_new_tokens)]
    return shlex.join(["python", "app.py", *options, *words])


def options(arguments: AppArguments) -> list[str]:
    """The words that make the app find the same base and runs."""
    found = [] if str(arguments.runs) == "runs" else ["--runs", str(arguments.runs)]
    if arguments.model_name_or_path != "world:base":
        found += ["--model_name_or_path", arguments.model_name_or_path]
    if arguments.model_revision != "main":
        found += ["--model_revision", arguments.model_revision]
    flags = ("load_in_4bit", "load_in_8bit")
    return found + [f"--{flag}" for flag in flags if getattr(arguments, flag)]


def ask_once(workbench: "Workbench", arguments: AppArguments) -> int:
    """Answer the command line's question and print answer and numbers.

    Returns: the exit code, 1 where a checkpoint gave no answer.
    Raises: ConfigError or CheckpointError for a question or a name that cannot be used.
    """
    catalog, failed = workbench.catalog, 0
    names = arguments.checkpoint or [BASE_ID]
    answers = workbench.compare(
        _messages(arguments),
        [_id(catalog, name) for name in names],
        reward=None if arguments.reward is None else _id(catalog, arguments.reward, reward=True),
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        beams=arguments.beams,
        max_new_tokens=arguments.max_new_tokens,
        seed=arguments.seed,
    )
    for answer in answers:
        failed += answer.problem is not None
        title = [f"## {answer.name}"] if len(names) > 1 else []
        print("\n".join([*title, answer.text, "", measures(answer), ""]), flush=True)
    return 1 if failed else 0


def _messages(arguments: AppArguments) -> object:
    if arguments.conversation is None:
        return arguments.ask
    try:
        found = json.loads(arguments.conversation)
    except ValueError as error:
        raise ConfigError(f"--conversation is no JSON: {error}") from error
    if not isinstance(found, list):
        raise ConfigError('--conversation must be a list of {"role": …, "content": …}')
    return found


def _id(catalog: Catalog, name: str, *, reward: bool = False) -> str:
    entries = catalog.rewards if reward else catalog.checkpoints
    for entry in entries.values():
        if entry.name == name:
            return entry.id
    for broken, reason in catalog.broken:
        if broken == name:
            raise CheckpointError(f"{name} cannot be used: {reason}")
    known = ", ".join(e.name for e in entries.values()) or "none"
    raise CheckpointError(f"no {'reward run' if reward else 'checkpoint'} {name!r}; known: {known}")
