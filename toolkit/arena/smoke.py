"""One question through the running page: does the whole app work?"""

import tempfile

from gradio_client import Client

from toolkit.arena.choices import checkpoint_choices, reward_choices
from toolkit.arena.workbench import Workbench


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
        shown = client.predict(prompt, checkpoints, reward, 0.0, 32, 0, api_name="/compare")
    columns = list(zip(shown[::2], shown[1::2], strict=True))[: len(checkpoints)]
    said = [
        f"{a['label']}: {a['value']!r}" for a, numbers in columns if "Ended" in numbers["value"]
    ]
    missing = len(checkpoints) - len(said)
    failed = [f"{missing} of {len(checkpoints)} gave no answer"] if missing else []
    print(f"smoke: {prompt!r} -> {' | '.join(said + failed)}", flush=True)
    return 1 if missing else 0
