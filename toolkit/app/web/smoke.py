"""One question through the running page, as a test of the whole app."""

import html
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

    The output is the prompt's box, then answer, numbers and command of each column.
    """
    columns = []
    for start in range(1, len(output), 3):
        answer, numbers, _ = output[start : start + 3]
        if answer.get("value"):
            content = answer["value"][-1]["content"]
            text = content if isinstance(content, str) else "".join(p["text"] for p in content)
            columns.append((answer["label"], html.unescape(text), numbers["value"]))
    return columns
