"""Command lines in processes of their own, forked from one process that has done the imports.

An import of torch, transformers and TRL takes longer than a small training run.
"""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import ROOT

SERVER = """
import json
import os
import runpy
import sys

import toolkit.groups.trainer
import toolkit.ppo.trainer
import toolkit.runner
import toolkit.trainers.load_policy
import trl.trainer.model_config

for line in sys.stdin:
    words, log = json.loads(line)
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
        sys.exit()
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Process:
    """A running command; the methods are those of `subprocess.Popen`."""

    def __init__(self, pid: int, answers) -> None:
        self.pid, self.answers, self.returncode = pid, answers, None

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while the process runs."""
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; returns the exit status."""
        if self._ended(timeout) is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        return self.returncode

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self.answers], [], [], timeout)[0]:
            self.returncode = int(self.answers.readline())
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL unless the process has ended."""
        self.send_signal(signal.SIGKILL)


class Launcher:
    """Starts commands, one at a time."""

    def __init__(self, server: subprocess.Popen) -> None:
        self.server = server

    def start(self, words: Sequence[object], log: Path) -> Process:
        """Start `python WORDS…` in the root of the repository; its output goes to `log`."""
        self.server.stdin.write(json.dumps([list(map(str, words)), str(log)]).encode() + b"\n")
        return Process(int(self.server.stdout.readline()), self.server.stdout)

    def run(self, words: Sequence[object], log: Path) -> None:
        """Run a command to its end, which must be a success."""
        code = self.start(words, log).wait()
        assert code == 0, log.read_text(encoding="utf-8", errors="replace")[-2000:]


@contextmanager
def launcher() -> Iterator[Launcher]:
    """A launcher whose commands use the CPU: a device cannot be used on both sides of a fork."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVER],
        cwd=ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    ) as server:
        try:
            yield Launcher(server)
        finally:
            server.kill()
