"""Blind votes by the embedded world's labelers, for a leaderboard to look at without people.

python -m benchmarks.simulated_votes RUNS [--battles 120]
"""

import argparse
import random
from collections.abc import Iterator
from pathlib import Path

from toolkit.app.judgements.battles import Battles, Shown
from toolkit.app.judgements.judgement import TIE, A, B
from toolkit.app.judgements.store import FILE, Store
from toolkit.app.workbench import Workbench
from toolkit.world.labelers import Labeler, panel
from toolkit.world.questions import ask

UNDECIDED = 0.1  # of gold utility: answers liked nearly alike are a tie
BASE = "world:base"


def vote(runs: Path, battles: int, seed: int) -> int:
    """Let the panel judge battles of all checkpoints of the embedded base below `runs`.

    Returns: how many votes were stored, in the file that the app reads.
    """
    workbench = Workbench.open(BASE, runs)
    held = Battles(workbench, Store(runs / FILE))
    rng, labelers = random.Random(f"votes-{seed}"), panel(seed)
    pool = list(workbench.catalog.checkpoints)
    stored = 0
    for question in ask(rng, "test", battles):
        number = rng.randrange(len(labelers))
        shown = _last(held.battle(question.prompt, pool))
        held.vote(
            shown.id,
            verdict(labelers[number], question.prompt, shown.texts, rng),
            labeler=f"simulated-{number}",
        )
        stored += 1
    return stored


def verdict(labeler: Labeler, prompt: str, texts: tuple[str, ...], rng: random.Random) -> str:
    """What a labeler says of two answers."""
    first, second = (labeler.judge(prompt, text, rng) for text in texts)
    if abs(first - second) < UNDECIDED:
        return TIE
    return A if first > second else B


def _last(shown: Iterator[Shown]) -> Shown:
    *_, last = shown
    return last


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--battles", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(f"{vote(args.runs, args.battles, args.seed)} votes in {args.runs / FILE}")
