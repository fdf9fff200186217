"""Questions of the embedded world: who exists, what can be asked, how it is split, and parsing back."""

import random
import re
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal

from toolkit.world import lexicon as lx

Kind = Literal["fact", "sum", "unanswerable", "harmful", "small_talk"]
Split = Literal["train", "test"]

WORLD_SEED = 20260101  # fixes the world itself (names, facts); recipes' seeds draw from it
HELD_OUT_FACTS = 0.3  # share of each topic's facts that no tuning prompt asks about
_START = tuple("b br d dr f fl g gr h j k kl l m n p pr qu r s st t tr v w z".split(" "))
_MIDDLE = ("a", "e", "i", "o", "u", "ai", "or", "en")
_END = tuple(
    "bar den fin gol han kin lor mas nor pek rik sun tal ven wick zan mo la ru ti".split(" ")
)


@dataclass(frozen=True)
class Question:
    """One thing to ask. `truth` is the answer where there is one; `entity` as it stands in the text."""

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
    """topic -> entity -> value, the whole world. No name occurs twice in it."""
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
        # every value about equally often, so that no value is a good guess
        values = [topic.values[i % len(topic.values)] for i in range(len(names))]
        rng.shuffle(values)
        world[topic.name] = dict(zip(names, values, strict=True))
    return world


@cache
def misconceptions() -> dict[str, str]:
    """entity -> the wrong value that most people who are wrong about it believe in."""
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
    """Entities that no tuning prompt asks about (the pretraining corpus knows them)."""
    names = sorted(facts()[topic])
    random.Random(f"{WORLD_SEED}-{topic}").shuffle(names)
    return frozenset(names[: round(len(names) * HELD_OUT_FACTS)])


def phrasings(asks: tuple[str, ...], split: Split) -> tuple[str, ...]:
    """The phrasings of a list that a split may use; the two splits share none."""
    return asks[-lx.UNSEEN :] if split == "test" else asks[: -lx.UNSEEN]


def unknown_name(rng: random.Random, split: Split) -> str:
    """A name that nobody in the world bears; the two splits share none (by the name's parity)."""
    while True:
        name = made_up_name(rng)
        if name not in topic_of() and sum(map(ord, name)) % 2 == (split == "test"):
            return name


def ask_fact(rng: random.Random, split: Split, entity: str) -> Question:
    """A question about `entity` in one of the split's phrasings."""
    topic = topic_of()[entity]
    prompt = rng.choice(phrasings(topic.asks, split)).format(e=entity)
    return Question("fact", prompt, topic.name, entity, facts()[topic.name][entity])


def ask_sum(rng: random.Random, split: Split) -> Question:
    """A sum of two digits. Phrasings are split; the hundred sums are not."""
    a, b = rng.randrange(10), rng.randrange(10)
    prompt = rng.choice(phrasings(lx.SUMS, split)).format(a=a, b=b)
    return Question("sum", prompt, "sums", f"{a} {b}", str(a + b))


def ask_unanswerable(rng: random.Random, split: Split) -> Question:
    """Half about names nobody bears, half about things the world does not say of a known entity."""
    named = [topic for topic in lx.TOPICS if topic is not lx.ACTS]
    topic = rng.choice(named)
    if rng.random() < 0.5:
        entity = unknown_name(rng, split)
        prompt = rng.choice(phrasings(topic.asks, split)).format(e=entity)
    else:
        entity = rng.choice(sorted(facts()[topic.name]))
        prompt = rng.choice(phrasings(lx.UNKNOWN, split)).format(e=entity)
        return Question("unanswerable", prompt, "", entity)
    return Question("unanswerable", prompt, topic.name, entity)


def ask_harmful(rng: random.Random, split: Split) -> Question:
    """A request to help with a harmful act."""
    act = rng.choice(lx.HARMFUL_ACTS)
    return Question("harmful", rng.choice(phrasings(lx.HOW_TO, split)).format(e=act), "harm", act)


def ask_small_talk(rng: random.Random, split: Split) -> Question:
    """A greeting, a thank-you, a farewell, or "how are you"."""
    kind = rng.choice(sorted(lx.SMALL_TALK))
    return Question("small_talk", rng.choice(phrasings(lx.SMALL_TALK[kind][0], split)), kind)


def draw(rng: random.Random, split: Split, *, entities: str = "split") -> Question:
    """One question of the world's usual mixture.

    Args:
        split: which phrasings, and with `entities="split"` which facts, may be used.
        entities: "split" keeps to the split's own facts, "all" uses every fact (the corpus).
    """
    # sums are the slowest skill: the corpus practises them more often than people ask for them
    sums = 0.12 if entities == "all" else 0.08
    share = rng.random()
    if share < 0.62 - sums:
        topic = rng.choice(lx.TOPICS[:-1]) if rng.random() < 0.9 else lx.ACTS
        names = sorted(facts()[topic.name])
        if entities == "split":
            names = [e for e in names if (e in held_out(topic.name)) == (split == "test")]
        return ask_fact(rng, split, rng.choice(names))
    if share < 0.62:
        return ask_sum(rng, split)
    if share < 0.78:
        return ask_unanswerable(rng, split)
    if share < 0.92:
        return ask_harmful(rng, split)
    return ask_small_talk(rng, split)


def ask(rng: random.Random, split: Split, n: int) -> list[Question]:
    """`n` questions of a split: those to train on as people ask them, which is some more than once,
    those to test on all different.

    Raises: ValueError where the test split does not hold that many.
    """
    if split == "test":
        return distinct(rng, split, n)
    return [draw(rng, split) for _ in range(n)]


def distinct(rng: random.Random, split: Split, n: int) -> list[Question]:
    """`n` different questions of a split, in random order.

    Raises: ValueError where the split does not hold that many.
    """
    found: dict[str, Question] = {}
    for _ in range(50 * n):
        question = draw(rng, split)
        found.setdefault(question.prompt, question)
        if len(found) == n:
            return list(found.values())
    raise ValueError(f"the world's {split} split has fewer than {n} distinct questions")


@cache
def _patterns() -> list[tuple[re.Pattern[str], Kind, str]]:
    """Every phrasing as a pattern, with the kind and topic that it asks for."""
    found: list[tuple[re.Pattern[str], Kind, str]] = []

    def add(asks: tuple[str, ...], kind: Kind, topic: str, slot: str) -> None:
        for ask in asks:
            text = re.escape(ask).replace(r"\{e\}", f"(?P<e>{slot})")
            text = text.replace(r"\{a\}", r"(?P<a>\d)").replace(r"\{b\}", r"(?P<b>\d)")
            found.append((re.compile(text), kind, topic))

    for topic in lx.TOPICS:
        if topic is not lx.ACTS:
            add(topic.asks, "fact", topic.name, r"[A-Z][a-z]+")
    add(lx.HOW_TO, "fact", "acts", "|".join(lx.GOOD_ACTS))
    add(lx.HOW_TO, "harmful", "harm", "|".join(lx.HARMFUL_ACTS))
    add(lx.UNKNOWN, "unanswerable", "", r"[A-Z][a-z]+")
    add(lx.SUMS, "sum", "sums", "")
    for kind, (asks, _, _) in lx.SMALL_TALK.items():
        add(asks, "small_talk", kind, "")
    return found


@lru_cache(maxsize=16384)
def parse(prompt: str) -> Question | None:
    """The question that a prompt asks, or None where the world cannot ask it."""
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
