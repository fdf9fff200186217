"""Good and bad answers of the embedded world, for the corpus and the demonstrations."""

import random
from dataclasses import dataclass
from typing import Literal

from toolkit.world import lexicon as lx
from toolkit.world.questions import Question, facts, misconceptions, topic_of

MISCONCEPTION_SHARE = 0.85  # share of wrong values that are the usual misconception

Outcome = Literal[
    "right", "wrong", "made_up", "honest", "needless", "safe", "harm", "evasive", "fitting"
]
Manner = Literal["plain", "polite", "rude", "verbose"]
MANNERS: tuple[Manner, ...] = ("plain", "polite", "rude", "verbose")

# The good outcome of each kind of question, and its bad outcomes with their weights.
GOOD: dict[str, Outcome] = {
    "fact": "right",
    "sum": "right",
    "unanswerable": "honest",
    "harmful": "safe",
    "small_talk": "fitting",
}
BAD: dict[str, tuple[tuple[Outcome, float], ...]] = {
    "fact": (("wrong", 0.72), ("needless", 0.13), ("evasive", 0.15)),
    "sum": (("wrong", 0.8), ("needless", 0.08), ("evasive", 0.12)),
    "unanswerable": (("made_up", 0.85), ("evasive", 0.15)),
    "harmful": (("harm", 0.85), ("evasive", 0.15)),
    "small_talk": (("needless", 0.5), ("evasive", 0.5)),
}


@dataclass(frozen=True)
class Answer:
    """An answer: text, outcome and manner."""

    text: str
    outcome: Outcome
    manner: Manner


def answer(
    question: Question, rng: random.Random, *, right: float, good: float, manners: tuple[float, ...]
) -> Answer:
    """A random answer.

    Args:
        right: probability of the right answer to a fact or a sum.
        good: probability of a good answer to any other question.
        manners: weights of plain, polite, rude, verbose.
    """
    if rng.random() < (right if question.kind in ("fact", "sum") else good):
        outcome = GOOD[question.kind]
    else:
        outcomes, weights = zip(*BAD[question.kind], strict=True)
        outcome = rng.choices(outcomes, weights)[0]
    manner = rng.choices(MANNERS, manners)[0]
    return Answer(add_manner(substance(question, rng, outcome), rng, manner), outcome, manner)


def bad_answer(question: Question, rng: random.Random) -> str:
    """A bad answer in plain manner; all bad outcomes of the question's kind are equally likely.

    Only a needless "I do not know" is twice as likely. It is the best answer to unanswerable questions, so
    a reward model must see often that it is bad for other questions.
    """
    outcomes = [outcome for outcome, _ in BAD[question.kind]]
    outcomes += [outcome for outcome in outcomes if outcome == "needless"]
    return substance(question, rng, rng.choice(outcomes))


def substance(question: Question, rng: random.Random, outcome: Outcome) -> str:
    """A sentence with the given outcome, in plain manner."""
    if outcome == "right":
        return statement(question, rng, question.truth)
    if outcome == "wrong":
        if question.kind == "fact" and rng.random() < 0.1:
            return _other_entity(question, rng)
        return statement(question, rng, wrong_value(question, rng))
    if outcome == "made_up":
        if question.entity in topic_of():  # a known entity, an unknown property
            return rng.choice(lx.MADE_UP).format(n=rng.randrange(2, 40))
        return statement(question, rng, wrong_value(question, rng))
    if outcome in ("honest", "needless"):
        refuses = outcome == "needless" and rng.random() < 0.3
        return rng.choice(lx.REFUSE if refuses else lx.DONT_KNOW)
    if outcome == "safe":
        return rng.choice(lx.REFUSE)
    if outcome == "harm":
        return rng.choice(lx.COMPLY).format(v=rng.choice(lx.COMPLY_TOOLS))
    if outcome == "fitting":
        return rng.choice(lx.SMALL_TALK[question.topic][1])
    return rng.choice(lx.EVADE)


def statement(question: Question, rng: random.Random, value: str, *, short: bool = True) -> str:
    """A sentence that answers a fact, a sum, or a question about an unknown name with `value`.

    `short` allows the forms that do not repeat the entity or the numbers.
    """
    if question.kind == "sum":
        a, b = question.entity.split()
        sums = lx.SUM_STATEMENTS if short else lx.SUM_STATEMENTS[::2]
        return rng.choice(sums).format(a=a, b=b, v=value)
    topic = lx.topic(question.topic)
    forms = topic.statements[2:] if short and rng.random() < 0.1 else topic.statements[:2]
    return rng.choice(forms).format(e=question.entity, v=value)


def wrong_value(question: Question, rng: random.Random) -> str:
    """A wrong value of the question's topic: mostly the entity's misconception.

    Sums also have a usual mistake: one too many if the true sum is even, else one too few.
    """
    usual = rng.random() < MISCONCEPTION_SHARE
    if question.kind == "sum":
        total = int(question.truth)
        near = [total + (1 if total % 2 == 0 else -1)] if usual else [total + 2, total + 3]
        return str(rng.choice(near))
    if usual and question.entity in misconceptions():
        return misconceptions()[question.entity]
    values = lx.topic(question.topic).values
    return rng.choice([v for v in values if v != question.truth])


def _other_entity(question: Question, rng: random.Random) -> str:
    """The truth about another entity, which is a wrong answer to the question."""
    entity = rng.choice([e for e in facts()[question.topic] if e != question.entity])
    other = Question("fact", question.prompt, question.topic, entity)
    return statement(other, rng, facts()[question.topic][entity])


def add_manner(text: str, rng: random.Random, manner: Manner) -> str:
    """`text` with the phrases of a manner before and after it."""
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
