"""What one checkpoint answered, whole or so far."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Answer:
    """What one checkpoint answered.

    `score` is the reward model's scalar at the last token; `z` is how many standard deviations that
    is above the mean of `z_of`; `kl` is Σ over the completion's tokens of log π − log π_ref, in
    nats, one sample's estimate that may be negative; `reference` is the name of π_ref. `tokens`
    counts the end token too, and `ids` are those tokens. `speed` is in tokens per second, from the
    prompt's first token on. `notes` say why a number is missing, and `problem` why there is no
    answer at all. With `done` False more will come. `adapter` is the sha256 of the weights file that
    the answer was made with, None for the base.
    """

    checkpoint: str
    name: str
    text: str = ""
    tokens: int = 0
    ended: bool = False
    score: float | None = None
    kl: float | None = None
    reference: str = ""
    notes: tuple[str, ...] = ()
    problem: str | None = None
    z: float | None = None
    z_of: str = ""
    done: bool = True
    ids: tuple[int, ...] = field(default=(), repr=False)
    speed: float | None = field(default=None, compare=False)
    adapter: str | None = field(default=None, repr=False)
