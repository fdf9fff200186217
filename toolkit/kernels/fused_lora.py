"""LoRA's linear layer as one autograd node: no intermediate sums, no scaled copies.

PEFT's layer computes `base(x) + lora_B(lora_A(x)) * scaling`: per layer two passes over the output
beyond the matrix products, and two more in the backward pass. Here the low-rank products are
accumulated into the output of the base's. The result is PEFT's, up to float rounding.
"""

from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear


class FusedLoraLinear(LoraLinear):  # type: ignore[misc]
    """PEFT's layer, whose plain cases (products in one precision, and one adapter for all rows or for
    each) take the short way."""

    _rows: tuple[list[str], tuple[Tensor, Tensor]] | None = None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As PEFT's."""
        base = self.get_base_layer()
        if not args and not kwargs and self.disable_adapters != self.merged:
            base_output: Tensor = base(x)
            return base_output
        name = self._plain(x) if not args and not kwargs else None
        if name is None:
            found: Tensor = super().forward(x, *args, **kwargs)
            return found
        rows = x.reshape(-1, x.shape[-1])
        low, high = self.lora_A[name].weight, self.lora_B[name].weight
        out: Tensor = _LoraProduct.apply(  # type: ignore[no-untyped-call]
            rows, base.weight, base.bias, low, high, self.scaling[name]
        )
        return out.view(*x.shape[:-1], out.shape[-1])

    def _mixed_batch_forward(
        self, x: Tensor, *args: Any, adapter_names: list[str], **kwargs: Any
    ) -> Tensor:
        """An adapter for each row: three products for all of them, where PEFT takes them in turn."""
        stacks = self._stacks(x, adapter_names)
        if stacks is None:
            found: Tensor = super()._mixed_batch_forward(
                x, *args, adapter_names=adapter_names, **kwargs
            )
            return found
        low, high = stacks
        found = self.get_base_layer()(x)
        if low.dtype == found.dtype:
            return torch.baddbmm(found, torch.bmm(x, low), high)
        # as PEFT does: adapters of a base in half precision are kept, and multiplied, in float32
        return found + torch.bmm(torch.bmm(x.to(low.dtype), low), high).to(found.dtype)

    def _stacks(self, x: Tensor, names: list[str]) -> tuple[Tensor, Tensor] | None:
        """A' `(B, in, r)` and s·B' `(B, r, out)` of each row, zeros where it has no adapter here.

        Kept until `forget_rows`, since every token needs them. None where PEFT must do it.
        """
        if self._rows is not None and self._rows[0] is names:
            return self._rows[1]
        rows = [n if n in self.lora_A else None for n in names]
        ours = {n for n in rows if n is not None}
        dtypes = {self.lora_A[n].weight.dtype for n in ours} or {x.dtype}
        if len(dtypes) > 1 or any(n in self.lora_variant or self.lora_bias[n] for n in ours):
            return None
        if x.dim() != 3 or torch.is_grad_enabled():
            return None
        rank, (dtype,) = max([1, *(self.r[n] for n in ours)]), dtypes
        low = x.new_zeros(len(rows), self.in_features, rank, dtype=dtype)
        high = x.new_zeros(len(rows), rank, self.out_features, dtype=dtype)
        for row, name in enumerate(rows):
            if name is not None:
                r = self.r[name]
                low[row, :, :r] = self.lora_A[name].weight.t()
                high[row, :r] = self.lora_B[name].weight.t() * self.scaling[name]
        self._rows = (names, (low, high))
        return low, high

    def forget_rows(self) -> None:
        """Free what `_stacks` keeps."""
        self._rows = None

    def _plain(self, x: Tensor) -> str | None:
        """The one active adapter, if nothing but W·x + s·B·A·x is asked of it."""
        name, base = plain_adapter(self), self.get_base_layer()
        if name is None or not is_bare(base) or base.weight.requires_grad:
            return None
        precision = product_precision(x, self.lora_A[name].weight)
        return name if precision == base.weight.dtype else None


def plain_adapter(layer: LoraLayer) -> str | None:
    """The one active adapter of a layer, where it is two products, a factor, and nothing else."""
    if layer.disable_adapters or layer.merged or len(layer.active_adapters) != 1:
        return None
    name: str = layer.active_adapters[0]
    if name not in layer.lora_A or name in layer.lora_variant or layer.lora_bias[name]:
        return None
    dropout = layer.lora_dropout[name]
    if layer.training and isinstance(dropout, nn.Dropout) and dropout.p > 0:
        return None
    return name if is_bare(layer.lora_A[name]) and is_bare(layer.lora_B[name]) else None


def is_bare(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a layer is one matrix product: no hooks and no replaced `forward` (as in offloading)."""
    return (
        type(layer) is nn.Linear
        and "forward" not in vars(layer)
        and not layer._forward_hooks
        and not layer._forward_pre_hooks
        and not layer._backward_hooks
        and not layer._backward_pre_hooks
    )


def product_precision(x: Tensor, low: Tensor) -> torch.dtype | None:
    """In what PEFT multiplies `x` by an adapter and by its base; None where these are not one.

    Autocast rounds an adapter's float32 to its own precision at each product; without it they are
    multiplied as they are.
    """
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype if x.dtype == low.dtype else None


class _LoraProduct(torch.autograd.Function):
    """`x W' + b + s · (x A') B'` for `x` `(n, in)`, in W's precision; W and b are frozen."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        low: Tensor,
        high: Tensor,
        scale: float,
    ) -> Tensor:
        x, low, high = (t.to(weight.dtype) for t in (x, low, high))
        inner = linear(x, low)  # (n, r)
        ctx.save_for_backward(x, weight, low, high, inner)
        ctx.scale = scale
        if _merging_pays(x, weight.shape[1]):
            return linear(x, torch.addmm(weight, high, low, alpha=scale), bias)
        return linear(x, weight, bias).addmm_(inner, high.t(), alpha=scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, low, high, inner = ctx.saved_tensors
        scale: float = ctx.scale
        narrow = narrowed(grad, high, scale)
        wants_x, _, _, *wanted, _ = ctx.needs_input_grad
        to_x = None
        if wants_x:
            if _merging_pays(grad, weight.shape[0]):
                to_x = linear(grad, torch.addmm(weight, high, low, alpha=scale).t())
            else:
                to_x = linear(grad, weight.t()).addmm_(narrow, low)
        to_low, to_high = adapter_gradients(x, inner, grad, narrow, scale, wanted)
        return to_x, None, None, to_low, to_high, None


def narrowed(grad: Tensor, high: Tensor, scale: float) -> Tensor:
    """The gradient `(n, r)` of what lies between A and B, from that of the layer's output `(n, out)`."""
    return linear(grad, high.t()).mul_(scale)


def adapter_gradients(
    x: Tensor, inner: Tensor, grad: Tensor, narrow: Tensor, scale: float, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Those of A `(r, in)` and of B `(out, r)`, each where it is wanted.

    Args:
        x: `(n, in)`.
        inner: `x A'`, `(n, r)`.
        grad: of the output, `(n, out)`.
        narrow: see `narrowed`.
    """
    to_low = linear(narrow.t(), x.t()) if wanted[0] else None
    to_high = linear(inner.t(), grad.t()).t().mul_(scale) if wanted[1] else None
    return to_low, to_high


def _merging_pays(rows: Tensor, width: int) -> bool:
    """Whether W + s·B·A, made for one product, costs less than adding its share to every row.

    In lower precision a small update would be rounded away.
    """
    return rows.dtype in (torch.float32, torch.float64) and rows.shape[0] > width
