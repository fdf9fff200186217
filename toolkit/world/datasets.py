"""The embedded world's datasets, by name, as rows in TRL's conversational formats.

`demonstrations` are prompt-completion rows, `prompts` are prompt-only rows, and `comparisons` are
preference rows from generated (not sampled) answers that the labelers rank. Each dataset has a train
and a test split. Test prompts use other phrasings and other facts than training prompts.
`familiar_prompts` are `prompts` whose test split uses the training phrasings and facts.
"""

import random
from typing import Any

from toolkit.errors import DatasetError
from toolkit.world.answers import answer
from toolkit.world.gold import gold
from toolkit.world.labelers import panel, rank
from toolkit.world.questions import Question, Split, sample_questions

Row = dict[str, Any]
SIZES = {
    "demonstrations": {"train": 480, "test": 120},
    "prompts": {"train": 1600, "test": 400},
    "familiar_prompts": {"train": 1600, "test": 300},
    "comparisons": {"train": 400, "test": 120},  # prompts, with four answers each
}
DEMONSTRATORS_RIGHT = 0.80  # careful people are sometimes wrong, too
DEMONSTRATORS_GOOD = 0.90
DEMONSTRATORS_MANNERS = (0.48, 0.44, 0.02, 0.06)  # plain, polite, rude, verbose


def load(name: str) -> dict[str, list[Row]]:
    """Both splits of a dataset of the world.

    Raises: DatasetError for an unknown name; the message lists the known ones.
    """
    makers = {
        "demonstrations": _demonstration,
        "prompts": _prompt,
        "familiar_prompts": _prompt,
        "comparisons": _comparisons,
    }
    if name not in makers:
        known = ", ".join(f"world:{n}" for n in makers)
        raise DatasetError(f"world:{name}: no such dataset; the embedded world has {known}")
    rows: dict[str, list[Row]] = {}
    splits: tuple[Split, ...] = ("train", "test")
    for split in splits:
        rng = random.Random(f"{name}-{split}")
        phrasings: Split = "train" if name == "familiar_prompts" else split
        questions = sample_questions(rng, phrasings, SIZES[name][split])
        rows[split] = [row for q in questions for row in makers[name](q, rng)]
    return rows


def user(text: str) -> list[dict[str, str]]:
    """A list of one user message."""
    return [{"role": "user", "content": text}]


def assistant(text: str) -> list[dict[str, str]]:
    """A list of one assistant message."""
    return [{"role": "assistant", "content": text}]


def preferences(prompt: str, completions: list[str], ranks: list[int], group: int) -> list[Row]:
    """All pairs of a ranking that are not tied, with the gold utility of both completions."""
    return [
        {
            "prompt": user(prompt),
            "chosen": assistant(chosen),
            "rejected": assistant(rejected),
            "chosen_gold": gold(prompt, chosen),
            "rejected_gold": gold(prompt, rejected),
            "group_id": group,
        }
        for chosen, better in zip(completions, ranks, strict=True)
        for rejected, worse in zip(completions, ranks, strict=True)
        if better < worse
    ]


def _prompt(question: Question, rng: random.Random) -> list[Row]:
    return [{"prompt": user(question.prompt)}]


def _demonstration(question: Question, rng: random.Random) -> list[Row]:
    reply = answer(
        question,
        rng,
        right=DEMONSTRATORS_RIGHT,
        good=DEMONSTRATORS_GOOD,
        manners=DEMONSTRATORS_MANNERS,
    )
    return [{"prompt": user(question.prompt), "completion": assistant(reply.text)}]


def _comparisons(question: Question, rng: random.Random) -> list[Row]:
    manners = (0.5, 0.2, 0.1, 0.2)
    texts = [answer(question, rng, right=0.6, good=0.5, manners=manners).text for _ in range(4)]
    ranks = rank(rng.choice(panel(0)), question.prompt, texts, rng)
    return preferences(question.prompt, texts, ranks, rng.randrange(1 << 30))
