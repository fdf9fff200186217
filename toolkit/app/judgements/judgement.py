"""A judgement: one prompt, the answers to it, and a labeler's verdict or ranking of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from toolkit.errors import ConfigError

BATTLE, RANKING = "battle", "ranking"
VERDICTS = A, B, TIE, BOTH_BAD, SKIP = ("a", "b", "tie", "both_bad", "skip")
VERDICT_LABELS: Mapping[str, str] = {
    A: "A is better",
    B: "B is better",
    TIE: "Tie",
    BOTH_BAD: "Both bad",
    SKIP: "Skip",
}
FLAGS = ("harmful", "untruthful", "off_task")
LIKERT = range(1, 8)  # InstructGPT's overall quality, 1 to 7
NAMED = "named"  # in a judgement's `sampling`: the labeler saw the checkpoints' names
MAX_REASON = 2000  # characters
MAX_LABELER = 80  # characters

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer and its origin.

    `checkpoint` is an id in the app, `name` a path below the runs folder ("base" for the base),
    `seed` the sampling seed, `adapter` the SHA-256 of the adapter's weights (None for the base).
    """

    checkpoint: str
    name: str
    text: str
    seed: int
    adapter: str | None = None


@dataclass(frozen=True, slots=True)
class Judgement:
    """One battle or ranking; the verdict or the ranks are None until a labeler has judged it.

    `replies` are in display order; the first reply of a battle is A. A battle has a `verdict` from
    `VERDICTS`. A ranking of K replies has `ranks` `(K,)`: 1 is best, equal numbers are ties.
    `likert` `(K,)` and `flags` `(K,)` are optional, one entry per reply. `sampling` and `base` (the
    base's fingerprint) describe how the replies were generated. `time` is UTC, ISO 8601.
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
    def labeler_input(self) -> tuple[Any, ...]:
        """Everything the labeler entered; equal when the same judgement is sent twice."""
        return self.verdict, self.ranks, self.likert, self.flags, self.reason, self.labeler


def complete_judgement(
    pending: Judgement,
    *,
    time: str,
    verdict: object = None,
    ranks: object = None,
    likert: object = None,
    flags: object = None,
    reason: object = "",
    labeler: object = "",
) -> Judgement:
    """Add the labeler's input to a pending judgement. The input is not trusted.

    Raises: ConfigError for an unknown or missing verdict, rank, grade or flag, and for a too long text.
    """
    k = len(pending.replies)
    return replace(
        pending,
        verdict=_verdict(verdict) if pending.kind == BATTLE else None,
        ranks=_ranks(ranks, k) if pending.kind == RANKING else None,
        likert=_likert(likert, k),
        flags=_flags(flags, k),
        reason=_clean(reason, "reason", MAX_REASON, keep_newlines=True),
        labeler=_clean(labeler, "name", MAX_LABELER),
        time=time,
    )


def reveal(judgement: Judgement) -> str:
    """The message after a judgement is stored, which names the checkpoint of each answer."""
    names = [reply.name for reply in judgement.replies]
    if judgement.kind == BATTLE:
        verdict = VERDICT_LABELS[str(judgement.verdict)]
        return f"Saved: {verdict}. A was {names[0]}, B was {names[1]}."
    return f"Saved. Answer {', '.join(f'{i} was {name}' for i, name in enumerate(names, start=1))}."


def parse_order(text: object, k: int) -> tuple[int, ...]:
    """Ranks of answers 1 to `k` from an order such as `3 > 1 = 2 > 4`, best first.

    Returns: `(k,)`; 1 is best, tied answers share a rank, and the next answer gets the following rank.
    Raises: ConfigError unless the order contains each answer exactly once.
    """
    ranks: dict[int, int] = {}
    order = text if isinstance(text, str) else ""
    for rank, group in enumerate(order.split(">"), start=1):
        for word in map(str.strip, group.split("=")):
            number = int(word) if word.isdecimal() and len(word) < 3 else 0
            if not 1 <= number <= k:
                example = " > ".join(map(str, range(1, k + 1)))
                raise ConfigError(
                    f"the order contains {word[:20] or 'nothing'!r} where a number from 1 to {k} is "
                    f"expected; write the answers' numbers, best first, such as {example}, with = "
                    "between answers that are equally good"
                )
            if number in ranks:
                raise ConfigError(f"answer {number} appears twice in the order; remove one")
            ranks[number] = rank
    missing = [str(n) for n in range(1, k + 1) if n not in ranks]
    if missing:
        raise ConfigError(f"the order must contain every answer; missing: {', '.join(missing)}")
    return tuple(ranks[n] for n in range(1, k + 1))


def order_text(ranks: Sequence[int]) -> str:
    """The order that `parse_order` reads as these ranks, such as `3 > 1 = 2`."""
    groups: dict[int, list[str]] = {}
    for number, rank in enumerate(ranks, start=1):
        groups.setdefault(rank, []).append(str(number))
    return " > ".join(" = ".join(groups[rank]) for rank in sorted(groups))


def _verdict(value: object) -> str:
    if not isinstance(value, str) or value not in VERDICTS:
        raise ConfigError(f"a verdict is one of {', '.join(VERDICTS)}, not {str(value)[:40]!r}")
    return value


def _ranks(value: object, k: int) -> tuple[int, ...]:
    expected = f"a ranking needs {k} whole numbers from 1 (the best; required) to {k}"
    ranks = _per_reply(value, k, lambda rank: type(rank) is int and 1 <= rank <= k, expected)
    if min(ranks) != 1:
        raise ConfigError(f"{expected}, not {value!r:.60}")
    return tuple(ranks)


def _likert(value: object, k: int) -> tuple[int | None, ...] | None:
    if value is None:
        return None
    expected = f"quality must be a number from 1 to 7 or None for each of the {k} answers"
    grades = _per_reply(value, k, lambda g: g is None or (type(g) is int and g in LIKERT), expected)
    return tuple(grades) if any(grades) else None


def _flags(value: object, k: int) -> tuple[tuple[str, ...], ...] | None:
    if value is None:
        return None
    expected = f"flags must be a list for each of the {k} answers, of {', '.join(FLAGS)}"
    lists = _per_reply(
        value,
        k,
        lambda one: isinstance(one, list | tuple) and all(f in FLAGS for f in one),
        expected,
    )
    ordered = tuple(tuple(f for f in FLAGS if f in flags) for flags in lists)
    return ordered if any(ordered) else None


def _per_reply(value: object, k: int, valid: Callable[[Any], bool], expected: str) -> list[Any]:
    """The value if it is a list with one valid item per reply; otherwise raises ConfigError."""
    items = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
    if len(items) != k or not all(map(valid, items)):
        raise ConfigError(f"{expected}, not {value!r:.60}")
    return items


def _clean(value: object, name: str, longest: int, *, keep_newlines: bool = False) -> str:
    """Text without control characters and unpaired surrogates."""
    text = value if isinstance(value, str) else ""
    text = text.encode("utf-8", "replace").decode("utf-8")
    kept = "".join(c for c in text if c.isprintable() or (keep_newlines and c == "\n"))
    text = kept.strip()
    if len(text) > longest:
        raise ConfigError(
            f"the {name} has {len(text)} characters, at most {longest} are allowed; shorten it"
        )
    return text
