"""Sends one question through the running page, as a test of the whole app."""

import html
import re
import tempfile
from collections.abc import Sequence
from typing import Any

from gradio_client import Client

from toolkit.app.choices import checkpoint_choices, reward_choices
from toolkit.app.workbench import Workbench


def smoke(url: str, workbench: Workbench, login: tuple[str, str] | None) -> int:
    """Ask one question through the page's API, greedily, and print the answers in one line.

    Returns: the exit code, 1 if a checkpoint gave no answer.
    """
    prompt = (workbench.examples() or ["Hello, who are you?"])[0]
    checkpoints = checkpoint_choices(workbench.catalog).chosen
    reward = reward_choices(workbench.catalog).chosen[0]
    with tempfile.TemporaryDirectory() as downloads:
        client = Client(
            url, auth=login, verbose=False, download_files=downloads, analytics_enabled=False
        )
        client.predict([], None, api_name="/refresh")  # as a page does when it opens
        output = client.predict(
            prompt, checkpoints, reward, 0.0, 32, 0, 1.0, 1, "", 0, api_name="/compare"
        )
    answers = [
        f"{name}: {text!r}"
        for name, text, numbers in answers_shown(output)[: len(checkpoints)]
        if "Ended" in numbers
    ]
    missing = len(checkpoints) - len(answers)
    failed = [f"{missing} of {len(checkpoints)} gave no answer"] if missing else []
    print(f"smoke: {prompt!r} -> {' | '.join(answers + failed)}", flush=True)
    return 1 if missing else 0


def answers_shown(output: Sequence[Any]) -> list[tuple[str, str, str]]:
    """Name, answer and numbers of each column of the output of `/compare`.

    The last messages of a column are the answer and its numbers.
    """
    columns = []
    for part in output:
        messages = part.get("value") if isinstance(part, dict) else None
        if isinstance(messages, list) and messages and "role" in messages[-1]:
            *_, text, numbers = ["", *map(_content, messages)]
            if not numbers.startswith("<details"):  # no answer
                text, numbers = numbers, ""
            numbers = re.sub(r"<summary>.*?</summary>|<[^>]*>", "", numbers)
            columns.append((part["label"], html.unescape(text), html.unescape(numbers)))
    return columns


def _content(message: dict[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)
