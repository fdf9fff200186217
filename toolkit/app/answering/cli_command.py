"""The command line that repeats an answer without the page, and its execution."""

import json
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from toolkit.app.answering.request import Message
from toolkit.app.arguments import AppArguments
from toolkit.app.catalog import BASE_ID, Catalog
from toolkit.app.texts import answer_numbers
from toolkit.errors import CheckpointError, ConfigError
from toolkit.reading import parse_json
from toolkit.sampling.settings import Drawing

if TYPE_CHECKING:
    from toolkit.app.workbench import Workbench


def cli_command(
    options: Sequence[str],
    *,
    checkpoint: str,
    messages: Sequence[Message],
    drawing: Drawing,
    reward: str | None,
) -> str:
    """The command that repeats an answer, as one line for a shell.

    Args:
        options: `command_options` of the workbench, so that the command uses the same base and runs.
        checkpoint: name of the checkpoint.
        reward: the reward run's name.
    """
    single = len(messages) == 1
    text = messages[0]["content"] if single else json.dumps(list(messages), ensure_ascii=False)
    # with "=", a prompt that begins with a dash is not read as an option
    words = [f"--{'ask' if single else 'conversation'}={text}", "--checkpoint", checkpoint]
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
    return shlex.join(["toolkit", "app", *options, *words])


def base_options(arguments: AppArguments) -> list[str]:
    """The options that select the base and the runs."""
    words = [] if str(arguments.runs) == "runs" else ["--runs", str(arguments.runs)]
    if arguments.model_name_or_path is not None:
        words += ["--model_name_or_path", arguments.model_name_or_path]
    if arguments.model_revision != "main":
        words += ["--model_revision", arguments.model_revision]
    flags = ("load_in_4bit", "load_in_8bit")
    return words + [f"--{flag}" for flag in flags if getattr(arguments, flag)]


def answer_once(workbench: "Workbench", arguments: AppArguments) -> int:
    """Print the answers to `--ask` or `--conversation`, with the numbers of each answer.

    Returns: the exit code, 1 if a checkpoint gave no answer.
    Raises: ConfigError or CheckpointError for an invalid question or an unknown name.
    """
    catalog, failed = workbench.catalog, 0
    names = arguments.checkpoint or [BASE_ID]
    answers = workbench.compare(
        _prompt(arguments),
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
        print("\n".join([*title, answer.text, "", answer_numbers(answer), ""]), flush=True)
    return 1 if failed else 0


def _prompt(arguments: AppArguments) -> object:
    if arguments.conversation is None:
        return arguments.ask
    try:
        messages = parse_json(arguments.conversation)
    except ValueError as error:
        raise ConfigError(f"--conversation is not valid JSON: {error}") from error
    if not isinstance(messages, list):
        raise ConfigError('--conversation must be a list of {"role": …, "content": …}')
    return messages


def _id(catalog: Catalog, name: str, *, reward: bool = False) -> str:
    entries = catalog.rewards if reward else catalog.checkpoints
    for entry in entries.values():
        if entry.name == name:
            return entry.id
    if name in catalog.unusable:
        on = f" (the loaded base is {catalog.base})" if catalog.base else ""
        raise CheckpointError(f"{name} cannot be used: {catalog.unusable[name]}{on}")
    known = ", ".join(e.name for e in entries.values()) or "none"
    kind = "reward run" if reward else "checkpoint"
    raise CheckpointError(f"no {kind} is named {name!r}; known: {known}")
