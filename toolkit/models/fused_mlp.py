"""A gated feed-forward part with LoRA as one autograd node, which keeps two wide tensors and not four.

`down(silu(gate(x)) · up(x))` through three LoRA layers keeps, for the backward pass, the gate, its
activation, up, and their product, each as wide as the feed-forward part: the largest share of a
layer's activations. Gate and up are enough; the others are two passes away. One node also reads x once
for both adapters, and sums its gradient in place.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.models.fused_lora import FusedLoraLinear, product, product_back
from toolkit.models.products import has_hooks, linear

PARTS = ("gate_proj", "up_proj", "down_proj")


def shorten_mlps(model: nn.Module) -> None:
    """Teach a model's gated feed-forward parts the short way, where they are what they look like."""
    tried: dict[type, bool] = {}
    for module in list(model.modules()):
        theirs = type(module)
        if isinstance(module, _ShortMlp) or not all(hasattr(module, part) for part in PARTS):
            continue
        if theirs not in tried:
            tried[theirs] = _is_gated_silu(module)
        if tried[theirs]:
            module.__class__ = type(f"Short{theirs.__name__}", (_ShortMlp, theirs), {})


class _ShortMlp:
    """Over a model's own class: one node where three plain LoRA layers have one adapter active."""

    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As the model's."""
        names = set() if args or kwargs else set(_plain(self, x))
        if len(names) != 1 or None in names:
            return super().forward(x, *args, **kwargs)  # type: ignore[misc]
        (name,) = names
        parts = [_Part.of(getattr(self, part), str(name)) for part in PARTS]
        tensors = [t for part in parts for t in (part.low, part.high)]
        found: Tensor = _GatedProduct.apply(x.reshape(-1, x.shape[-1]), parts, *tensors)  # type: ignore[no-untyped-call]
        return found.view(*x.shape[:-1], found.shape[-1])


def _plain(mlp: Any, x: Tensor) -> Iterator[str | None]:
    """The adapter of each layer, None where it does not take the short way by itself."""
    for part in PARTS:
        layer = getattr(mlp, part)
        short = isinstance(layer, FusedLoraLinear) and not has_hooks(layer)
        yield layer.plain(x) if short else None


@torch.no_grad()
def _is_gated_silu(mlp: Any) -> bool:
    """Try it on two tokens, one of large numbers: the formula must come to the same to the bit."""
    weight = mlp.gate_proj.weight
    if not weight.is_floating_point() or weight.dim() != 2 or weight.is_meta:
        return False  # quantized, or only a shape
    x = torch.linspace(-2, 2, 2 * weight.shape[1], device=weight.device, dtype=weight.dtype)
    x = x.view(1, 2, -1) * x.new_tensor([[1.0], [30.0]])
    try:
        found = mlp(x)
        expected = mlp.down_proj(nn.functional.silu(mlp.gate_proj(x)) * mlp.up_proj(x))
    except (TypeError, ValueError, RuntimeError):  # of a part that wants other arguments
        return False
    return torch.is_tensor(found) and torch.equal(found, expected)


@dataclass(frozen=True)
class _Part:
    """W `(out, in)`, b `(out,)`, A `(r, in)`, B `(out, r)` and s of one layer."""

    weight: Tensor
    bias: Tensor | None
    low: Tensor
    high: Tensor
    scale: float

    @classmethod
    def of(cls, layer: FusedLoraLinear, name: str) -> "_Part":
        base = layer.get_base_layer()
        low, high = layer.lora_A[name].weight, layer.lora_B[name].weight
        return cls(base.weight, base.bias, low, high, layer.scaling[name])

    def in_its_precision(self) -> "_Part":
        """With A and B in that of W."""
        low, high = (t.detach().to(self.weight.dtype) for t in (self.low, self.high))
        return _Part(self.weight, self.bias, low, high, self.scale)

    def forward(self, x: Tensor, inner: Tensor) -> Tensor:
        return product(x, inner, self.weight, self.bias, self.low, self.high, self.scale)

    def backward(self, grad: Tensor, narrow: Tensor, into: Tensor | None = None) -> Tensor:
        return product_back(grad, narrow, self.weight, self.low, self.high, self.scale, into=into)

    def narrow(self, grad: Tensor) -> Tensor:
        """s · grad B, `(n, r)`."""
        return linear(grad, self.high.t()).mul_(self.scale)

    def to_high(self, inner: Tensor, grad: Tensor) -> Tensor:
        return linear(inner.t(), grad.t()).t().mul_(self.scale)


class _GatedProduct(torch.autograd.Function):
    """For x `(n, in)`; the parts are gate, up and down, whose weights are frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, parts: list[_Part], *_: Tensor) -> Tensor:
        gate, up, down = (part.in_its_precision() for part in parts)
        x = x.to(gate.weight.dtype)
        inner = linear(x, torch.cat([gate.low, up.low]))  # (n, r + r)
        to_gate, to_up = torch.split(inner, [len(gate.low), len(up.low)], dim=1)
        gated, raised = gate.forward(x, to_gate), up.forward(x, to_up)
        between = nn.functional.silu(gated).mul_(raised)
        to_down = linear(between, down.low)
        ctx.save_for_backward(x, inner, to_down, gated, raised)
        ctx.parts = (gate, up, down)
        return down.forward(between, to_down)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, inner, to_down, gated, raised = ctx.saved_tensors
        gate, up, down = ctx.parts
        ranks = [len(gate.low), len(up.low)]
        to_gate, to_up = torch.split(inner, ranks, dim=1)
        narrow = down.narrow(grad)
        to_between = down.backward(grad, narrow)
        act = nn.functional.silu(gated)
        down_low, down_high = linear(narrow.t(), (act * raised).t()), down.to_high(to_down, grad)
        to_raised = act.mul_(to_between)
        to_gated = torch.ops.aten.silu_backward(to_between.mul_(raised), gated)
        narrows = [gate.narrow(to_gated), up.narrow(to_raised)]
        lows = torch.split(linear(torch.cat(narrows, dim=1).t(), x.t()), ranks)
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x = gate.backward(to_gated, narrows[0])
            to_x = up.backward(to_raised, narrows[1], into=to_x)
        gate_high, up_high = gate.to_high(to_gate, to_gated), up.to_high(to_up, to_raised)
        return to_x, None, lows[0], gate_high, lows[1], up_high, down_low, down_high
