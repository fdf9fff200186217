"""What training changed in one answer, token by token: against the reference, in value, in certainty."""

import difflib
import math
import re
from dataclasses import dataclass

LOG_RATIO, VALUE, ENTROPY = "log_ratio", "value", "entropy"


@dataclass(frozen=True)
class Alternative:
    """A token that could stand in a place, and how probable it is there."""

    text: str
    probability: float


@dataclass(frozen=True)
class Token:
    """One token of the answer. Log-probabilities and entropy in nats, at temperature 1.

    `value` is V(s_t), what the critic expects before this token is chosen, None without a critic;
    what concerns the reference is None where there is none.
    """

    text: str
    logprob: float
    entropy: float
    policy: tuple[Alternative, ...]
    ref_logprob: float | None = None
    reference: tuple[Alternative, ...] = ()
    value: float | None = None

    @property
    def log_ratio(self) -> float | None:
        """log π/π_ref: above 0 where the checkpoint likes the token better than the reference."""
        return None if self.ref_logprob is None else self.logprob - self.ref_logprob


@dataclass(frozen=True)
class Changes:
    """An answer's tokens, whose they are, and notes on what is not known."""

    name: str
    reference: str
    tokens: tuple[Token, ...]
    notes: tuple[str, ...] = ()

    def numbers(self, what: str) -> list[float | None]:
        """One of `log_ratio`, `value`, `entropy` for each token."""
        return [getattr(token, what) for token in self.tokens]


def scaled(numbers: list[float | None]) -> tuple[list[float | None], float]:
    """Numbers divided by the largest distance from zero, and that distance: colours want [−1, 1]."""
    known = [abs(n) for n in numbers if n is not None and math.isfinite(n)]
    largest = max(known, default=0.0)
    if largest == 0:
        return [None if n is None else 0.0 for n in numbers], 0.0
    return [None if n is None else n / largest for n in numbers], largest


def text_diff(first: str, second: str) -> list[tuple[str, str | None]]:
    """Both texts in one, word by word: `-` only in the first, `+` only in the second, None in both."""
    a, b = (re.findall(r"\s+|\w+|[^\w\s]", text) for text in (first, second))
    found: list[tuple[str, str | None]] = []
    for kind, i, j, k, m in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if kind == "equal":
            found.append(("".join(a[i:j]), None))
            continue
        if j > i:
            found.append(("".join(a[i:j]), "-"))
        if m > k:
            found.append(("".join(b[k:m]), "+"))
    return found
