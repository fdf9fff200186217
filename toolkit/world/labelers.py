"""A simulated panel of labelers: each ranks K answers by utility, personal taste and noise.

The spread of tastes and the noise make two labelers agree on 70 to 78 % of the pairs of an SFT
model's samples, like InstructGPT's labelers (72.6 %, arXiv:2203.02155).
"""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

from toolkit.world.gold import features

NOISE = 0.55  # standard deviation of one judgement, in units of gold utility
LIKES_LENGTH = 0.012  # utility per word that an average labeler adds


@dataclass(frozen=True)
class Labeler:
    """One person's taste, in units of gold utility."""

    courtesy: float  # added to a polite answer
    length: float  # added per word, for at most forty words
    noise: float

    def judge(self, prompt: str, completion: str, rng: random.Random) -> float:
        """One judgement of an answer, with fresh noise."""
        f = features(prompt, completion)
        taste = self.courtesy * f.polite + self.length * min(f.words, 40)
        return f.utility + taste + rng.gauss(0.0, self.noise)


def panel(seed: int, size: int = 5) -> list[Labeler]:
    """`size` labelers with different tastes."""
    rng = random.Random(f"panel-{seed}")
    return [
        Labeler(rng.gauss(0.1, 0.15), max(0.0, rng.gauss(LIKES_LENGTH, 0.006)), NOISE)
        for _ in range(size)
    ]


def distinct_answers(texts: Sequence[str]) -> list[str]:
    """The distinct answers, without empty ones; blanks at their ends do not count."""
    answers: dict[str, str] = {}
    for text in texts:
        if text.strip():
            answers.setdefault(text.strip(), text)
    return list(answers.values())


def rank(
    labeler: Labeler, prompt: str, completions: Sequence[str], rng: random.Random
) -> list[int]:
    """Ranks of K answers, 1 is best; equal texts share a rank."""
    scores = {text: labeler.judge(prompt, text, rng) for text in dict.fromkeys(completions)}
    order = sorted(scores.values(), reverse=True)
    return [order.index(scores[text]) + 1 for text in completions]


def agreement(
    labelers: Sequence[Labeler], prompts: Sequence[str], groups: Sequence[Sequence[str]], seed: int
) -> float:
    """The share of pairs of different answers that two random labelers put in the same order."""
    rng = random.Random(f"agreement-{seed}")
    same = total = 0
    for prompt, texts in zip(prompts, groups, strict=True):
        completions = distinct_answers(texts)
        first, second = (rank(lab, prompt, completions, rng) for lab in rng.sample(labelers, 2))
        for i, j in itertools.combinations(range(len(completions)), 2):
            if first[i] != first[j]:
                same += (first[i] < first[j]) == (second[i] < second[j])
                total += 1
    return same / total if total else float("nan")
