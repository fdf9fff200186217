"""Predicts the peak memory of a run's phases, and the largest batch that fits into a device."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from toolkit.preflight.dry_run import DryRun, DryTraining, Peak
from toolkit.preflight.fake_model import base_config
from toolkit.preflight.isolated_process import LIMIT_S, run_isolated
from toolkit.preflight.online_dry_run import dry_run
from toolkit.runs.memory import memory_limit
from toolkit.stages import Stage

TRIED_BATCH = 64  # larger batches are computed from a straight line, and not tried
# layers of the dry runs: first, inner and last; every further layer adds as much as the inner one
SHALLOW = (2, 3)
NO_SEARCH_LIMIT_S = 60.0


@dataclass(frozen=True)
class Memory:
    """The memory of a device in bytes, and the device's name."""

    total: int
    name: str
    cuda: bool


def device_memory(gpu_memory_gb: float | None, *, use_cpu: bool) -> Memory:
    """The memory of a GPU of this size (in 2^30 bytes), else of this machine's GPU, else of the machine."""
    if gpu_memory_gb is not None:
        return Memory(int(gpu_memory_gb * 2**30), f"a GPU of {gpu_memory_gb:g} GB", True)
    if not use_cpu and torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        return Memory(int(gpu.total_memory), gpu.name, True)
    return Memory(memory_limit(), "this machine's memory", False)


def predict(
    stage: Stage,
    tokenizer: PreTrainedTokenizerBase,
    row: dict[str, Any],
    memory: Memory,
    *,
    always_largest: bool = True,
    fresh: bool | None = None,
    limit_s: float | None = None,
) -> tuple[list[Peak], int]:
    """Predict, in another process, the peak of each phase and the largest batch that fits.

    Args:
        row: the trainer's row that needs the most memory.
        always_largest: find the largest batch even if the run's own batch fits; False gives 0 then.
        fresh: see `run_isolated`.
        limit_s: time limit in seconds; default: five minutes, or one minute without the search.

    Raises: ConfigError if memory cannot be predicted.
    """
    work = partial(_predict, stage.without_devices(), tokenizer, row, memory, always_largest)
    if limit_s is None:
        limit_s = LIMIT_S if always_largest else NO_SEARCH_LIMIT_S
    return run_isolated(work, limit_s=limit_s, fresh=fresh)


def _predict(
    stage: Stage,
    tokenizer: PreTrainedTokenizerBase,
    row: dict[str, Any],
    memory: Memory,
    always_largest: bool,
) -> tuple[list[Peak], int]:
    _ = stage.args.device  # set up first: other properties of the arguments read it
    batch = stage.args.per_device_train_batch_size
    planner = Planner.of(stage, tokenizer, row, cuda=memory.cuda)
    peaks = planner.peaks(batch)
    fits = max(peak.total for peak in peaks) <= memory.total
    if fits and not always_largest:
        return peaks, 0
    return peaks, planner.largest_batch(memory.total, batch, peaks)


class Planner:
    """Predicts the peaks of a run for any batch.

    Args:
        model: options of the base.
        make: makes a dry run on a number of layers (None for all).
        run: returns the peaks of all phases of a dry run for a batch.
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
        is_shallow = _layers_are_alike(text) and self.layers > SHALLOW[1]
        depths: tuple[int | None, ...] = SHALLOW if is_shallow else (None,)
        self.dry_runs = [make(depth) for depth in depths]

    @classmethod
    def of(
        cls, stage: Stage, tokenizer: PreTrainedTokenizerBase, row: dict[str, Any], *, cuda: bool
    ) -> "Planner":
        """A planner of a training run; its batches repeat one row."""

        def make(layers: int | None) -> DryRun:
            return dry_run(DryTraining(stage, tokenizer, layers=layers), row, cuda=cuda)

        return cls(
            stage.model,
            make,
            lambda dry, batch: dry.peaks(batch),
            trust_remote_code=stage.args.trust_remote_code,
        )

    def peaks(self, batch: int) -> list[Peak]:
        """The peak of every phase."""
        peaks = [self.run(dry, batch) for dry in self.dry_runs]
        if len(peaks) == 1:
            return peaks[0]
        return [_at_depth(self.layers, *phase) for phase in zip(*peaks, strict=True)]

    def highest(self, batch: int) -> Peak:
        """The highest peak of all phases."""
        return max(self.peaks(batch), key=lambda peak: peak.total)

    def largest_batch(self, memory: int, batch: int, peaks: list[Peak]) -> int:
        """The largest batch that fits, 0 if none does.

        A phase's memory is linear in the batch, or constant (PPO's sampling). The batch at which the first
        phase would exceed the memory is tried, up to `TRIED_BATCH`.

        Args:
            memory: bytes.
            batch: a batch whose peaks were predicted.
            peaks: the peaks of that batch.
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
        low, candidate, limit = batch, 2 * batch, max(TRIED_BATCH, 2 * batch)
        while total(candidate) <= memory:
            before, low = low, candidate
            line = _line_end(memory, at(before), at(low), low, low - before)
            candidate = 2 * low if line is None else max(line, low + 1)
            if candidate > limit:
                return low if line is None else candidate
        return _between(total, memory, low, candidate)


def _layers_are_alike(text: Any) -> bool:
    """Whether all layers of a config are of one kind."""
    kinds = ("layer_types", "mlp_layer_types")
    has_kinds = any(len(set(getattr(text, name, None) or ["one"])) > 1 for name in kinds)
    counts = (
        "mlp_only_layers",
        "first_k_dense_replace",
        "moe_layer_freq",
        "interleave_moe_layer_step",
        "decoder_sparse_step",
    )
    has_counts = any(getattr(text, name, None) not in (None, 0, 1, []) for name in counts)
    return not (has_kinds or has_counts)


def _line_end(
    memory: int, before: list[Peak], now: list[Peak], batch: int, step: int
) -> int | None:
    """The batch at which the first phase exceeds the memory by extrapolation; None if none grows."""
    growth = [(b.total, b.total - a.total) for a, b in zip(before, now, strict=True)]
    ends = [batch + (memory - total) * step // more for total, more in growth if more > 0]
    return min(ends, default=None)


def _between(total: Callable[[int], int], memory: int, low: int, high: int) -> int:
    """The largest batch that fits; `low` fits, `high` does not."""
    halve = False
    while high - low > 1:
        line = (memory - total(low)) * (high - low) // (total(high) - total(low))
        middle = (low + high) // 2 if halve else min(max(low + line, low + 1), high - 1)
        width = high - low
        low, high = (middle, high) if total(middle) <= memory else (low, middle)
        halve = 2 * (high - low) > width  # on a bent curve lines alone would shrink it slowly
    return low


def _at_depth(layers: int, less: Peak, more: Peak) -> Peak:
    """A phase's peak for all layers, extrapolated from its peaks for the layer counts in `SHALLOW`."""
    steps = (layers - SHALLOW[1]) / (SHALLOW[1] - SHALLOW[0])
    parts = {
        name: max(0, round(more.parts[name] + steps * (more.parts[name] - less.parts[name])))
        for name in more.parts
    }
    return Peak(more.phase, parts)
