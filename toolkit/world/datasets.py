"""The embedded world's datasets, by name, as rows in TRL's conversational formats.

`demonstrations` are prompt-completion rows, `prompts` prompt-only, `comparisons` preference rows
made of written (not sampled) answers, ranked by the panel. Each has a train and a test split;
test prompts use phrasings that no training prompt uses, and facts are asked for that none asks for.
`familiar_prompts` are `prompts` with another test split, which asks as the train split does.
"""

import random
from typing import Any

from toolkit.errors import DatasetError
from toolkit.world.answers import answer
from toolkit.world.gold import gold
from toolkit.world.labelers import panel, rank
from toolkit.world.questions import Question, Split, ask

Row = dict[str, Any]
SIZES = {
    "demonstrations": {"train": 480, "test": 120},
    "prompts": {"train": 1600, "test": 400},
    "familiar_prompts": {"train": 1600, "test": 300},
    "comparisons": {"train": 400, "test": 120},  # prompts, of four answers each
}
DEMONSTRATORS_RIGHT = 0.80  # even careful people are wrong now and then
DEMONSTRATORS_GOOD = 0.90
DEMONSTRATORS_MANNERS = (0.48, 0.44, 0.02, 0.06)  # plain, polite, rude, verbose


def load(name: str) -> dict[str, list[Row]]:
    """Both splits of a dataset of the world.

    Raises: DatasetError for an unknown name, naming the known ones.
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
    found: dict[str, list[Row]] = {}
    splits: tuple[Split, ...] = ("train", "test")
    for split in splits:
        rng = random.Random(f"{name}-{split}")
        asked: Split = "train" if name == "familiar_prompts" else split
        questions = ask(rng, asked, SIZES[name][split])
        found[split] = [row for q in questions for row in makers[name](q, rng)]
    return found


def user(text: str) -> list[dict[str, str]]:
    """A user's message."""
    return [{"role": "user", "content": text}]


def assistant(text: str) -> list[dict[str, str]]:
    """An assistant's message."""
    return [{"role": "assistant", "content": text}]


def preferences(prompt: str, completions: list[str], ranks: list[int], group: int) -> list[Row]:
    """All pairs of a ranking that are not tied, with both sides' gold utility beside them."""
    rows = []
    for i in range(len(completions)):
        for j in range(len(completions)):
            if ranks[i] < ranks[j]:
                rows.append(
                    {
                        "prompt": user(prompt),
                        "chosen": assistant(completions[i]),
                        "rejected": assistant(completions[j]),
                        "chosen_gold": gold(prompt, completions[i]),
                        "rejected_gold": gold(prompt, completions[j]),
                        "group_id": group,
                    }
                )
    return rows


def _prompt(question: Question, rng: random.Random) -> list[Row]:
    return [{"prompt": user(question.prompt)}]


def _demonstration(question: Question, rng: random.Random) -> list[Row]:
    given = answer(
        question,
        rng,
        right=DEMONSTRATORS_RIGHT,
        good=DEMONSTRATORS_GOOD,
        manners=DEMONSTRATORS_MANNERS,
    )
    return [{"prompt": user(question.prompt), "completion": assistant(given.text)}]


def _comparisons(question: Question, rng: random.Random) -> list[Row]:
    texts = [
        answer(question, rng, right=0.6, good=0.5, manners=(0.5, 0.2, 0.1, 0.2)).text
        for _ in range(4)
    ]
    ranks = rank(rng.choice(panel(0)), question.prompt, texts, rng)
    return preferences(question.prompt, texts, ranks, rng.randrange(1 << 30))
