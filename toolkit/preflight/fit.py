"""Will it fit: the predicted peak of a run's phases, the device's memory, the largest batch."""

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from toolkit.preflight.phantom import base_config
from toolkit.preflight.ppo_rehearsal import PPORehearsal
from toolkit.preflight.rehearsal import Peak, Rehearsal

MOST_TRIED = 64  # a larger batch is what a straight line says, and not tried
SHALLOW = (3, 4)  # layers that are traced: first, inner, last; all others cost what the fourth adds
_CGROUP = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class Memory:
    """What there is to fit into: bytes, and what they are of."""

    total: int
    of: str
    cuda: bool


def device_memory(card_memory_gb: float | None, *, use_cpu: bool) -> Memory:
    """The card that was named, the one that is there, or the machine's memory.

    Args:
        card_memory_gb: of a card that need not be there, in units of 2^30 bytes.
        use_cpu: the run shall not use the card.
    """
    if card_memory_gb is not None:
        return Memory(int(card_memory_gb * 2**30), f"a card of {card_memory_gb:g} GB", True)
    if not use_cpu and torch.cuda.is_available():
        found = torch.cuda.get_device_properties(0)
        return Memory(int(found.total_memory), found.name, True)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # no limit
        total = min(total, int(_CGROUP.read_text(encoding="utf-8")))
    return Memory(total, "this machine's memory", False)


class Planner:
    """Predicted peaks of a run at any batch.

    Args:
        model: which base.
        make: a rehearsal on so many layers (None for all).
        run: all phases' peaks of a rehearsal at a batch.
    """

    def __init__(
        self,
        model: Any,
        make: Callable[[int | None], Any],
        run: Callable[[Any, int], list[Peak]],
        *,
        trust_remote_code: bool = False,
    ) -> None:
        text = base_config(model, trust_remote_code=trust_remote_code).get_text_config()
        self.layers, self.run = int(text.num_hidden_layers), run
        alike = len(set(getattr(text, "layer_types", None) or ["one"])) == 1
        depths: tuple[int | None, ...] = SHALLOW if alike and self.layers > SHALLOW[1] else (None,)
        self.rehearsals = [make(depth) for depth in depths]

    def peaks(self, batch: int) -> list[Peak]:
        """Every phase's peak."""
        found = [self.run(rehearsal, batch) for rehearsal in self.rehearsals]
        if len(found) == 1:
            return found[0]
        return [_deeper(a, b, self.layers) for a, b in zip(*found, strict=True)]

    def highest(self, batch: int) -> Peak:
        """The highest of them."""
        return max(self.peaks(batch), key=lambda peak: peak.total)

    def largest_batch(self, memory: int, batch: int, peaks: list[Peak]) -> int:
        """The largest batch that fits, 0 if none does.

        Each phase is taken for a straight line in the batch: PPO's sampling has none of it. What the
        lines say is tried, unless it is far more than anybody asked for.

        Args:
            memory: bytes.
            batch: one that was predicted.
            peaks: of it, every phase's.
        """
        one = self.peaks(1) if batch > 1 else peaks
        if max(peak.total for peak in one) > memory:
            return 0
        other, step = (peaks, batch - 1) if batch > 1 else (self.peaks(2), 1)
        lines = [(a.total, (b.total - a.total) / step) for a, b in zip(one, other, strict=True)]
        rising = [(start, slope) for start, slope in lines if slope > 0]
        if not rising:
            return batch
        found = min(1 + int((memory - start) // slope) for start, slope in rising)
        if found > max(MOST_TRIED, 2 * batch):
            return found
        low, least = batch, max(peak.total for peak in peaks)
        if least > memory:
            low, least = 1, max(peak.total for peak in one)
        most = self.highest(found).total if found > low else least
        return found if most <= memory else self._between(memory, low, least, found, most)

    def _between(self, memory: int, low: int, least: int, high: int, most: int) -> int:
        """The largest batch that fits between one that does and one that does not, and their peaks."""
        while high - low > 1:
            line = low + int((memory - least) * (high - low) / (most - least))
            tried = min(max(line, low + 1), high - 1)
            total = self.highest(tried).total
            if total <= memory:
                low, least = tried, total
            else:
                high, most = tried, total
        return low


def _deeper(one: Peak, two: Peak, layers: int) -> Peak:
    """A phase's peak on all layers, from those on `SHALLOW` numbers of them."""
    more = (layers - SHALLOW[1]) / (SHALLOW[1] - SHALLOW[0])
    parts = {
        name: max(0, round(two.parts[name] + more * (two.parts[name] - one.parts[name])))
        for name in two.parts
    }
    return Peak(two.phase, parts)


def plan_trainer(
    recipe: str,
    training: Any,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    row: dict[str, Any],
    *,
    parent: str | None,
    cuda: bool,
) -> Planner:
    """Of SFT, reward or DPO, with batches of the row that needs the most."""
    from datasets import Dataset

    def make(layers: int | None) -> Rehearsal:
        return Rehearsal(
            recipe,
            training,
            model,
            Dataset.from_list([row]),
            tokenizer,
            parent=parent,
            cuda=cuda,
            layers=layers,
        )

    return Planner(
        model,
        make,
        lambda dry, batch: [dry.step(row, batch)],
        trust_remote_code=training.trust_remote_code,
    )


def plan_ppo(
    training: Any,
    model: Any,
    prompt: int,
    *,
    parent: str | None,
    reward_model: Sequence[str | None],
    reference: bool,
    ptx: int,
    cuda: bool,
) -> Planner:
    """Of PPO, with prompts of so many tokens."""

    def make(layers: int | None) -> PPORehearsal:
        return PPORehearsal(
            training,
            model,
            parent=parent,
            reward_model=reward_model,
            reference=reference,
            cuda=cuda,
            layers=layers,
        )

    return Planner(
        model,
        make,
        lambda dry, batch: dry.peaks(prompt, batch, ptx=ptx),
        trust_remote_code=training.trust_remote_code,
    )
