"""LoRA layers that compute base and adapter in one autograd node; the base may be quantized.

PEFT computes `base(x) + lora_B(lora_A(x)) * scaling`. Besides the matrix products, PEFT passes over the
output twice, and twice more in the backward pass. On a quantized layer, PEFT also copies the output and
casts `x`. The layers here add the low-rank product to the base's output in place. The result is PEFT's up
to rounding. They subclass PEFT's layers, and call PEFT's own version in all unsupported cases, such as
dropout, DoRA, several active adapters or mixed precision without autocast.
"""

from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
from peft import PeftConfig
from peft.import_utils import is_bnb_4bit_available, is_bnb_available
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer, bnb
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from toolkit.kernels import kernels_enabled


def use_fused_layers(config: PeftConfig) -> None:
    """Make PEFT build the layers of this module for a LoRA config; does nothing if kernels are off."""
    # only LoRA configs have this method
    if kernels_enabled() and hasattr(config, "_register_custom_module"):
        config._register_custom_module({nn.Linear: _fused_layer})


def _fused_layer(
    target: nn.Module, adapter_name: str, config: Any, **kwargs: Any
) -> LoraLayer | None:
    """A fused layer around `target`; None makes PEFT choose a layer of its own."""
    base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
    if type(base) is nn.Linear:
        return FusedLoraLinear(target, adapter_name, config=config, **kwargs)
    for dispatch, peft_layer, fused_layer in _QUANTIZED:
        layer: LoraLayer | None = dispatch(target, adapter_name, config, **kwargs)
        if type(layer) is peft_layer:
            layer.__class__ = fused_layer
        if layer is not None:
            return layer
    return None


class FusedLoraLinear(LoraLinear):  # type: ignore[misc]
    """LoRA on `nn.Linear`, fused for one active adapter and for one adapter per row."""

    _row_weights: tuple[list[str], tuple[Tensor, Tensor]] | None = None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output `(…, out)` for an input `x` `(…, in)`."""
        base = self.get_base_layer()
        output: Tensor
        if not args and not kwargs:
            if self.disable_adapters != self.merged:
                output = base(x)
                return output
            name = self._fusable_adapter(x)
            if name is not None:
                a, b = self.lora_A[name].weight, self.lora_B[name].weight
                rows = x.reshape(-1, x.shape[-1])
                output = _LoraLinear.apply(  # type: ignore[no-untyped-call]
                    rows, base.weight, base.bias, a, b, self.scaling[name]
                )
                return output.view(*x.shape[:-1], output.shape[-1])
        output = super().forward(x, *args, **kwargs)
        return output

    def _fusable_adapter(self, x: Tensor) -> str | None:
        """The active adapter, if the layer computes only `W x + s B A x` in the precision of W."""
        name, base = plain_adapter(self), self.get_base_layer()
        if name is None or not is_bare(base) or base.weight.requires_grad:
            return None
        precision = product_precision(x, self.lora_A[name].weight)
        return name if precision == base.weight.dtype else None

    def _mixed_batch_forward(
        self, x: Tensor, *args: Any, adapter_names: list[str], **kwargs: Any
    ) -> Tensor:
        """One adapter per row: three products for the batch, where PEFT loops over adapters."""
        weights = self._weights_per_row(x, adapter_names)
        output: Tensor
        if weights is None:
            output = super()._mixed_batch_forward(x, *args, adapter_names=adapter_names, **kwargs)
            return output
        a, b = weights
        output = self.get_base_layer()(x)
        if a.dtype == output.dtype:
            return torch.baddbmm(output, torch.bmm(x, a), b)
        # like PEFT: adapters of a half-precision base are stored and multiplied in float32
        return output + torch.bmm(torch.bmm(x.to(a.dtype), a), b).to(output.dtype)

    def _weights_per_row(self, x: Tensor, names: list[str]) -> tuple[Tensor, Tensor] | None:
        """A' `(B, in, r)` and s·B' `(B, r, out)` per row, zero for rows without an adapter here.

        They are the same for every token, so they are kept until `clear_row_weights`. None if PEFT
        must compute the batch.
        """
        if self._row_weights is not None and self._row_weights[0] is names:
            return self._row_weights[1]
        rows = [n if n in self.lora_A else None for n in names]
        adapters = {n for n in rows if n is not None}
        dtypes = {self.lora_A[n].weight.dtype for n in adapters} or {x.dtype}
        if len(dtypes) > 1 or any(n in self.lora_variant or self.lora_bias[n] for n in adapters):
            return None
        if x.dim() != 3 or torch.is_grad_enabled():
            return None
        rank, (dtype,) = max([1, *(self.r[n] for n in adapters)]), dtypes
        a = x.new_zeros(len(rows), self.in_features, rank, dtype=dtype)
        b = x.new_zeros(len(rows), rank, self.out_features, dtype=dtype)
        for row, name in enumerate(rows):
            if name is not None:
                r = self.r[name]
                a[row, :, :r] = self.lora_A[name].weight.t()
                b[row, :r] = self.lora_B[name].weight.t() * self.scaling[name]
        self._row_weights = (names, (a, b))
        return a, b

    def clear_row_weights(self) -> None:
        """Free the weights that a batch with one adapter per row kept."""
        self._row_weights = None


class _FusedQuantized:
    """Mixin for PEFT's quantized layers that adds the adapter's product in one autograd node."""

    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output `(…, out)` for an input `x` `(…, in)`."""
        name = plain_adapter(self) if not args and not kwargs else None
        if name is not None:
            a, b = self.lora_A[name].weight, self.lora_B[name].weight
            if product_precision(x, a) == x.dtype:
                return add_lora(self.get_base_layer()(x), x, a, b, self.scaling[name])
        output: Tensor = super().forward(x, *args, **kwargs)  # type: ignore[misc]
        return output


