"""The choices in the page's lists, and the selected choices after the runs change."""

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from toolkit.app.catalog import BASE_ID, Catalog, Entry
from toolkit.world import BASE_NAME
from toolkit.world.questions import distinct_questions

CHOSEN_AT_FIRST = 4
SHARED_SCAN_S = 2.0  # the tabs of a page that opens share one scan
EXAMPLES, BASELINE_PROMPTS = 8, 32
NO_SCORE, NO_REWARD_RUN = "no_score", "no_reward_run"


def example_prompts(base_name: str) -> list[str]:
    """Prompts to try: test questions of the embedded world; none for another base."""
    return baseline_prompts(base_name)[:EXAMPLES]


def baseline_prompts(base_name: str) -> list[str]:
    """The prompts for the baseline of scores, which the SFT run answers; none for another base."""
    if base_name != BASE_NAME:
        return []
    return [q.prompt for q in distinct_questions(random.Random(0), "test", BASELINE_PROMPTS)]


@dataclass(frozen=True)
class Choices:
    """The choices of a list as (label, id), and the chosen ids."""

    choices: list[tuple[str, str]]
    chosen: list[str]


def checkpoint_choices(catalog: Catalog, chosen: Iterable[str] = ()) -> Choices:
    """All checkpoints. The choice stays as far as it still exists."""
    kept = [id for id in chosen if id in catalog.checkpoints]
    if kept in ([], [BASE_ID]):
        kept = _first_choice(catalog)
    return Choices([(e.label, e.id) for e in catalog.checkpoints.values()], kept)


def _first_choice(catalog: Catalog) -> list[str]:
    """The base, SFT, and finished runs with other weights: one run of each recipe, then the others.

    PPO is last, because a list's last choice is the most trained one.
    """
    entries = list(catalog.checkpoints.values())
    sft = _most_used_reference(entries) or catalog.checkpoints[BASE_ID].reference
    chosen = [e for e in entries if e.id == BASE_ID] + [
        e for e in entries if e.id == sft != BASE_ID
    ]
    left = [e for e in entries if e not in chosen and e.state == "finished"]
    left.sort(key=lambda e: e.reference != sft)
    while left and len(chosen) < CHOSEN_AT_FIRST:
        used = Counter(e.recipe for e in chosen)
        best = min(left, key=lambda e: (used[e.recipe], e.is_sft, not e.is_online))
        left.remove(best)
        if not best.weights or best.weights not in {e.weights for e in chosen}:
            chosen.append(best)
    return [e.id for e in sorted(chosen, key=lambda e: e.is_online)]


def _most_used_reference(entries: list[Entry]) -> str | None:
    """The SFT run that is most often the reference of other runs."""
    uses = Counter(e.reference for e in entries if BASE_ID not in (e.id, e.reference))
    uses.subtract(e.id for e in entries)  # each SFT run is its own reference
    most = uses.most_common(1)
    return most[0][0] if most and most[0][1] > 0 else None


def reward_choices(catalog: Catalog, chosen: str | None = None) -> Choices:
    """All reward models and "no score"; without a reward run, one choice that states this."""
    if not catalog.rewards:
        return Choices([("no reward run found", NO_REWARD_RUN)], [NO_REWARD_RUN])
    choices = [(e.label, e.id) for e in catalog.rewards.values()] + [("no score", NO_SCORE)]
    kept = [id for _, id in choices if id == chosen]
    return Choices(choices, kept or [choices[0][1]])
