"""A LoRA merged into copies of the base's weights for sampling; the original weights are restored."""

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
    """Inside the block, merge a LoRA into its layers' weights wherever this loses no precision.

    A decoding step is a few thousand small operations, and an unmerged LoRA triples their number. Only
    float32 layers with weights of their own are merged; in lower precision a small update would be rounded
    away. Other layers keep the adapter separate; under autocast, the adapter's weights are rounded once
    here instead of at every token. After the block, the base has its original tensors again.

    Args:
        layers: the LoRA layers of the PEFT model.
        name: the name of the adapter to merge.
        tied: the embeddings; a weight tied to them is not merged.
    """
    layers = list(layers)
    merged: list[tuple[LoraLinear, Tensor]] = []
    rounded: list[tuple[nn.Parameter, Tensor]] = []
    try:
        for layer in layers:
            if _is_mergeable(layer, name, tied):
                weight = layer.get_base_layer().weight
                merged.append((layer, weight.data))
                weight.data = weight.data.clone()
                layer.merge(adapter_names=[name])
        if torch.is_autocast_enabled(tied.device.type):
            dtype = torch.get_autocast_dtype(tied.device.type)
            for layer in layers:
                if isinstance(layer, LoraLayer) and plain_adapter(layer) == name:
                    for weight in (layer.lora_A[name].weight, layer.lora_B[name].weight):
                        rounded.append((weight, weight.data))
                        weight.data = weight.data.to(dtype)
        yield
    finally:
        for weight, original in rounded:
            weight.data = original
        for layer, original in merged:
            layer.get_base_layer().weight.data = original
            layer.merged_adapters.clear()
            layer._caches.pop(f"{name}-weight_norm", None)  # DoRA keeps it to unmerge


def _is_mergeable(layer: BaseTunerLayer, name: str, tied: Tensor) -> bool:
    if not isinstance(layer, LoraLinear) or name not in layer.lora_A:
        return False
    weight = layer.get_base_layer().weight
    # of the variants, PEFT merges DoRA only
    plain = not layer.lora_bias[name] and (name not in layer.lora_variant or layer.use_dora[name])
    return weight.dtype == torch.float32 and weight is not tied and plain
