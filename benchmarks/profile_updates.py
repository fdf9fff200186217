"""Where the time of PPO's updates goes: matrix products, attention, and everything else.

    python benchmarks/profile_updates.py runs/benchmark/world [--value_role head] [--threads 2]

Reads   a case's folder, written by benchmark.py.
Prints  the profiler's table of docs/performance.md, over some micro-batches of the second rollout.
"""

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import ours
from benchmarks.common import markdown_table

MICRO_BATCHES = 8  # profiled, after two micro-batches of warm-up
KINDS = {
    "products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "mkldnn::_linear"),
    "attention": ("aten::_scaled_dot_product",),
}


def kind_of(operation: str) -> str:
    """The key of `KINDS` for an operation of the profiler, or `rest`."""
    names = (kind for kind, starts in KINDS.items() if operation.startswith(starts))
    return next(names, "rest")


class _Profiled(ours.Timed):
    """Profiles some micro-batches of the second rollout, prints the table and exits."""

    step = 0
    profiler: Any = None

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The same step, under the profiler from the second rollout's second micro-batch on."""
        self.step += 1
        first = self.args.micro_steps_per_rollout + 2
        count = min(MICRO_BATCHES, self.args.micro_steps_per_rollout - 2)
        if count <= 0:
            raise SystemExit(
                "the case has only two micro-batches per rollout; profiling needs three"
            )
        if self.step == first:
            self.profiler = profile(activities=[ProfilerActivity.CPU])
            self.profiler.__enter__()
        loss = super().training_step(*args, **kwargs)
        if self.step == first + count - 1:
            self.profiler.__exit__(None, None, None)
            _report(self.profiler, count)
            raise SystemExit
        return loss


def _report(profiler: Any, micro_batches: int) -> None:
    seconds: Counter[str] = Counter()
    for entry in profiler.key_averages():
        seconds[kind_of(entry.key)] += entry.self_cpu_time_total / 1e6
    total = sum(seconds.values())
    print(f"{micro_batches} micro-batches, {torch.get_num_threads()} threads")
    rows = [[k, f"{seconds[k]:.2f}", f"{seconds[k] / total:.2f}"] for k in (*KINDS, "rest")]
    print(markdown_table(["kind", "seconds", "share"], rows))


if __name__ == "__main__":
    options = ours.arguments(__doc__)
    options.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        ours.main(args.folder, Path(folder) / "result.json", args.value_role, _Profiled)