_QUANTIZED: list[tuple[Any, type, type]] = []  # PEFT's dispatcher and layer, and the fused layer

if is_bnb_4bit_available():

    class FusedLinear4bit(_FusedQuantized, bnb.Linear4bit):  # type: ignore[misc]
        """LoRA on a 4-bit layer."""

    _QUANTIZED.append((bnb.dispatch_bnb_4bit, bnb.Linear4bit, FusedLinear4bit))

if is_bnb_available():

    class FusedLinear8bit(_FusedQuantized, bnb.Linear8bitLt):  # type: ignore[misc]
        """LoRA on an 8-bit layer."""

    _QUANTIZED.append((bnb.dispatch_bnb_8bit, bnb.Linear8bitLt, FusedLinear8bit))


def plain_adapter(layer: LoraLayer) -> str | None:
    """A layer's only active adapter if it is just `s B A x`: no dropout, bias, variant or hooks."""
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
    """Whether a layer is only a matrix product: no hooks, no replaced `forward` (offloading)."""
    return (
        type(layer) is nn.Linear
        and "forward" not in vars(layer)
        and not layer._forward_hooks
        and not layer._forward_pre_hooks
        and not layer._backward_hooks
        and not layer._backward_pre_hooks
    )


def product_precision(x: Tensor, a: Tensor) -> torch.dtype | None:
    """The dtype in which PEFT multiplies `x` by the base and by A; None if the two differ.

    Autocast rounds the float32 adapter to its own dtype at each product; otherwise nothing is rounded.
    """
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype if x.dtype == a.dtype else None


class _LoraLinear(torch.autograd.Function):
    """`x W' + b + s · (x A') B'` for `x` `(n, in)`, in the dtype of W; W and b are frozen."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scale: float,
    ) -> Tensor:
        x, a, b = (t.to(weight.dtype) for t in (x, a, b))
        low = linear(x, a)  # (n, r)
        ctx.save_for_backward(x, weight, a, b, low)
        ctx.scale = scale
        if _merging_is_cheaper(x, weight.shape[1]):
            return linear(x, torch.addmm(weight, b, a, alpha=scale), bias)
        return linear(x, weight, bias).addmm_(low, b.t(), alpha=scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, low = ctx.saved_tensors
        scale: float = ctx.scale
        grad_low = (grad @ b).mul_(scale)
        needs_x, _, _, *needs_a_b, _ = ctx.needs_input_grad
        grad_x = None
        if needs_x:
            if _merging_is_cheaper(grad, weight.shape[0]):
                grad_x = grad @ torch.addmm(weight, b, a, alpha=scale)
            else:
                grad_x = (grad @ weight).addmm_(grad_low, a)
        grad_a, grad_b = _adapter_gradients(x, low, grad, grad_low, scale, needs_a_b)
        return grad_x, None, None, grad_a, grad_b, None


def _merging_is_cheaper(rows: Tensor, width: int) -> bool:
    """Whether forming W + s·B·A once costs less than adding the low-rank product to every row.

    True only in float32 and float64: lower precision would round a small update away.
    """
    return rows.dtype in (torch.float32, torch.float64) and rows.shape[0] > width


def add_lora(output: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """`output + s · (x A') B'`, in the dtype of `output`.

    Args:
        output: the base layer's result, `(…, out)`.
        x: `(…, in)`.
        a: `(r, in)`.
        b: `(out, r)`.
        scale: s.
    """
    rows = (t.reshape(-1, t.shape[-1]) for t in (output, x))
    total: Tensor = _AddLora.apply(*rows, a, b, scale)  # type: ignore[no-untyped-call]
    return total.view(output.shape)


class _AddLora(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        x, a, b = (t.to(output.dtype) for t in (x, a, b))
        low = linear(x, a)  # (n, r)
        ctx.save_for_backward(x, a, b, low)
        ctx.scale = scale
        return torch.addmm(output, low, b.t(), alpha=scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, a, b, low = ctx.saved_tensors
        grad_low = (grad @ b).mul_(ctx.scale)
        needs_x, *needs_a_b = ctx.needs_input_grad[1:4]
        grad_x = grad_low @ a if needs_x else None
        return grad, grad_x, *_adapter_gradients(x, low, grad, grad_low, ctx.scale, needs_a_b), None


def _adapter_gradients(
    x: Tensor, low: Tensor, grad: Tensor, grad_low: Tensor, scale: float, needed: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of A `(r, in)` and of B `(out, r)`, each only if needed.

    Args:
        x: `(n, in)`.
        low: `x A'`, `(n, r)`.
        grad: gradient of the output, `(n, out)`.
        grad_low: gradient of `low`, `(n, r)`.
    """
    grad_a = grad_low.t() @ x if needed[0] else None
    grad_b = (low.t() @ grad).t().mul_(scale) if needed[1] else None
    return grad_a, grad_b
