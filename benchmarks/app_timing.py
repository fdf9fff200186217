"""How long a comparison takes and what memory it needs, with one checkpoint and with eight.

    python -m benchmarks.app_timing --sft runs/quickstart/sft --reward runs/quickstart/reward

Reads   an SFT run and a reward run. Writes nothing: the eight checkpoints are copies that it removes.
"""

import argparse
import os
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

import toolkit  # noqa: F401  (turns telemetry off before any library is imported)
from toolkit.app.web.ports import free_port
from toolkit.app.workbench import Workbench

EIGHT, TOKENS, ROUNDS = 8, 64, 5
PROMPT = "Can you tell me the sum of 5 and 6?"


def main(args: argparse.Namespace) -> None:
    """Print one line for each number."""
    if not args.no_page:
        print(f"page ready            {page_ready(args.sft.parent):6.2f} s", flush=True)
    with copies(args.sft, args.reward) as runs:
        workbench = Workbench.open("world:base", runs)
        workbench.measurer.stop = []  # so that all answers are of one length
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
    """Seconds of a comparison and to its first token (medians), and the process's peak MB so far."""
    ids = [c for c, e in workbench.catalog.checkpoints.items() if e.path is not None][:count]
    reward = next(iter(workbench.catalog.rewards))
    whole, first = [], []
    for round_ in range(ROUNDS + 1):
        start, seen = time.perf_counter(), 0.0
        asked = workbench.stream(PROMPT, ids, reward=reward, max_new_tokens=TOKENS, seed=round_)
        for answers in asked:
            if not seen and answers[0].tokens:
                seen = time.perf_counter() - start
        if round_:  # the first one reads the adapters from the disk
            whole.append(time.perf_counter() - start)
            first.append(seen)
        assert all(a.tokens == TOKENS and a.score is not None for a in answers)
    return statistics.median(whole), statistics.median(first), peak_megabytes()


def page_ready(runs: Path) -> float:
    """Seconds from the command to a page that is served."""
    port, start = free_port(), time.perf_counter()
    command = [sys.executable, "app.py", "--runs", str(runs), "--port", str(port)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=os.environ
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
    """The most memory that this process has held."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sft", type=Path, required=True, help="an SFT run")
    parser.add_argument("--reward", type=Path, required=True, help="a reward run")
    parser.add_argument("--no_page", action="store_true", help="do not start the app")
    main(parser.parse_args())
