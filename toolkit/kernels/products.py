"""Products with frozen weights in float32, by whichever of PyTorch's two libraries is faster here.

On x86 PyTorch multiplies float32 matrices with MKL, which keeps its AVX-512 code for Intel's own
processors; on others it takes AVX2, half as wide. PyTorch also carries oneDNN, which asks the processor
what it can do. That is twice as much on AMD's Zen 5. Zen 4 has AVX-512 too, but does it in halves: there
the libraries are alike, but for large products by several threads. docs/performance.md has the rates.
"""

import functools
import math
import os
import platform
import re
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn

# Both keep what they made for each shape, 0.3 MB apiece; packed rows come in hundreds of shapes.
for _cache in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
    os.environ.setdefault(_cache, "64")

FEW_ROWS = 128


class PaysFrom(NamedTuple):
    """Multiplications of one product from which oneDNN gains more than its call costs.

    The first call in each shape costs half a millisecond more, and rows that are packed come in
    hundreds of shapes; sampling has few.
    """

    any: float
    few_rows: float  # at most FEW_ROWS
    narrow: float  # with one of LoRA's matrices


# by AMD's families of processors with AVX-512: Zen 4, and Zen 5 and what follows
WORTH_IT = {
    25: PaysFrom(any=150e6, few_rows=8e6, narrow=24e6),
    26: PaysFrom(any=1 << 20, few_rows=1 << 20, narrow=1 << 20),
}
NEVER = PaysFrom(math.inf, math.inf, math.inf)


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, narrow: bool = False
) -> Tensor:
    """`x W' + b`, without gradient: `x` is `(n, in)`, `weight` `(out, in)`, `bias` `(out,)`.

    With `narrow` one of both is a matrix of LoRA's, or what such a one makes.
    """
    if _with_onednn(x, weight, narrow=narrow):
        dense = None if bias is None else bias.contiguous()  # it does not look at a bias's strides
        found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, dense, "none", [], "")
        return found
    return nn.functional.linear(x, weight, bias)


def frozen_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x W' + b` for `x` of any shape `(…, in)`; the gradient goes to `x` alone.

    Weights that learn are PyTorch's own to multiply.
    """
    learns = weight.requires_grad or (bias is not None and bias.requires_grad)
    rows = x.reshape(-1, x.shape[-1])
    if learns or not _with_onednn(rows, weight):
        return nn.functional.linear(x, weight, bias)
    found: Tensor = _FrozenLinear.apply(rows, weight, bias)  # type: ignore[no-untyped-call]
    return found.view(*x.shape[:-1], weight.shape[0])


def through(layer: nn.Module, x: Tensor) -> Tensor:
    """What a layer makes of `x` `(…, in)`; by `frozen_linear` if it is nothing but a product."""
    if is_bare(layer):
        return frozen_linear(x, layer.weight, layer.bias)
    found: Tensor = layer(x)
    return found


def is_bare(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a layer is a product and nothing else: no hook, and no `forward` put in its place."""
    return (
        type(layer) is nn.Linear
        and "forward" not in vars(layer)
        and not layer._forward_hooks
        and not layer._forward_pre_hooks
        and not layer._backward_hooks
        and not layer._backward_pre_hooks
    )


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
        (weight,) = ctx.saved_tensors
        return (linear(grad, weight.t()) if ctx.needs_input_grad[0] else None), None, None


def _with_onednn(x: Tensor, weight: Tensor, *, narrow: bool = False) -> bool:
    return (
        x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and x.shape[0] * weight.numel() >= _pays_from(x.shape[0], narrow=narrow)
    )


def _pays_from(rows: int, *, narrow: bool) -> float:
    pays = onednn_pays_from()
    if narrow:
        return pays.narrow
    return pays.few_rows if rows <= FEW_ROWS else pays.any


@functools.cache
def onednn_pays_from() -> PaysFrom:
    """From what on oneDNN is the faster on this processor; perhaps from infinity."""
    listed = _processor()
    family = re.search(r"family\s*:?\s*(\d+)", listed, re.IGNORECASE)
    unused = bool(
        torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
        and "AuthenticAMD" in listed
    )
    if not unused or family is None or int(family.group(1)) < min(WORTH_IT):
        return NEVER
    return WORTH_IT[min(int(family.group(1)), max(WORTH_IT))]


def _processor() -> str:
    """What the system says of its processor; Linux names the maker in a file only."""
    listed = Path("/proc/cpuinfo")
    if listed.exists():
        return listed.read_text(encoding="utf-8", errors="replace")
    return platform.processor()
