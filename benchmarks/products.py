"""Rates of float32 products by PyTorch's own choice of library and by oneDNN, in turn.

    python benchmarks/products.py [--threads 1]

Prints  the rates of docs/performance.md.
"""

import argparse
import itertools
import time
from statistics import median

import torch
from torch import Tensor

from toolkit.kernels.products import onednn_pays_from

# (rows, in, out) of a micro-batch's products in `world`, `fixed-5m`, `fixed-129m`
SHAPES = ((1250, 192, 192), (1250, 192, 512), (640, 256, 608), (320, 768, 1856), (190, 768, 32_000))
SAMPLED = ((64, 192, 512), (64, 256, 1024), (16, 768, 768), (16, 768, 3072), (16, 768, 32_000))
NARROW = ((1250, 512, 16), (16, 1250, 512), (2560, 1024, 16), (16, 2560, 1024), (16, 640, 3072))
COLD = 96 << 20  # bytes of weights that sampling goes through, more than a cache holds
REPEATS = 31


def rates(rows: int, inner: int, outer: int, *, cold: bool = False) -> tuple[float, float]:
    """Median billions of operations per second: PyTorch's `linear`, then oneDNN's.

    With `cold` every product has weights that were not read for a while, as those of a model that
    samples token by token.
    """
    left = torch.randn(rows, inner)
    count = max(1, COLD // (4 * inner * outer)) if cold else 1
    weights = itertools.cycle([torch.randn(outer, inner) for _ in range(count)])

    def pytorchs() -> Tensor:
        return torch.nn.functional.linear(left, next(weights))

    def onednns() -> Tensor:
        found: Tensor = torch.ops.mkldnn._linear_pointwise(
            left, next(weights), None, "none", [], ""
        )
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
    found = onednn_pays_from()
    print(
        f"oneDNN is chosen here from so many multiplications: {found.any:,.0f}; of few rows "
        f"{found.few_rows:,.0f}, beside LoRA's matrices {found.narrow:,.0f}"
    )
    print("| rows × in × out | PyTorch's linear, 10⁹/s | oneDNN | times |\n|---|---|---|---|")
    for shape in (*SHAPES, *SAMPLED, *NARROW):
        theirs, ours = rates(*shape, cold=shape in SAMPLED)
        name = " × ".join(f"{n:,}" for n in shape) + (", cold" if shape in SAMPLED else "")
        print(f"| {name} | {theirs:.0f} | {ours:.0f} | {ours / theirs:.2f} |")
