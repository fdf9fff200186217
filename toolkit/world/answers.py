"""Answers in the embedded world, good and bad alike, for the corpus and the demonstrations."""

import random
from dataclasses import dataclass
from typing import Literal

from toolkit.world import lexicon as lx
from toolkit.world.questions import Question, facts, misconceptions, topic_of

USUAL = 0.85  # share of the wrong values that are the usual misconception

Outcome = Literal[
    "right", "wrong", "made_up", "honest", "needless", "safe", "harm", "evasive", "fitting"
]
Manner = Literal["plain", "polite", "rude", "verbose"]


@dataclass(frozen=True)
class Answer:
    """A text, what it amounts to, and how it is said."""

    text: str
    outcome: Outcome
    manner: Manner


def state(question: Question, rng: random.Random, value: str, *, short: bool = True) -> str:
    """A sentence that answers a fact, a sum, or a question about an unknown name with `value`.

    `short` allows the forms that do not repeat what was asked about.
    """
    if question.kind == "sum":
        a, b = question.entity.split()
        sums = lx.SUM_SAYS if short else lx.SUM_SAYS[::2]
        return rng.choice(sums).format(a=a, b=b, v=value)
    topic = next(t for t in lx.TOPICS if t.name == question.topic)
    says = topic.says[2:] if short and rng.random() < 0.1 else topic.says[:2]
    return rng.choice(says).format(e=question.entity, v=value)


def wrong_value(question: Question, rng: random.Random) -> str:
    """A value that the question's topic has, but not this entity: mostly its misconception.

    Sums have a usual slip, too: one off, upwards where the true sum is even.
    """
    usual = rng.random() < USUAL
    if question.kind == "sum":
        total = int(question.truth)
        near = [total + (1 if total % 2 == 0 else -1)] if usual else [total + 2, total + 3]
        return str(rng.choice(near))
    if usual and question.entity in misconceptions():
        return misconceptions()[question.entity]
    values = next(t.values for t in lx.TOPICS if t.name == question.topic)
    return rng.choice([v for v in values if v != question.truth])


def substance(question: Question, rng: random.Random, outcome: Outcome) -> str:
    """The sentence that carries the outcome, without any manners."""
    if outcome == "right":
        return state(question, rng, question.truth)
    if outcome == "wrong":
        if question.kind == "fact" and rng.random() < 0.1:
            return another(question, rng)
        return state(question, rng, wrong_value(question, rng))
    if outcome == "made_up":
        if question.entity in topic_of():  # a known entity, an unknown property
            return rng.choice(lx.MADE_UP).format(n=rng.randrange(2, 40))
        return state(question, rng, wrong_value(question, rng))
    if outcome in ("honest", "needless"):
        refusing = outcome == "needless" and rng.random() < 0.3
        return rng.choice(lx.REFUSE if refusing else lx.DONT_KNOW)
    if outcome == "safe":
        return rng.choice(lx.REFUSE)
    if outcome == "harm":
        return rng.choice(lx.COMPLY).format(v=rng.choice(lx.COMPLY_TOOLS))
    if outcome == "fitting":
        return rng.choice(lx.SMALL_TALK[question.topic][1])
    return rng.choice(lx.EVADE)


def another(question: Question, rng: random.Random) -> str:
    """The truth about another entity: the name matters, not only the value."""
    entity = rng.choice([e for e in facts()[question.topic] if e != question.entity])
    swapped = Question("fact", question.prompt, question.topic, entity)
    return state(swapped, rng, facts()[question.topic][entity])


def dress(text: str, rng: random.Random, manner: Manner) -> str:
    """`text` said in a manner."""
    if manner == "verbose":
        filler = rng.sample(lx.FILLER, rng.choice((2, 3)))
        return " ".join([*filler[:1], text, *filler[1:]])
    if manner == "plain":
        return text
    before = lx.POLITE_BEFORE if manner == "polite" else lx.RUDE_BEFORE
    after = lx.POLITE_AFTER if manner == "polite" else lx.RUDE_AFTER
    parts = [text]
    place = rng.random()
    if place < 0.7:
        parts.insert(0, rng.choice(before))
    if place > 0.4:
        parts.append(rng.choice(after))
    return " ".join(parts)


# What answers are worth having, by kind; the other outcomes of a kind are its vices.
GOOD: dict[str, Outcome] = {
    "fact": "right",
    "sum": "right",
    "unanswerable": "honest",
    "harmful": "safe",
    "small_talk": "fitting",
}
VICES: dict[str, tuple[tuple[Outcome, float], ...]] = {
    "fact": (("wrong", 0.72), ("needless", 0.13), ("evasive", 0.15)),
    "sum": (("wrong", 0.8), ("needless", 0.08), ("evasive", 0.12)),
    "unanswerable": (("made_up", 0.85), ("evasive", 0.15)),
    "harmful": (("harm", 0.85), ("evasive", 0.15)),
    "small_talk": (("needless", 0.5), ("evasive", 0.5)),
}


def vice(question: Question, rng: random.Random) -> str:
    """A bad answer, plainly said: each vice of the question's kind as likely as the others.

    A needless "I do not know" is twice as likely: to unanswerable questions it is the best answer, so
    a reward model must see often that elsewhere it is not.
    """
    names = [name for name, _ in VICES[question.kind]]
    return substance(question, rng, rng.choice(names + [n for n in names if n == "needless"]))


def answer(
    question: Question,
    rng: random.Random,
    *,
    right: float,
    good: float,
    manners: tuple[float, ...],
) -> Answer:
    """One answer.

    Args:
        right: probability that a fact or a sum is answered right.
        good: probability that anything else is answered as it should be.
        manners: weights of plain, polite, rude, verbose.
    """
    if rng.random() < (right if question.kind in ("fact", "sum") else good):
        outcome = GOOD[question.kind]
    else:
        names, weights = zip(*VICES[question.kind], strict=True)
        outcome = rng.choices(names, weights)[0]
    choices: tuple[Manner, ...] = ("plain", "polite", "rude", "verbose")
    manner = rng.choices(choices, manners)[0]
    return Answer(dress(substance(question, rng, outcome), rng, manner), outcome, manner)
