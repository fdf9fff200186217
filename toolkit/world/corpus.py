"""The pretraining corpus: documents of prose, and chats with good and bad answers.

A document is prose, or one to three turns with an assistant of one character. The user reacts to some
answers. The reactions teach the base to tell right answers from wrong ones, which the reward model uses
later.
"""

import random
from collections.abc import Iterator

from toolkit.world import lexicon as lx
from toolkit.world.answers import Answer, answer, statement, wrong_value
from toolkit.world.questions import fact_question, facts, sample_question, sum_question

Messages = list[dict[str, str]]

PROSE_SHARE, VERDICT_SHARE = 0.10, 0.25  # shares of all documents; the rest are dialogues
# All speakers are equally often right, so that manners give no hint about the truth.
RIGHT = 0.64
# (share of good answers to questions without a true value, weights of plain, polite, rude, verbose)
SPEAKERS = {
    "sound": (0.85, (0.70, 0.20, 0.03, 0.07)),
    "careless": (0.50, (0.60, 0.05, 0.10, 0.25)),
    "rude": (0.60, (0.20, 0.00, 0.75, 0.05)),
    "windy": (0.60, (0.15, 0.05, 0.00, 0.80)),
    "bad": (0.15, (0.50, 0.20, 0.20, 0.10)),
}
SPEAKER_WEIGHTS = (0.30, 0.30, 0.12, 0.18, 0.10)


def documents(seed: int) -> Iterator[str | Messages]:
    """An endless, reproducible stream of documents: a text, or the messages of a dialogue."""
    rng = random.Random(f"corpus-{seed}")
    while True:
        kind = rng.random()
        if kind < PROSE_SHARE:
            yield prose(rng)
        elif kind < PROSE_SHARE + VERDICT_SHARE:
            yield verdicts(rng)
        else:
            yield dialogue(rng)


def prose(rng: random.Random) -> str:
    """A few true statements about the world."""
    sentences = []
    for _ in range(rng.choice((2, 3, 4))):
        topic = rng.choice(lx.TOPICS)
        entity = rng.choice(list(facts()[topic.name]))
        form = rng.choice(topic.statements[:2])
        sentences.append(form.format(e=entity, v=facts()[topic.name][entity]))
    return " ".join(sentences)


def verdicts(rng: random.Random) -> str:
    """Right and wrong statements, each followed by its verdict."""
    parts = []
    for _ in range(rng.choice((2, 3, 4, 5))):
        if rng.random() < 0.15:
            question = sum_question(rng, "train")
        else:
            names = facts()[rng.choice(lx.TOPICS).name]
            question = fact_question(rng, "train", rng.choice(list(names)))
        right = rng.random() < 0.5
        value = question.truth if right else wrong_value(question, rng)
        parts.append(statement(question, rng, value, short=False))
        parts.append("Right." if right else "Wrong.")
    return " ".join(parts)


def dialogue(rng: random.Random) -> Messages:
    """One to three turns with one assistant; about half of the dialogues end with a reaction."""
    good, manners = SPEAKERS[rng.choices(list(SPEAKERS), SPEAKER_WEIGHTS)[0]]
    messages: Messages = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        question = sample_question(rng, "train", entities="all")
        reply = answer(question, rng, right=RIGHT, good=good, manners=manners)
        messages += [
            {"role": "user", "content": question.prompt},
            {"role": "assistant", "content": reply.text},
        ]
        if rng.random() < 0.6:
            messages.append({"role": "user", "content": reaction(reply, rng)})
            break
    return messages


def reaction(reply: Answer, rng: random.Random) -> str:
    """The user's reaction to an answer; one in twenty-five is random."""
    outcome = reply.outcome if rng.random() < 0.96 else rng.choice(sorted(lx.REACTIONS))
    text = rng.choice(lx.REACTIONS[outcome])
    if reply.manner != "plain" and rng.random() < 0.7:
        text += " " + rng.choice(lx.MANNERS[reply.manner])
    return text
