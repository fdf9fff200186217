"""Will it fit: the predicted peak of a run's phases, the device's memory, the largest batch."""

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from toolkit.preflight.dry_run import Peak, Rehearsal
from toolkit.preflight.fake_model import base_config
from toolkit.preflight.ppo_dry_run import PPORehearsal

MOST_TRIED = 64  # a larger batch is what a straight line says, and not tried
SHALLOW = (3, 4)  # layers that are traced: first, inner, last; all others cost what the fourth adds
_CGROUP = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class Memory:
    """What there is to fit into: bytes, and what they are of."""

    total: int
    of: str
    cuda: bool


def device_memory(gpu_memory_gb: float | None, *, use_cpu: bool) -> Memory:
    """The card that was named, the one that is there, or the machine's memory.

    Args:
        gpu_memory_gb: of a card that need not be there, in units of 2^30 bytes.
        use_cpu: the run shall not use the card.
    """
    if gpu_memory_gb is not None:
        return Memory(int(gpu_memory_gb * 2**30), f"a card of {gpu_memory_gb:g} GB", True)
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
        alike = _alike(text)
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

        Each phase is taken for a straight line in the batch, or for none where it has not grown:
        PPO's sampling. What the lines say is tried, unless it is far more than anybody asked for.

        Args:
            memory: bytes.
            batch: one that was predicted.
            peaks: of it, every phase's.
        """
        known = {batch: peaks}

        def at(size: int) -> list[Peak]:
            if size not in known:
                known[size] = self.peaks(size)
            return known[size]

        def total(size: int) -> int:
            return max(peak.total for peak in at(size))

        if total(batch) > memory:
            return _between(total, memory, 1, batch) if batch > 1 and total(1) <= memory else 0
        before, low = (1, batch) if batch > 1 else (1, 2)
        if total(low) > memory:
            return 1
        most = max(MOST_TRIED, 2 * batch)
        while True:
            line = _reach(memory, at(before), at(low), low, low - before)
            tried = 2 * low if line is None else max(line, low + 1)
            if tried > most:
                return low if line is None else tried
            if total(tried) > memory:
                return _between(total, memory, low, tried)
            before, low = low, tried


def _alike(text: Any) -> bool:
    """Whether a config's layers are all of one kind."""
    kinds = ("layer_types", "mlp_layer_types")
    several = any(len(set(getattr(text, name, None) or ["one"])) > 1 for name in kinds)
    counts = (
        "mlp_only_layers",
        "first_k_dense_replace",
        "moe_layer_freq",
        "interleave_moe_layer_step",
        "decoder_sparse_step",
    )
    differ = any(getattr(text, name, None) not in (None, 0, 1, []) for name in counts)
    return not (several or differ)


def _reach(memory: int, before: list[Peak], now: list[Peak], batch: int, step: int) -> int | None:
    """The batch at which the first phase's line meets the memory; None where none grows."""
    grown = [(b.total, b.total - a.total) for a, b in zip(before, now, strict=True)]
    found = [batch + (memory - total) * step // more for total, more in grown if more > 0]
    return min(found, default=None)


def _between(total: Callable[[int], int], memory: int, low: int, high: int) -> int:
    """The largest batch that fits, between one that does and one that does not."""
    halve = False
    while high - low > 1:
        line = (memory - total(low)) * (high - low) // (total(high) - total(low))
        tried = (low + high) // 2 if halve else min(max(low + line, low + 1), high - 1)
        was = high - low
        low, high = (tried, high) if total(tried) <= memory else (low, tried)
        halve = 2 * (high - low) > was  # a bent curve: the line alone may go step by step
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
