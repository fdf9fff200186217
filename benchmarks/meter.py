"""Seconds per phase and the memory that a process adds: the measurements of each side of the benchmark.

The environment of TRL 1.12 has no `toolkit`, so this file imports the standard library and torch only.
"""

import json
import time
from pathlib import Path

import torch

PHASES = ("generate", "score", "update")


def process_megabytes(field: str) -> float:
    """A field of this process's memory: `VmRSS` is the current size, `VmHWM` the peak."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no field {field}")


def reset_peak() -> None:
    """Let `VmHWM` and CUDA's peak start again at the current size."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


class Meter:
    """Measures rollouts of three phases. Create it after the imports and before a model is loaded."""

    def __init__(self) -> None:
        reset_peak()
        self.start_megabytes = process_megabytes("VmRSS")
        self.seconds: list[dict[str, float]] = []
        self.moments: dict[str, float] = {}

    def mark(self, phase: str) -> None:
        """A phase of the rollout starts. Only the first call for a phase counts."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.moments.setdefault(phase, time.perf_counter())

    def end_rollout(self) -> None:
        """The last phase ends, and the next rollout starts."""
        self.mark("end")
        times = [self.moments[p] for p in (*PHASES, "end")]
        self.seconds.append(
            {p: b - a for p, a, b in zip(PHASES, times[:-1], times[1:], strict=True)}
        )
        self.moments = {}

    def write(self, file: Path, *, episodes: int, tokens: list[int], warm_up: int = 1) -> None:
        """Write means over the rollouts after the warm-up.

        Args:
            file: JSON output.
            episodes: episodes per rollout.
            tokens: length of each completion of all rollouts.
        """
        timed = self.seconds[warm_up:]
        means = {p: sum(s[p] for s in timed) / len(timed) for p in PHASES}
        if torch.cuda.is_available():
            added = torch.cuda.max_memory_allocated() / 2**20
        else:
            added = process_megabytes("VmHWM") - self.start_megabytes
        numbers = {
            "episodes_per_s": episodes / sum(means.values()),
            "peak_memory_mb": added,
            "seconds": means,
            "mean_completion": sum(tokens) / len(tokens),
        }
        file.write_text(json.dumps(numbers), encoding="utf-8")
