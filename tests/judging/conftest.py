"""A judge's server as a process of its own, and the command that asks it."""

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from toolkit.cli import run
from toolkit.judging import endpoint
from toolkit.recipe import find

ROWS = [
    {"prompt": "Sky?", "completions": ["It is good.", "It is bad."]},
    {"prompt": "Sea?", "completions": ["bad", "good good", "good"]},
]


@pytest.fixture(scope="session")
def server():
    """The server's address without a mode."""
    script = str(Path(__file__).with_name("server.py"))
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as process:
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        process.kill()


class Caller:
    """Runs `toolkit judge` in this process."""

    def __init__(self, server, folder):
        self.server, self.folder, self.out = server, folder, folder / "judge"

    def __call__(self, behaviour="ok", rows=ROWS, **options):
        dataset = self.folder / "answers.jsonl"
        dataset.write_text("".join(json.dumps(row) + "\n" for row in rows))
        options = {
            "dataset_name": dataset,
            "judge_url": f"{self.server}/{behaviour}/v1",
            "judge_model": "tiny",
            "output_dir": self.out,
        } | options
        words = []
        for name, value in options.items():
            values = value if isinstance(value, list) else [value]
            words += [f"--{name}", *map(str, values)] if value is not None else []
        return run(find("judge"), words)

    def read(self, name):
        text = (self.out / name).read_text()
        return (
            json.loads(text) if name.endswith(".json") else list(map(json.loads, text.splitlines()))
        )

    def requests(self, behaviour):
        with urllib.request.urlopen(f"{self.server}/{behaviour}") as response:
            return json.load(response)["requests"]


@pytest.fixture
def judge(server, tmp_path, monkeypatch):
    """Call it with a behaviour of the server; pauses between attempts are short."""
    monkeypatch.setattr(endpoint, "WAIT_S", 0.001)
    monkeypatch.delenv(endpoint.KEY, raising=False)
    return Caller(server, tmp_path)
