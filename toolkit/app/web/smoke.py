"""One question through the running page: does the whole app work?"""

import html
import tempfile
from collections.abc import Sequence
from typing import Any

from gradio_client import Client

from toolkit.app.choices import checkpoint_choices, reward_choices
from toolkit.app.workbench import Workbench


def smoke(url: str, workbench: Workbench, login: tuple[str, str] | None) -> int:
    """Ask one question as a visitor would, greedily, and print the answers in one line.

    Returns: the exit code, 1 where a checkpoint gave no answer.
    """
    prompt = (workbench.examples() or ["Hello, who are you?"])[0]
    checkpoints = checkpoint_choices(workbench.catalog).chosen
    reward = reward_choices(workbench.catalog).chosen[0]
    with tempfile.TemporaryDirectory() as downloads:
        client = Client(
            url, auth=login, verbose=False, download_files=downloads, analytics_enabled=False
        )
        client.predict([], None, api_name="/refresh")  # a page does so when it is opened
        shown = client.predict(
            prompt, checkpoints, reward, 0.0, 32, 0, 1.0, 1, "", 0, api_name="/compare"
        )
    said = [
        f"{name}: {text!r}"
        for name, text, numbers in answers_shown(shown)[: len(checkpoints)]
        if "Ended" in numbers
    ]
    missing = len(checkpoints) - len(said)
    failed = [f"{missing} of {len(checkpoints)} gave no answer"] if missing else []
    print(f"smoke: {prompt!r} -> {' | '.join(said + failed)}", flush=True)
    return 1 if missing else 0


def answers_shown(shown: Sequence[Any]) -> list[tuple[str, str, str]]:
    """Name, answer and numbers of each column, from what `/compare` gives a client.

    That is the prompt's box, then of each column the answer, numbers and command.
    """
    found = []
    for start in range(1, len(shown), 3):
        answer, numbers, _ = shown[start : start + 3]
        if answer.get("value"):
            said = answer["value"][-1]["content"]
            text = said if isinstance(said, str) else "".join(part["text"] for part in said)
            found.append((answer["label"], html.unescape(text), numbers["value"]))
    return found
