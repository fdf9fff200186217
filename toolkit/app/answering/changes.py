"""The changes of one answer through training, per token: log-ratio to the reference, value and entropy."""

import math
import re
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

MAX_WORDS = 1000  # of each text in `text_diff`, whose work is the product of both numbers
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


def text_diff(first: str, second: str) -> tuple[list[tuple[str, str | None]], bool]:
    """Merge two texts word by word, with as many common words as possible.

    Returns: the parts: `-` marks words of the first text, `+` of the second, None of both; and whether a
        text was cut to its first `MAX_WORDS` words.
    """
    texts = [re.findall(r"\s*(?:\w+|[^\w\s])|\s+", text) for text in (first, second)]
    a, b = (words[:MAX_WORDS] for words in texts)
    # common[i][j]: the length of the longest common subsequence of a[i:] and b[j:]
    common = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i in reversed(range(len(a))):
        row, below = common[i], common[i + 1]
        for j in reversed(range(len(b))):
            row[j] = below[j + 1] + 1 if a[i] == b[j] else max(below[j], row[j + 1])
    words: list[tuple[str, str | None]] = []
    i = j = 0
    while i < len(a) or j < len(b):
        if i < len(a) and j < len(b) and a[i] == b[j]:
            words.append((a[i], None))
            i, j = i + 1, j + 1
        elif i < len(a) and (j == len(b) or common[i + 1][j] >= common[i][j + 1]):
            words.append((a[i], "-"))
            i += 1
        else:
            words.append((b[j], "+"))
            j += 1
    parts = [("".join(w for w, _ in run), kind) for kind, run in groupby(words, itemgetter(1))]
    return parts, any(len(words) > MAX_WORDS for words in texts)
