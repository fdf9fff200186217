"""How long the app's pages take where there are many runs and judgements.

    python -m benchmarks.app_load --runs runs/quickstart

Reads   a folder of runs. Writes nothing: the copies and the random judgements are removed.
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

import toolkit  # noqa: F401  (turns telemetry off before any library is imported)
from toolkit.app.history.history import LOOKS_APART, History
from toolkit.app.judgements.export import export
from toolkit.app.judgements.judgement import BATTLE, RANKING, VERDICTS, Judgement, Reply, judged
from toolkit.app.judgements.leaderboard import leaderboard
from toolkit.app.judgements.store import COLUMNS, FILE, Store, as_row
from toolkit.app.workbench import Workbench
from toolkit.runs.listing import list_runs

PROMPTS, LABELERS, COPIES = 3000, 8, 300
WORDS = "the sum of five and six is eleven I cannot say please thank you what was red here".split()
T = TypeVar("T")


def main(args: argparse.Namespace) -> None:
    """Print one line for each number: CPU seconds of one thread, the median of three."""
    with tempfile.TemporaryDirectory() as folder:
        looks(copies(args.runs, Path(folder)))
    for checkpoints in args.checkpoints:
        with tempfile.TemporaryDirectory() as folder:
            store = filled(Path(folder) / FILE, made_up(args.judgements, checkpoints))
            print(f"{args.judgements} judgements of {checkpoints} checkpoints")
            pages(store, Path(folder) / "export")


def looks(root: Path) -> None:
    """A look at the runs, after the first one, which hashes their weights."""
    workbench, history = Workbench.open("world:base", root), History(root)
    history.look()
    print(f"{len(workbench.catalog.checkpoints) - 1} checkpoints below the runs")
    timed("Compare, Arena, Rank", workbench.refresh)
    timed("Runs", lambda: looked_again(history))


def looked_again(history: History) -> None:
    """A look that is not the one before told again; sleep is no CPU time."""
    time.sleep(LOOKS_APART)
    history.look()


def pages(store: Store, folder: Path) -> None:
    """What Leaderboard and Data do with the judgements."""
    judgements = timed("reading all", store.all)
    timed("Leaderboard, rating", lambda: leaderboard(judgements))
    timed("Data, the counts", store.tally)
    made = timed("Data, Export: rows", lambda: export(judgements))
    timed("Data, Export: files", lambda: made.write(folder))
    print(f"  {sum(map(len, made.lines.values()))} rows exported")


def timed(what: str, work: Callable[[], T]) -> T:
    """Print how long it takes, and return what it returns."""
    seconds = []
    for _ in range(3):
        start = time.thread_time()
        found = work()
        seconds.append(time.thread_time() - start)
    print(f"  {what:22} {sorted(seconds)[1]:5.2f} s", flush=True)
    return found


def filled(file: Path, judgements: list[Judgement]) -> Store:
    """A store of them, written at once: each by itself would wait for the disk."""
    store = Store(file)
    values = ", ".join(f":{name}" for name in COLUMNS)
    with sqlite3.connect(file) as db:
        db.executemany(
            f"INSERT INTO judgements ({', '.join(COLUMNS)}) VALUES ({values})",
            map(as_row, judgements),
        )
    db.close()
    return store


def copies(runs: Path, folder: Path) -> Path:
    """`COPIES` runs like those below `runs`, in turn."""
    found = list_runs(runs)[0]
    for number in range(COPIES):
        source = found[number % len(found)].path
        leave_out = shutil.ignore_patterns("checkpoint-*", "*.pt")
        shutil.copytree(source, folder / f"{number // len(found)}" / source.name, ignore=leave_out)
    return folder


def made_up(count: int, checkpoints: int) -> list[Judgement]:
    """Random judgements; every tenth is a ranking of four to nine answers."""
    rng = random.Random(0)
    names = [f"run {n}" for n in range(checkpoints)]
    prompts = [_text(rng) for _ in range(PROMPTS)]
    return [_made_up(rng, number, names, rng.choice(prompts)) for number in range(count)]


def _made_up(rng: random.Random, number: int, names: list[str], prompt: str) -> Judgement:
    kind = BATTLE if number % 10 else RANKING
    k = 2 if kind == BATTLE else rng.randint(4, 9)
    who = rng.sample(names, k) if kind == BATTLE else rng.choices(names, k=k)
    asked = Judgement(
        id=f"{number}",
        kind=kind,
        prompt=({"role": "user", "content": prompt},),
        replies=tuple(
            Reply(f"id of {one}", one, _text(rng), rng.randrange(1000), f"{one:>64}") for one in who
        ),
        sampling={"temperature": 0.7, "max_new_tokens": 64},
        base={"id": "world:base", "quantization": "none", "weights": "0"},
    )
    ranks = [1, *(rng.randint(1, k) for _ in range(k - 1))]
    said = {"verdict": rng.choice(VERDICTS)} if kind == BATTLE else {"ranks": ranks}
    labeler = f"labeler {rng.randrange(LABELERS)}"
    return judged(asked, **said, labeler=labeler, time="2026-01-01T00:00:00Z")


def _text(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(5, 40)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, required=True, help="a folder of runs")
    parser.add_argument("--judgements", type=int, default=20_000, help="how many (20000)")
    parser.add_argument("--checkpoints", type=int, nargs="+", default=[8, 60], help="(8 and 60)")
    main(parser.parse_args())
