"""Blind votes by the embedded world's labelers, so that the app's leaderboard has votes to show.

    python benchmarks/simulated_votes.py runs [--battles 120]

Reads   the runs below a folder.
Writes  votes into the file that the app reads: the leaderboard in the README's picture.
"""

import random
from collections.abc import Iterator
from pathlib import Path

from benchmarks.common import parser
from toolkit.app.judgements.battles import Battles, Progress
from toolkit.app.judgements.judgement import TIE, A, B
from toolkit.app.judgements.store import FILE, Store
from toolkit.app.workbench import Workbench
from toolkit.world.labelers import Labeler, panel
from toolkit.world.questions import sample_questions

UNDECIDED = 0.1  # gold utility; a smaller difference is a tie
BASE = "world:base"


def vote(runs: Path, battles: int, seed: int) -> int:
    """Let the labelers vote on battles of all checkpoints of the embedded base below `runs`.

    Returns: the number of votes stored.
    """
    workbench = Workbench.open(BASE, runs)
    battle_store = Battles(workbench, Store(runs / FILE))
    rng, labelers = random.Random(f"votes-{seed}"), panel(seed)
    pool = list(workbench.catalog.checkpoints)
    for question in sample_questions(rng, "test", battles):
        number = rng.randrange(len(labelers))
        shown = _last(battle_store.battle(question.prompt, pool))
        battle_store.vote(
            shown.id,
            verdict(labelers[number], question.prompt, shown.texts, rng),
            labeler=f"simulated-{number}",
        )
    return battles


def verdict(labeler: Labeler, prompt: str, texts: tuple[str, ...], rng: random.Random) -> str:
    """A labeler's verdict on two answers."""
    first, second = (labeler.judge(prompt, text, rng) for text in texts)
    if abs(first - second) < UNDECIDED:
        return TIE
    return A if first > second else B


def _last(shown: Iterator[Progress]) -> Progress:
    *_, last = shown
    return last


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("runs", type=Path, help="a folder of runs")
    options.add_argument("--battles", type=int, default=120, help="votes to store (120)")
    options.add_argument("--seed", type=int, default=0)
    args = options.parse_args()
    print(f"{vote(args.runs, args.battles, args.seed)} votes in {args.runs / FILE}")
