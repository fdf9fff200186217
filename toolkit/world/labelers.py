"""A simulated panel of labelers: each ranks K answers by utility, own taste and noise.

The spread of tastes and the noise are set so that two labelers agree on 70 to 78 % of the pairs
that an SFT model's samples make, as InstructGPT's labelers did (72.6 %, arXiv:2203.02155).
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from toolkit.world.gold import features

NOISE = 0.55  # standard deviation of one judgement, in units of gold utility
LIKES_LENGTH = 0.012  # utility per word that an average labeler adds


@dataclass(frozen=True)
class Labeler:
    """One person's taste, in units of gold utility."""

    courtesy: float  # added where the answer is polite
    length: float  # added per word, up to forty words
    noise: float

    def judge(self, prompt: str, completion: str, rng: random.Random) -> float:
        """How much this labeler likes an answer, this time."""
        f = features(prompt, completion)
        taste = self.courtesy * f.polite + self.length * min(f.words, 40)
        return f.utility + taste + rng.gauss(0.0, self.noise)


def panel(seed: int, size: int = 5) -> list[Labeler]:
    """`size` labelers with tastes of their own."""
    rng = random.Random(f"panel-{seed}")
    return [
        Labeler(rng.gauss(0.1, 0.15), max(0.0, rng.gauss(LIKES_LENGTH, 0.006)), NOISE)
        for _ in range(size)
    ]


def distinct_answers(texts: Sequence[str]) -> list[str]:
    """The first of those that are alike but for blanks at their ends; none that is empty."""
    found: dict[str, str] = {}
    for text in texts:
        if text.strip():
            found.setdefault(text.strip(), text)
    return list(found.values())


def rank(
    labeler: Labeler, prompt: str, completions: Sequence[str], rng: random.Random
) -> list[int]:
    """Ranks of K answers, 1 is best; equal texts share a rank."""
    liked = {text: labeler.judge(prompt, text, rng) for text in dict.fromkeys(completions)}
    order = sorted(liked.values(), reverse=True)
    return [order.index(liked[text]) + 1 for text in completions]


def agreement(
    labelers: Sequence[Labeler], prompts: Sequence[str], groups: Sequence[Sequence[str]], seed: int
) -> float:
    """Share of pairs of different answers that two random labelers order alike."""
    rng = random.Random(f"agreement-{seed}")
    same = total = 0
    for prompt, texts in zip(prompts, groups, strict=True):
        completions = distinct_answers(texts)
        first, second = (rank(lab, prompt, completions, rng) for lab in rng.sample(labelers, 2))
        for i in range(len(completions)):
            for j in range(i):
                if first[i] != first[j]:
                    same += (first[i] < first[j]) == (second[i] < second[j])
                    total += 1
    return same / total if total else float("nan")
