"""Where the time of PPO's updates goes: matrix products, attention, and everything else.

    python -m benchmarks.shares runs/benchmark/world [--value_role head] [--threads 2]

Reads a case as `benchmarks/benchmark.py` prepares it, runs PyTorch's profiler over some micro-batches of
the second rollout's updates, and prints seconds spent in each kind of operation.
"""

import argparse
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import ours

MICRO_BATCHES = 8  # that are looked at, after two that are not
KINDS = {
    "products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "mkldnn::_linear"),
    "attention": ("aten::_scaled_dot_product",),
}


def kind_of(operation: str) -> str:
    """To which of `KINDS` an operation of the profiler belongs, or `rest`."""
    names = (kind for kind, starts in KINDS.items() if operation.startswith(starts))
    return next(names, "rest")


class _Profiled(ours.Timed):
    """Looks at some micro-batches, and trains no further."""

    seen = 0
    watch: Any = None

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As it is, under the profiler from the second rollout's second micro-batch on."""
        self.seen += 1
        first = self.args.micro_steps_per_rollout + 2
        if self.args.micro_steps_per_rollout <= 2:
            raise SystemExit("the case has no third micro-batch in a rollout to look at")
        if self.seen == first:
            self.watch = profile(activities=[ProfilerActivity.CPU])
            self.watch.__enter__()
        loss = super().training_step(*args, **kwargs)
        last = first + min(MICRO_BATCHES, self.args.micro_steps_per_rollout - 2) - 1
        if self.seen == last:
            self.watch.__exit__(None, None, None)
            _report(self.watch, last - first + 1)
            raise SystemExit
        return loss


def _report(watch: Any, micro_batches: int) -> None:
    spent: Counter[str] = Counter()
    for entry in watch.key_averages():
        spent[kind_of(entry.key)] += entry.self_cpu_time_total / 1e6
    total = sum(spent.values())
    print(f"{micro_batches} micro-batches, {torch.get_num_threads()} threads")
    print("| kind | seconds | share |\n| --- | --- | --- |")
    for kind in (*KINDS, "rest"):
        print(f"| {kind} | {spent[kind]:.2f} | {spent[kind] / total:.2f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the case, as `prepare` wrote it")
    parser.add_argument("--value_role", default="adapter", choices=["adapter", "head"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as nowhere:
        ours.main(given.folder, Path(nowhere) / "result.json", given.value_role, _Profiled)
