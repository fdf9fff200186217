"""What a side of the benchmark measures of itself: memory added since a moment, seconds per phase.

Imported by both sides, also where `toolkit` is not installed: standard library and torch only.
"""

import json
import time
from pathlib import Path

import torch

PHASES = ("generate", "score", "update")
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Meter:
    """Call `start` after the imports and before any model is loaded."""

    def __init__(self) -> None:
        self.at_start = 0.0
        self.seconds: list[dict[str, float]] = []
        self.moments: dict[str, float] = {}

    def start(self) -> None:
        """Count memory from here on."""
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        _CLEAR.write_text("5")  # the peak so far was that of the imports
        self.at_start = _megabytes("VmRSS")

    def mark(self, phase: str) -> None:
        """A phase of the rollout begins (the first call of a phase counts)."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.moments.setdefault(phase, time.perf_counter())

    def end_rollout(self) -> None:
        """The last phase of the rollout ends, and the next rollout begins."""
        self.mark("end")
        times = [self.moments[p] for p in (*PHASES, "end")]
        self.seconds.append(
            {p: b - a for p, a, b in zip(PHASES, times[:-1], times[1:], strict=True)}
        )
        self.moments = {}

    def write(self, file: Path, *, episodes: int, tokens: list[int], warm_up: int = 1) -> None:
        """Means over the rollouts after the first.

        Args:
            file: JSON.
            episodes: per rollout.
            tokens: of the completions, of every rollout together.
        """
        timed = self.seconds[warm_up:]
        means = {p: sum(s[p] for s in timed) / len(timed) for p in PHASES}
        if torch.cuda.is_available():
            added = torch.cuda.max_memory_allocated() / 2**20
        else:
            added = _megabytes("VmHWM") - self.at_start
        found = {
            "episodes_per_s": episodes / sum(means.values()),
            "peak_memory_mb": added,
            "seconds": means,
            "mean_completion": sum(tokens) / len(tokens),
        }
        file.write_text(json.dumps(found), encoding="utf-8")


def _megabytes(field: str) -> float:
    for line in _STATUS.read_text(encoding="utf-8").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise OSError(f"{_STATUS}: no {field}")
