"""From replies to verdicts: the order of two answers, the ranks of all answers of a prompt."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, permutations

import numpy as np

from toolkit.judging.items import Item
from toolkit.judging.questions import (
    ASPECTS,
    TIE,
    A,
    Question,
    Template,
    aspect_questions,
    pair_question,
)
from toolkit.judging.replies import Replies

Pair = tuple[str, str]  # two texts


@dataclass(frozen=True)
class Judged:
    """An item with the judge's verdicts.

    `shown` maps (first, second) to the share that the reply gives to the first: 1, 0.5 or 0. `ratings`
    maps a text to its ratings in the order of `ASPECTS`. `scores` are those of the texts that could be
    ranked.
    """

    item: Item
    scores: Mapping[str, float]
    shown: Mapping[Pair, float] = field(default_factory=dict)
    ratings: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @property
    def kept(self) -> list[int]:
        """The indices of the answers that have a score."""
        return [i for i, text in enumerate(self.item.texts) if text in self.scores]

    @property
    def ranks(self) -> list[int]:
        """The ranks of the `kept` answers; 1 is best."""
        scores = [self.scores[self.item.texts[i]] for i in self.kept]
        return [1 + sum(other > score for other in scores) for score in scores]

    def better(self, one: str, other: str) -> float | None:
        """1 if the first text is better, 0 if the other one is, 0.5 for a tie; None if it is unknown.

        Two orders of a pair that disagree are a tie.
        """
        if self.ratings:
            if one not in self.scores or other not in self.scores:
                return None
            return float(np.sign(self.scores[one] - self.scores[other]) + 1) / 2
        shares = [self.shown.get((one, other)), self.shown.get((other, one))]
        if shares[0] is None or shares[1] is None:
            return None
        return shares[0] if shares[0] == 1 - shares[1] else 0.5

    def pairs(self) -> Iterator[tuple[str, str, float]]:
        """Every two different texts with their verdict, if it is known."""
        for one, other in combinations(self.item.distinct, 2):
            if (share := self.better(one, other)) is not None:
                yield one, other, share


def plan(item: Item, template: Template, mode: str) -> dict[tuple[str, ...], Question]:
    """The questions about an item: by (first, second) text, or by (text, aspect)."""
    if len(item.distinct) < 2:
        return {}
    if mode == "pairwise":
        return {
            pair: pair_question(template, item.prompt, *pair)
            for pair in permutations(item.distinct, 2)
        }
    return {
        (text, aspect): question
        for text in item.distinct
        for aspect, question in zip(
            ASPECTS, aspect_questions(template, item.prompt, text), strict=True
        )
    }


def judged(
    item: Item, questions: Mapping[tuple[str, ...], Question], replies: Replies, mode: str
) -> Judged:
    """The verdicts on an item. Answers whose questions have no reply are left out; equal answers tie."""
    if len(item.distinct) == 1:
        return Judged(item, {item.distinct[0]: 0.0})
    choices = {
        key: replies[q.key].choice
        for key, q in questions.items()
        if q.key in replies and replies[q.key].problem is None
    }
    if mode == "aspects":
        ratings = {
            text: [choices[text, aspect] for aspect in ASPECTS]
            for text in item.distinct
            if all((text, aspect) in choices for aspect in ASPECTS)
        }
        scores = {text: sum(values) / len(values) for text, values in ratings.items()}
        return Judged(item, scores if len(scores) > 1 else {}, ratings=ratings)
    shown = {
        (key[0], key[1]): 0.5 if choice == TIE else float(choice == A)
        for key, choice in choices.items()
    }
    unranked = Judged(item, {}, shown)
    return Judged(item, _wins(unranked), shown)


def _wins(item: Judged) -> dict[str, float]:
    """The wins of each text over all others, a tie as half a win.

    A text that lacks the most verdicts is left out until all pairs of the others are known.
    """
    texts = list(item.item.distinct)
    while len(texts) > 1:
        missing = Counter(
            text for pair in combinations(texts, 2) if item.better(*pair) is None for text in pair
        )
        if not missing:
            return {
                one: sum(item.better(one, other) or 0.0 for other in texts if other != one)
                for one in texts
            }
        texts.remove(missing.most_common(1)[0][0])
    return {}
