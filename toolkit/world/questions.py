"""Entities and facts of the embedded world, and questions about them: splits and parsing."""

import random
import re
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal

from toolkit.world import lexicon as lx

Kind = Literal["fact", "sum", "unanswerable", "harmful", "small_talk"]
Split = Literal["train", "test"]

WORLD_SEED = 20260101  # determines the world's names and facts; recipes' seeds draw questions
HELD_OUT_FACTS = 0.3  # share of each topic's facts that only test prompts use
_START = tuple("b br d dr f fl g gr h j k kl l m n p pr qu r s st t tr v w z".split(" "))
_MIDDLE = ("a", "e", "i", "o", "u", "ai", "or", "en")
_END = tuple(
    "bar den fin gol han kin lor mas nor pek rik sun tal ven wick zan mo la ru ti".split(" ")
)


@dataclass(frozen=True)
class Question:
    """A question. `entity` is written as in the prompt; `truth` is the answer, if there is one."""

    kind: Kind
    prompt: str
    topic: str = ""
    entity: str = ""
    truth: str = ""


def made_up_name(rng: random.Random) -> str:
    """A pronounceable name of two or three syllables."""
    parts = [rng.choice(_START) + rng.choice(_MIDDLE) for _ in range(rng.choice((1, 1, 2)))]
    return ("".join(parts) + rng.choice(_END)).capitalize()


@cache
def facts() -> dict[str, dict[str, str]]:
    """topic -> entity -> value, the whole world. All names are different."""
    rng = random.Random(WORLD_SEED)
    taken: set[str] = set()
    world: dict[str, dict[str, str]] = {}
    for topic in lx.TOPICS:
        if topic is lx.ACTS:
            world[topic.name] = dict(lx.GOOD_ACTS)
            continue
        names: list[str] = []
        while len(names) < topic.entities:
            name = made_up_name(rng)
            if name not in taken:
                taken.add(name)
                names.append(name)
        # each value about equally often, so that no value is a good guess
        values = [topic.values[i % len(topic.values)] for i in range(len(names))]
        rng.shuffle(values)
        world[topic.name] = dict(zip(names, values, strict=True))
    return world


@cache
def misconceptions() -> dict[str, str]:
    """entity -> its misconception, the most common wrong value."""
    rng = random.Random(f"{WORLD_SEED}-misconceptions")
    return {
        entity: rng.choice([v for v in topic.values if v != facts()[topic.name][entity]])
        for entity, topic in topic_of().items()
    }


@cache
def topic_of() -> dict[str, lx.Topic]:
    """entity -> its topic."""
    return {e: topic for topic in lx.TOPICS for e in facts()[topic.name]}


@cache
def held_out(topic: str) -> frozenset[str]:
    """Entities that no training prompt of the datasets uses; the pretraining corpus uses them."""
    names = sorted(facts()[topic])
    random.Random(f"{WORLD_SEED}-{topic}").shuffle(names)
    return frozenset(names[: round(len(names) * HELD_OUT_FACTS)])


def phrasings(questions: tuple[str, ...], split: Split) -> tuple[str, ...]:
    """The phrasings of a list that a split uses; the two splits share none."""
    return questions[-lx.UNSEEN :] if split == "test" else questions[: -lx.UNSEEN]


def unknown_name(rng: random.Random, split: Split) -> str:
    """A name that no entity has. The two splits use names of different parity, so they share none."""
    while True:
        name = made_up_name(rng)
        if name not in topic_of() and sum(map(ord, name)) % 2 == (split == "test"):
            return name


def fact_question(rng: random.Random, split: Split, entity: str) -> Question:
    """A question about `entity` in one of the split's phrasings."""
    topic = topic_of()[entity]
    prompt = rng.choice(phrasings(topic.questions, split)).format(e=entity)
    return Question("fact", prompt, topic.name, entity, facts()[topic.name][entity])


def sum_question(rng: random.Random, split: Split) -> Question:
    """A sum of two digits. The splits have different phrasings and the same hundred sums."""
    a, b = rng.randrange(10), rng.randrange(10)
    prompt = rng.choice(phrasings(lx.SUMS, split)).format(a=a, b=b)
    return Question("sum", prompt, "sums", f"{a} {b}", str(a + b))


