"""What the page's lists offer and what is chosen in them, also after the runs have changed."""

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from toolkit.app.catalog import BASE_ID, Catalog, Entry
from toolkit.world import BASE_NAME
from toolkit.world.questions import distinct_questions

CHOSEN_AT_FIRST = 4
PAGE_LOOKS_APART = 2.0  # seconds; the tabs of a page that is opened share one look
EXAMPLES, BASELINE_PROMPTS = 8, 32
NO_SCORE, NO_REWARD_RUN = "no_score", "no_reward_run"


def questions_to_try(base_name: str) -> list[str]:
    """Prompts to try: questions no recipe trains on, where the base is the embedded world's."""
    return baseline_questions(base_name)[:EXAMPLES]


def baseline_questions(base_name: str) -> list[str]:
    """The questions whose answers by SFT scores are compared with; none for another base."""
    if base_name != BASE_NAME:
        return []
    return [q.prompt for q in distinct_questions(random.Random(0), "test", BASELINE_PROMPTS)]


@dataclass(frozen=True)
class Choices:
    """(label, id) of each choice, and the chosen ids."""

    choices: list[tuple[str, str]]
    chosen: list[str]


def checkpoint_choices(catalog: Catalog, chosen: Iterable[str] = ()) -> Choices:
    """All checkpoints; what was chosen stays so where it still exists."""
    entries = list(catalog.checkpoints.values())
    kept = [c for c in chosen if c in catalog.checkpoints]
    if kept in ([], [BASE_ID]):  # at first: the base, SFT, and what came of it
        sft = _most_built_on(entries) or catalog.checkpoints[BASE_ID].reference
        ordered = sorted(entries, key=lambda e: (e.id != BASE_ID, e.id != sft, e.reference != sft))
        kept = [e.id for e in ordered[:CHOSEN_AT_FIRST]]
    return Choices([(e.label, e.id) for e in entries], kept)


def _most_built_on(entries: list[Entry]) -> str | None:
    """The SFT run that most others began with."""
    below = Counter(e.reference for e in entries if BASE_ID not in (e.id, e.reference))
    below.subtract(e.id for e in entries)  # each is its own reference
    most = below.most_common(1)
    return most[0][0] if most and most[0][1] > 0 else None


def reward_choices(catalog: Catalog, chosen: str | None = None) -> Choices:
    """All reward models and "no score", or a single choice that says that there is none."""
    if not catalog.rewards:
        return Choices([("no reward run found", NO_REWARD_RUN)], [NO_REWARD_RUN])
    choices = [(e.label, e.id) for e in catalog.rewards.values()] + [("no score", NO_SCORE)]
    kept = [key for _, key in choices if key == chosen]
    return Choices(choices, kept or [choices[0][1]])


def reward_id(chosen: object) -> object:
    """The reward model to score with, or None; ids are checked where they are used."""
    return None if chosen in (NO_SCORE, NO_REWARD_RUN) else chosen
