"""LoRA beside bitsandbytes' quantized layers, its share added in one autograd node.

PEFT copies what the base made, casts x to the adapter's precision and back, scales, and adds: five
passes over a layer's output or input beyond the products. Here the low-rank products are accumulated
into the base's. The result is PEFT's, up to rounding.
"""

from typing import Any

import torch
from peft.import_utils import is_bnb_4bit_available, is_bnb_available
from peft.tuners.lora import LoraLayer, bnb
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from toolkit.kernels.fused_lora import (
    adapter_gradients,
    narrowed,
    plain_adapter,
    product_precision,
)


class _AddsShare:
    """Over PEFT's layer: its plain cases, in one precision, take the short way."""

    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As PEFT's."""
        name = plain_adapter(self) if not args and not kwargs else None
        if name is not None:
            low, high = self.lora_A[name].weight, self.lora_B[name].weight
            if product_precision(x, low) == x.dtype:
                out = self.get_base_layer()(x)
                return add_share(out, x, low, high, self.scaling[name])
        found: Tensor = super().forward(x, *args, **kwargs)  # type: ignore[misc]
        return found


def add_share(out: Tensor, x: Tensor, low: Tensor, high: Tensor, scale: float) -> Tensor:
    """`out + s · (x A') B'`, in the precision of `out`.

    Args:
        out: `(…, out)`.
        x: `(…, in)`.
        low: A `(r, in)`.
        high: B `(out, r)`.
    """
    rows = (t.reshape(-1, t.shape[-1]) for t in (out, x))
    found: Tensor = _Share.apply(*rows, low, high, scale)  # type: ignore[no-untyped-call]
    return found.view(out.shape)


class _Share(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, out: Tensor, x: Tensor, low: Tensor, high: Tensor, scale: float
    ) -> Tensor:
        x, low, high = (t.to(out.dtype) for t in (x, low, high))
        inner = linear(x, low)  # (n, r)
        ctx.save_for_backward(x, low, high, inner)
        ctx.scale = scale
        return torch.addmm(out, inner, high.t(), alpha=scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, low, high, inner = ctx.saved_tensors
        narrow = narrowed(grad, high, ctx.scale)
        wants_x, *wanted = ctx.needs_input_grad[1:4]
        to_x = narrow @ low if wants_x else None
        return grad, to_x, *adapter_gradients(x, inner, grad, narrow, ctx.scale, wanted), None


KINDS: list[tuple[Any, type, type]] = []  # how PEFT makes a layer, its class, ours over it

if is_bnb_4bit_available():

    class ShortLinear4bit(_AddsShare, bnb.Linear4bit):  # type: ignore[misc]
        """PEFT's layer beside 4 bit."""

    KINDS.append((bnb.dispatch_bnb_4bit, bnb.Linear4bit, ShortLinear4bit))

if is_bnb_available():

    class ShortLinear8bit(_AddsShare, bnb.Linear8bitLt):  # type: ignore[misc]
        """PEFT's layer beside 8 bit."""

    KINDS.append((bnb.dispatch_bnb_8bit, bnb.Linear8bitLt, ShortLinear8bit))


def quantized_or_none(
    target: nn.Module, adapter_name: str, config: Any, **kwargs: Any
) -> LoraLayer | None:
    """PEFT's LoRA for a layer of 4 or 8 bit, taught the short way; None where the layer is neither."""
    for dispatch, theirs, ours in KINDS:
        made = dispatch(target, adapter_name, config, **kwargs)
        if type(made) is theirs:
            made.__class__ = ours
        if made is not None:
            return made
    return None
