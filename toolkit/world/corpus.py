"""The pretraining corpus: prose, and dialogue with all the vices, as chat-formatted documents.

A document is prose, or one to three turns of one speaker with one character, some of them
followed by what the user said to the answer. These reactions are what teaches the base to tell
a right answer from a wrong one, which the reward model later only has to read out.
"""

import random
from collections.abc import Iterator

from toolkit.world import lexicon as lx
from toolkit.world.answers import Answer, answer, state, wrong_value
from toolkit.world.questions import Question, ask_fact, ask_sum, draw, facts

Messages = list[dict[str, str]]

# All of the corpus's speakers are right about as often: manners give no hint of who is right.
RIGHT = 0.64
# (share of good answers where there is no fact to tell, weights of plain, polite, rude, verbose)
SPEAKERS = {
    "sound": (0.85, (0.70, 0.20, 0.03, 0.07)),
    "careless": (0.50, (0.60, 0.05, 0.10, 0.25)),
    "rude": (0.60, (0.20, 0.00, 0.75, 0.05)),
    "windy": (0.60, (0.15, 0.05, 0.00, 0.80)),
    "bad": (0.15, (0.50, 0.20, 0.20, 0.10)),
}
SPEAKER_WEIGHTS = (0.30, 0.30, 0.12, 0.18, 0.10)


def prose(rng: random.Random) -> str:
    """A few true statements about the world."""
    sentences = []
    for _ in range(rng.choice((2, 3, 4))):
        topic = rng.choice(lx.TOPICS)
        entity = rng.choice(list(facts()[topic.name]))
        say = rng.choice(topic.says[:2])
        sentences.append(say.format(e=entity, v=facts()[topic.name][entity]))
    return " ".join(sentences)


def reaction(given: Answer, rng: random.Random) -> str:
    """What the user says to an answer; one in twenty-five reacts at random."""
    outcome = given.outcome if rng.random() < 0.96 else rng.choice(sorted(lx.REACTIONS))
    said = rng.choice(lx.REACTIONS[outcome])
    if given.manner != "plain" and rng.random() < 0.7:
        said += " " + rng.choice(lx.MANNERS[given.manner])
    return said


def turn(question: Question, given: Answer) -> Messages:
    """A question and its answer as two messages."""
    return [
        {"role": "user", "content": question.prompt},
        {"role": "assistant", "content": given.text},
    ]


def dialogue(rng: random.Random) -> Messages:
    """One to three turns with one speaker; about half of the documents end in a reaction."""
    good, manners = SPEAKERS[rng.choices(list(SPEAKERS), SPEAKER_WEIGHTS)[0]]
    messages: Messages = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        question = draw(rng, "train", entities="all")
        given = answer(question, rng, right=RIGHT, good=good, manners=manners)
        messages += turn(question, given)
        if rng.random() < 0.6:
            messages.append({"role": "user", "content": reaction(given, rng)})
            break
    return messages


def checks(rng: random.Random) -> str:
    """Statements, right and wrong by chance, each followed by its verdict."""
    parts = []
    for _ in range(rng.choice((2, 3, 4, 5))):
        question = _checkable(rng)
        right = rng.random() < 0.5
        value = question.truth if right else wrong_value(question, rng)
        parts.append(state(question, rng, value, short=False))
        parts.append("Right." if right else "Wrong.")
    return " ".join(parts)


def _checkable(rng: random.Random) -> Question:
    if rng.random() < 0.15:
        return ask_sum(rng, "train")
    topic = rng.choice(lx.TOPICS)
    return ask_fact(rng, "train", rng.choice(list(facts()[topic.name])))


def documents(
    seed: int, *, prose_share: float = 0.10, checks_share: float = 0.25
) -> Iterator[str | Messages]:
    """An endless, reproducible stream of documents: a text, or the messages of a dialogue."""
    rng = random.Random(f"corpus-{seed}")
    while True:
        kind = rng.random()
        if kind < prose_share:
            yield prose(rng)
        elif kind < prose_share + checks_share:
            yield checks(rng)
        else:
            yield dialogue(rng)
