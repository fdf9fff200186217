"""The changes of one answer through training, per token: log-ratio to the reference, value and entropy."""

import difflib
import math
import re
from dataclasses import dataclass

LOG_RATIO, VALUE, ENTROPY = "log_ratio", "value", "entropy"


@dataclass(frozen=True)
class Alternative:
    """A candidate token and its probability."""

    text: str
    probability: float


@dataclass(frozen=True)
class Token:
    """One token of the answer. Log-probabilities and entropy are in nats, at temperature 1.

    `policy` and `reference` are the most likely tokens at this position. `value` is V(s_t) before this
    token is sampled. Without a value role or a reference, their fields are None or empty.
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
        """log π − log π_ref: above 0 if the token is more probable for the checkpoint."""
        return None if self.ref_logprob is None else self.logprob - self.ref_logprob


@dataclass(frozen=True)
class Changes:
    """The tokens of an answer, the names of checkpoint and reference, and notes on missing numbers."""

    name: str
    reference: str
    tokens: tuple[Token, ...]
    notes: tuple[str, ...] = ()

    def numbers(self, kind: str) -> list[float | None]:
        """The `log_ratio`, `value` or `entropy` of each token."""
        return [getattr(token, kind) for token in self.tokens]


def scaled(numbers: list[float | None]) -> tuple[list[float | None], float]:
    """The numbers scaled to [−1, 1] by their largest absolute value, and that value."""
    known = [abs(n) for n in numbers if n is not None and math.isfinite(n)]
    largest = max(known, default=0.0)
    if largest == 0:
        return [None if n is None else 0.0 for n in numbers], 0.0
    return [None if n is None else n / largest for n in numbers], largest


def text_diff(first: str, second: str) -> list[tuple[str, str | None]]:
    """Merge two texts word by word: `-` marks words of the first text, `+` of the second, None of both."""
    a, b = (re.findall(r"\s+|\w+|[^\w\s]", text) for text in (first, second))
    parts: list[tuple[str, str | None]] = []
    for kind, i, j, k, m in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if kind == "equal":
            parts.append(("".join(a[i:j]), None))
            continue
        if j > i:
            parts.append(("".join(a[i:j]), "-"))
        if m > k:
            parts.append(("".join(b[k:m]), "+"))
    return parts