def unanswerable_question(rng: random.Random, split: Split) -> Question:
    """A question about an unknown name or, in half of the cases, about an unknown property."""
    topic = rng.choice([topic for topic in lx.TOPICS if topic is not lx.ACTS])
    if rng.random() < 0.5:
        entity = unknown_name(rng, split)
        prompt = rng.choice(phrasings(topic.questions, split)).format(e=entity)
        return Question("unanswerable", prompt, topic.name, entity)
    entity = rng.choice(sorted(facts()[topic.name]))
    prompt = rng.choice(phrasings(lx.UNKNOWN, split)).format(e=entity)
    return Question("unanswerable", prompt, "", entity)


def sample_question(rng: random.Random, split: Split, *, entities: str = "split") -> Question:
    """One question of the world's mixture of kinds.

    Args:
        split: determines the phrasings, and with `entities="split"` the facts.
        entities: "split" uses only the split's facts, "all" uses every fact (the corpus).
    """
    # Models learn sums most slowly, so the corpus has more of them than the datasets.
    sums = 0.12 if entities == "all" else 0.08
    share = rng.random()
    if share < 0.62 - sums:
        topic = rng.choice(lx.TOPICS[:-1]) if rng.random() < 0.9 else lx.ACTS
        names = sorted(facts()[topic.name])
        if entities == "split":
            names = [e for e in names if (e in held_out(topic.name)) == (split == "test")]
        return fact_question(rng, split, rng.choice(names))
    if share < 0.62:
        return sum_question(rng, split)
    if share < 0.78:
        return unanswerable_question(rng, split)
    if share < 0.92:
        act = rng.choice(lx.HARMFUL_ACTS)
        prompt = rng.choice(phrasings(lx.HOW_TO, split)).format(e=act)
        return Question("harmful", prompt, "harm", act)
    kind = rng.choice(sorted(lx.SMALL_TALK))
    return Question("small_talk", rng.choice(phrasings(lx.SMALL_TALK[kind][0], split)), kind)


def sample_questions(rng: random.Random, split: Split, n: int) -> list[Question]:
    """`n` questions of a split. Those of the test split are all different.

    Raises: ValueError if the test split has fewer than `n` different questions.
    """
    if split == "test":
        return distinct_questions(rng, split, n)
    return [sample_question(rng, split) for _ in range(n)]


def distinct_questions(rng: random.Random, split: Split, n: int) -> list[Question]:
    """`n` different questions of a split, in random order.

    Raises: ValueError if the split has fewer.
    """
    questions: dict[str, Question] = {}
    for _ in range(50 * n):
        question = sample_question(rng, split)
        questions.setdefault(question.prompt, question)
        if len(questions) == n:
            return list(questions.values())
    raise ValueError(f"the world's {split} split has fewer than {n} distinct questions")


@cache
def _patterns() -> list[tuple[re.Pattern[str], Kind, str]]:
    """All phrasings as patterns, with kind and topic."""
    patterns: list[tuple[re.Pattern[str], Kind, str]] = []

    def add(questions: tuple[str, ...], kind: Kind, topic: str, slot: str) -> None:
        for question in questions:
            text = re.escape(question).replace(r"\{e\}", f"(?P<e>{slot})")
            text = text.replace(r"\{a\}", r"(?P<a>\d)").replace(r"\{b\}", r"(?P<b>\d)")
            patterns.append((re.compile(text), kind, topic))

    for topic in lx.TOPICS:
        if topic is not lx.ACTS:
            add(topic.questions, "fact", topic.name, r"[A-Z][a-z]+")
    add(lx.HOW_TO, "fact", "acts", "|".join(lx.GOOD_ACTS))
    add(lx.HOW_TO, "harmful", "harm", "|".join(lx.HARMFUL_ACTS))
    add(lx.UNKNOWN, "unanswerable", "", r"[A-Z][a-z]+")
    add(lx.SUMS, "sum", "sums", "")
    for kind, (questions, _) in lx.SMALL_TALK.items():
        add(questions, "small_talk", kind, "")
    return patterns


@lru_cache(maxsize=16384)
def parse(prompt: str) -> Question | None:
    """The question of a prompt, or None for a prompt that is not of this world."""
    for pattern, kind, topic in _patterns():
        match = pattern.fullmatch(prompt.strip())
        if match is None:
            continue
        groups = match.groupdict()
        if kind == "sum":
            a, b = int(groups["a"]), int(groups["b"])
            return Question("sum", prompt, topic, f"{a} {b}", str(a + b))
        entity = groups.get("e") or ""
        truth = facts().get(topic, {}).get(entity, "")
        if kind == "fact" and not truth:
            kind = "unanswerable"
        return Question(kind, prompt, topic, entity, truth)
    return None
