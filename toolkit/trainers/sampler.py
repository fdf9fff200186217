"""Which prompts a rollout is of."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


class RolloutSampler(Sampler[int]):
    """Prompt indices, a rollout at a time, each rollout repeated once per micro-batch made of it.

    Every pass over the prompts has an order of its own, drawn from `seed` and the pass's number,
    so that a resumed run draws the same prompts.
    """

    def __init__(self, size: int, *, rollouts: int, batch: int, repeat: int, seed: int) -> None:
        self.size, self.rollouts, self.batch, self.repeat = size, rollouts, batch, repeat
        self.seed = seed

    def __len__(self) -> int:
        return self.rollouts * self.batch * self.repeat

    def __iter__(self) -> Iterator[int]:
        drawn = self._endless()
        for _ in range(self.rollouts):
            rows = [next(drawn) for _ in range(self.batch)]
            for _ in range(self.repeat):
                yield from rows

    def _endless(self) -> Iterator[int]:
        number = 0
        while True:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
            yield from torch.randperm(self.size, generator=generator).tolist()
            number += 1
