"""One judgement: what was asked and answered, and what a labeler said of the answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from toolkit.errors import ConfigError

BATTLE, RANKING = "battle", "ranking"
VERDICTS = A, B, TIE, BOTH_BAD, SKIP = ("a", "b", "tie", "both_bad", "skip")
FLAGS = ("harmful", "untruthful", "off_task")
LIKERT = range(1, 8)  # InstructGPT's overall quality, 1 to 7
MAX_REASON = 2000
MAX_LABELER = 80

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer and where it comes from.

    `checkpoint` is the id that the app gave the checkpoint, `name` its place below the runs folder
    ("base" for the base), `seed` what it was sampled with, `adapter` the SHA-256 of the adapter's
    weights file, None for the base.
    """

    checkpoint: str
    name: str
    text: str
    seed: int
    adapter: str | None = None


@dataclass(frozen=True, slots=True)
class Judgement:
    """One battle or ranking, with its verdict once there is one.

    `replies` are in the order in which they were shown: of a battle the first is A. A battle has a
    `verdict` of `VERDICTS`; a ranking of K replies has `ranks` `(K,)`, 1 is best, equal numbers are
    ties. `likert` `(K,)` and `flags` `(K,)` are optional, per reply. `sampling` and `base` (the
    base's fingerprint) say how the replies were made; `time` is UTC, ISO 8601.
    """

    id: str
    kind: str
    prompt: tuple[Message, ...]
    replies: tuple[Reply, ...]
    sampling: Mapping[str, float]
    base: Mapping[str, str]
    verdict: str | None = None
    ranks: tuple[int, ...] | None = None
    likert: tuple[int | None, ...] | None = None
    flags: tuple[tuple[str, ...], ...] | None = None
    reason: str = ""
    labeler: str = ""
    time: str = ""

    @property
    def said(self) -> tuple[Any, ...]:
        """What the labeler said: equal for the same judgement sent twice."""
        return self.verdict, self.ranks, self.likert, self.flags, self.reason, self.labeler


def judged(
    asked: Judgement,
    *,
    verdict: object = None,
    ranks: object = None,
    likert: object = None,
    flags: object = None,
    reason: object = "",
    labeler: object = "",
    time: str,
) -> Judgement:
    """A judgement with what the labeler said of it, checked whatever the page let through.

    Raises: ConfigError for a verdict, rank, grade or flag that does not exist or is missing.
    """
    k = len(asked.replies)
    return replace(
        asked,
        verdict=_verdict(verdict) if asked.kind == BATTLE else None,
        ranks=_ranks(ranks, k) if asked.kind == RANKING else None,
        likert=_likert(likert, k),
        flags=_flags(flags, k),
        reason=_line(reason, MAX_REASON, keep_lines=True),
        labeler=_line(labeler, MAX_LABELER),
        time=time,
    )


def parse_order(text: object, k: int) -> tuple[int, ...]:
    """Ranks of answers 1 to `k` from an order such as `3 > 1 = 2 > 4`, best first.

    Returns: `(k,)`, 1 is best; tied answers share a number and the next gets the following one.
    Raises: ConfigError unless each answer stands in it exactly once.
    """
    ranks: dict[int, int] = {}
    order = text if isinstance(text, str) else ""
    for rank, tied in enumerate(order.split(">"), start=1):
        for word in tied.split("="):
            number = int(word) if word.strip().isdecimal() and len(word.strip()) < 3 else 0
            if not 1 <= number <= k:
                example = " > ".join(map(str, range(1, k + 1)))
                got = word.strip()[:20] or "nothing"
                raise ConfigError(
                    f"an order is the answers' numbers, best first, like {example}, with = between "
                    f"answers that are equally good; it has {got!r} where a number from 1 to {k} "
                    "should be"
                )
            if number in ranks:
                raise ConfigError(f"answer {number} stands twice in the order")
            ranks[number] = rank
    missing = [str(n) for n in range(1, k + 1) if n not in ranks]
    if missing:
        raise ConfigError(f"put every answer in the order: {', '.join(missing)} missing")
    return tuple(ranks[n] for n in range(1, k + 1))


def _verdict(value: object) -> str:
    if not isinstance(value, str) or value not in VERDICTS:
        raise ConfigError(f"a verdict is one of {', '.join(VERDICTS)}, not {str(value)[:40]!r}")
    return value


def _ranks(value: object, k: int) -> tuple[int, ...]:
    found = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
    whole = all(isinstance(r, int) and not isinstance(r, bool) and 1 <= r <= k for r in found)
    if len(found) != k or not whole or min(found) != 1:
        raise ConfigError(f"a ranking needs {k} whole numbers from 1 (the best), not {value!r:.60}")
    return tuple(found)


def _likert(value: object, k: int) -> tuple[int | None, ...] | None:
    if value is None:
        return None
    grades = list(value) if isinstance(value, Sequence) else []
    if len(grades) != k or not all(g is None or (type(g) is int and g in LIKERT) for g in grades):
        raise ConfigError(
            f"quality is a number from 1 to 7 or none for each of the {k} answers, not {value!r:.60}"
        )
    return None if all(g is None for g in grades) else tuple(grades)


def _flags(value: object, k: int) -> tuple[tuple[str, ...], ...] | None:
    if value is None:
        return None
    given = list(value) if isinstance(value, Sequence) else []
    lists = all(isinstance(one, list | tuple) for one in given)
    if len(given) != k or not lists or any(f not in FLAGS for one in given for f in one):
        raise ConfigError(f"flags are of {', '.join(FLAGS)}, a list for each of the {k} answers")
    found = tuple(tuple(f for f in FLAGS if f in one) for one in given)
    return found if any(found) else None


def _line(value: object, longest: int, *, keep_lines: bool = False) -> str:
    """Text without control characters or half surrogates, cut to a length."""
    text = value if isinstance(value, str) else ""
    text = text.encode("utf-8", "replace").decode("utf-8")
    kept = "".join(c for c in text if c.isprintable() or (keep_lines and c == "\n"))
    return kept.strip()[:longest]
