"""Seconds and memory of a comparison in the app, with one checkpoint and with eight.

    python benchmarks/app_timing.py --sft runs/quickstart/sft --reward runs/quickstart/reward

Reads   an SFT run and a reward run; the eight checkpoints are copies, which it removes.
Prints  the numbers of the speed table in docs/app.md.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.common import ROOT, parser
from benchmarks.meter import process_megabytes
from toolkit.app.web.server import free_port
from toolkit.app.workbench import Workbench

EIGHT, TOKENS, ROUNDS = 8, 64, 5
PROMPT = "Can you tell me the sum of 5 and 6?"


def main(args: argparse.Namespace) -> None:
    """Print one line per number."""
    if not args.no_page:
        print(f"page ready            {page_ready(args.sft.parent):6.2f} s", flush=True)
    with copies(args.sft, args.reward) as runs:
        workbench = Workbench.open("world:base", runs)
        workbench.metrics.stop = []  # all answers get the same length
        alone, first_alone, memory_alone = measure(workbench, 1)
        eight, first_eight, memory_eight = measure(workbench, EIGHT)
    print(f"first token           {first_alone:6.2f} s; with eight checkpoints {first_eight:.2f} s")
    print(f"one checkpoint        {alone:6.2f} s for {TOKENS} tokens, score and KL")
    print(f"eight checkpoints     {eight:6.2f} s, {eight / alone:.2f} times one")
    print(
        f"peak memory           {memory_alone:6.0f} MB; with eight {memory_eight:.0f} MB, "
        f"{memory_eight / memory_alone:.2f} times one"
    )


def measure(workbench: Workbench, count: int) -> tuple[float, float, float]:
    """Median seconds of a comparison and to its first token, and the process's peak megabytes."""
    ids = [c for c, e in workbench.catalog.checkpoints.items() if e.path is not None][:count]
    reward = next(iter(workbench.catalog.rewards))
    whole, first = [], []
    for round_ in range(ROUNDS + 1):
        start, first_token = time.perf_counter(), 0.0
        stream = workbench.stream(PROMPT, ids, reward=reward, max_new_tokens=TOKENS, seed=round_)
        for answers in stream:
            if not first_token and answers[0].tokens:
                first_token = time.perf_counter() - start
        if round_:  # the first round reads the adapters from disk
            whole.append(time.perf_counter() - start)
            first.append(first_token)
        assert all(a.tokens == TOKENS and a.score is not None for a in answers)
    return statistics.median(whole), statistics.median(first), peak_megabytes()


def page_ready(runs: Path) -> float:
    """Seconds from the command to the first served page."""
    port, start = free_port(), time.perf_counter()
    command = [sys.executable, str(ROOT / "app.py"), "--runs", str(runs), "--port", str(port)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30).read()
        return time.perf_counter() - start
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def copies(sft: Path, reward: Path) -> Iterator[Path]:
    """A folder with eight copies of the SFT run, and the reward run."""
    leave_out = shutil.ignore_patterns("checkpoint-*")
    with tempfile.TemporaryDirectory() as folder:
        for number in range(EIGHT):
            shutil.copytree(sft, Path(folder) / f"copy_{number}", ignore=leave_out)
        shutil.copytree(reward, Path(folder) / "reward", ignore=leave_out)
        yield Path(folder)


def peak_megabytes() -> float:
    """Peak memory of this process, or of its GPU."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return process_megabytes("VmHWM")


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--sft", type=Path, required=True, help="an SFT run")
    options.add_argument("--reward", type=Path, required=True, help="a reward run")
    options.add_argument("--no_page", action="store_true", help="do not start the app")
    main(options.parse_args())
