"""An adapter merged into copies of the base's weights, for sampling; the originals come back."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from toolkit.kernels.fused_lora import plain_adapter


@contextmanager
def merged_weights(layers: Iterable[BaseTunerLayer], name: str, *, tied: Tensor) -> Iterator[None]:
    """Inside the block, a LoRA is part of its layers' weights, as far as that loses nothing.

    A decoding step is a few thousand small operations, and an unmerged LoRA triples their number.
    The original tensors are put back afterwards, so the base is what it was to the bit. Only float32
    layers with weights of their own are merged: in lower precision a small update would be rounded
    away, and the others keep their adapter beside them. Under autocast, which would round those
    adapters anew at every token, they are rounded once.

    Args:
        layers: of the PEFT model.
        name: the adapter's.
        tied: the embeddings, which other parts of the model read too.
    """
    layers = list(layers)
    swapped: list[tuple[LoraLinear, Tensor]] = []
    rounded: list[tuple[nn.Parameter, Tensor]] = []
    try:
        for layer in _mergeable(layers, name, tied):
            weight = layer.get_base_layer().weight
            swapped.append((layer, weight.data))
            weight.data = weight.data.clone()
            layer.merge(adapter_names=[name])
        if torch.is_autocast_enabled(tied.device.type):
            dtype = torch.get_autocast_dtype(tied.device.type)
            for weight in _beside(layers, name):
                rounded.append((weight, weight.data))
                weight.data = weight.data.to(dtype)
        yield
    finally:
        for weight, original in rounded:
            weight.data = original
        for layer, original in swapped:
            layer.get_base_layer().weight.data = original
            layer.merged_adapters.clear()
            layer._caches.pop(f"{name}-weight_norm", None)  # what DoRA keeps to unmerge by


def _beside(layers: Iterable[BaseTunerLayer], name: str) -> list[nn.Parameter]:
    """A and B of a LoRA that is two plain products beside its layers."""
    found: list[nn.Parameter] = []
    for layer in layers:
        if isinstance(layer, LoraLayer) and plain_adapter(layer) == name:
            found += [layer.lora_A[name].weight, layer.lora_B[name].weight]
    return found


def _mergeable(layers: Iterable[BaseTunerLayer], name: str, tied: Tensor) -> list[LoraLinear]:
    found = []
    for layer in layers:
        if not isinstance(layer, LoraLinear) or name not in layer.lora_A:
            continue
        weight = layer.get_base_layer().weight
        if weight.dtype == torch.float32 and weight is not tied and not layer.lora_bias[name]:
            found.append(layer)
    return found
