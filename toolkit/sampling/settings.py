"""How an answer is asked for; the page reads this before torch is there."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sampling:
    """How to sample; temperature 0 is greedy."""

    max_new_tokens: int = 64
    temperature: float = 1.0


@dataclass(frozen=True)
class Drawing(Sampling):
    """`Sampling` with what only a reader of answers wants; training draws from the whole of π.

    Attributes:
        top_k: draw among this many likeliest tokens; 0 is all.
        top_p: draw among the likeliest tokens that together hold this probability; 1 is all.
        beams: above 1, the likeliest answer that so many parallel searches find; nothing is drawn.
        seed: where a row's own generator starts.
    """

    top_k: int = 0
    top_p: float = 1.0
    beams: int = 1
    seed: int = 0
