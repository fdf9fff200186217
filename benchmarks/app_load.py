"""CPU seconds of the app's pages with many runs and many judgements.

    python benchmarks/app_load.py --runs runs/quickstart

Reads   a folder of runs, which it copies; judgements are random. Both are removed at the end.
Prints  the numbers of the load table in docs/app.md.
"""

import argparse
import random
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from benchmarks.common import parser
from toolkit.app.history.history import SCAN_INTERVAL_S, History
from toolkit.app.judgements.export import export
from toolkit.app.judgements.judgement import (
    BATTLE,
    RANKING,
    VERDICTS,
    Judgement,
    Reply,
    complete_judgement,
)
from toolkit.app.judgements.leaderboard import leaderboard
from toolkit.app.judgements.store import FILE, INSERT, Store, as_row
from toolkit.app.workbench import Workbench
from toolkit.runs.listing import list_runs

PROMPTS, LABELERS, COPIES = 3000, 8, 300
WORDS = "the sum of five and six is eleven I cannot say please thank you what was red here".split()
T = TypeVar("T")


def main(args: argparse.Namespace) -> None:
    """Print one line per number: CPU seconds of one thread, the median of three."""
    with tempfile.TemporaryDirectory() as folder:
        time_runs(copies(args.runs, Path(folder)))
    for checkpoints in args.checkpoints:
        with tempfile.TemporaryDirectory() as folder:
            store = filled(Path(folder) / FILE, random_judgements(args.judgements, checkpoints))
            print(f"{args.judgements} judgements of {checkpoints} checkpoints")
            time_judgements(store, Path(folder) / "export")


def time_runs(root: Path) -> None:
    """Time the pages that list runs. An untimed first load hashes the weights."""
    workbench, history = Workbench.open("world:base", root), History(root)
    history.records()
    print(f"{len(workbench.catalog.checkpoints) - 1} checkpoints below the runs")
    timed("Compare, Arena, Rank", workbench.refresh)
    timed("Runs", lambda: look_again(history))


def look_again(history: History) -> None:
    """Load the page when the cached result has expired. The wait takes no CPU time."""
    time.sleep(SCAN_INTERVAL_S)
    history.records()


def time_judgements(store: Store, folder: Path) -> None:
    """Time Leaderboard and Data."""
    judgements = timed("reading all", store.all)
    timed("Leaderboard, rating", lambda: leaderboard(judgements))
    timed("Data, the counts", store.tally)
    rows = timed("Data, Export: rows", lambda: export(judgements))
    timed("Data, Export: files", lambda: rows.write(folder))
    print(f"  {sum(map(len, rows.lines.values()))} rows exported")


def timed(label: str, work: Callable[[], T]) -> T:
    """Print the CPU seconds of `work` and return its result."""
    seconds = []
    for _ in range(3):
        start = time.thread_time()
        result = work()
        seconds.append(time.thread_time() - start)
    print(f"  {label:22} {sorted(seconds)[1]:5.2f} s", flush=True)
    return result


def filled(file: Path, judgements: list[Judgement]) -> Store:
    """A store of these judgements, written in one transaction, which is faster than one by one."""
    store = Store(file)
    with sqlite3.connect(file) as db:
        db.executemany(INSERT, map(as_row, judgements))
    db.close()
    return store


def copies(runs: Path, folder: Path) -> Path:
    """Copies of the runs below `runs`, `COPIES` in all."""
    originals = list_runs(runs)[0]
    for number in range(COPIES):
        source = originals[number % len(originals)].path
        leave_out = shutil.ignore_patterns("checkpoint-*", "*.pt")
        target = folder / f"{number // len(originals)}" / source.name
        shutil.copytree(source, target, ignore=leave_out)
    return folder


def random_judgements(count: int, checkpoints: int) -> list[Judgement]:
    """Random judgements; every tenth is a ranking of four to nine answers."""
    rng = random.Random(0)
    names = [f"run {n}" for n in range(checkpoints)]
    prompts = [_text(rng) for _ in range(PROMPTS)]
    return [_random_judgement(rng, number, names, rng.choice(prompts)) for number in range(count)]


def _random_judgement(rng: random.Random, number: int, names: list[str], prompt: str) -> Judgement:
    kind = BATTLE if number % 10 else RANKING
    k = 2 if kind == BATTLE else rng.randint(4, 9)
    checkpoints = rng.sample(names, k) if kind == BATTLE else rng.choices(names, k=k)
    question = Judgement(
        id=f"{number}",
        kind=kind,
        prompt=({"role": "user", "content": prompt},),
        replies=tuple(
            Reply(f"id of {one}", one, _text(rng), rng.randrange(1000), f"{one:>64}")
            for one in checkpoints
        ),
        sampling={"temperature": 0.7, "max_new_tokens": 64},
        base={"id": "world:base", "quantization": "none", "weights": "0"},
    )
    ranks = [1, *(rng.randint(1, k) for _ in range(k - 1))]
    verdict = {"verdict": rng.choice(VERDICTS)} if kind == BATTLE else {"ranks": ranks}
    labeler = f"labeler {rng.randrange(LABELERS)}"
    return complete_judgement(question, **verdict, labeler=labeler, time="2026-01-01T00:00:00Z")


def _text(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(5, 40)))


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--runs", type=Path, required=True, help="a folder of runs")
    options.add_argument("--judgements", type=int, default=20_000, help="(20000)")
    options.add_argument("--checkpoints", type=int, nargs="+", default=[8, 60], help="(8 and 60)")
    main(options.parse_args())
