"""Rates of a float32 product by PyTorch's own choice of library and by oneDNN, in turn.

python -m toolkit.benchmark.products [--threads 1]
"""

import argparse
import time
from statistics import median

import torch
from torch import Tensor

from toolkit.models.products import onednn_pays_from

# (rows, in, out) of a micro-batch's products in `world`, `fixed-5m`, `fixed-129m`
SHAPES = ((1250, 192, 192), (1250, 192, 512), (640, 256, 608), (320, 768, 1856), (190, 768, 32_000))
REPEATS = 31


def rates(rows: int, inner: int, outer: int) -> tuple[float, float]:
    """Median billions of operations per second: PyTorch's `linear`, then oneDNN's."""
    left, right = torch.randn(rows, inner), torch.randn(outer, inner)

    def pytorchs() -> Tensor:
        return torch.nn.functional.linear(left, right)

    def onednns() -> Tensor:
        found: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")
        return found

    taken: list[list[float]] = [[], []]
    for _ in range(REPEATS):
        for times, product in zip(taken, (pytorchs, onednns), strict=True):
            began = time.perf_counter()
            product()
            times.append(time.perf_counter() - began)
    operations = 2e-9 * rows * inner * outer
    first, second = (operations / median(times) for times in taken)
    return first, second


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    print(f"oneDNN is chosen here from so many multiplications: {onednn_pays_from():,.0f}")
    print("| rows × in × out | PyTorch's linear, 10⁹/s | oneDNN | times |\n|---|---|---|---|")
    for shape in SHAPES:
        theirs, ours = rates(*shape)
        name = " × ".join(f"{n:,}" for n in shape)
        print(f"| {name} | {theirs:.0f} | {ours:.0f} | {ours / theirs:.2f} |")
