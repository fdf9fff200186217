"""Adapters that PEFT cannot hold beside LoRA on one base, put in by hooks: they speak, frozen.

Prefix and prompt tuning both come down to keys and values that stand before every sequence: a
prompt's are what the base makes of its embeddings, once. IA3 is a factor on some layers' inputs or
outputs. PEFT trains them (toolkit.trainers.supervised); here they are policies to be compared.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from peft import IA3Config, PeftConfig, PrefixTuningConfig, PromptTuningConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from toolkit.errors import CheckpointError

INSERTED = (PrefixTuningConfig, PromptTuningConfig, IA3Config)
_PREFIX = "base_model.model."


class Inserted(Protocol):
    """An adapter that acts through hooks while they are there."""

    def hook(self, base: PreTrainedModel) -> list[RemovableHandle]:
        """Put it in; removing the handles takes it out."""


def insertable(
    base: PreTrainedModel, config: PeftConfig, weights: dict[str, Tensor], place: str
) -> Inserted:
    """An adapter from its config and weights on disk. The base must speak for itself meanwhile.

    Raises: CheckpointError where it does not fit the base.
    """
    if isinstance(config, IA3Config):
        return Factors.read(base, weights, place)
    if any(type(layer) is not DynamicLayer for layer in _cache(base).layers):
        raise CheckpointError(
            f"{place}: virtual tokens stand before the whole sequence, but layers of this base see "
            "only a part of it (sliding window, or no attention); use another kind of adapter"
        )
    (states,) = weights.values()  # (v, ...)
    try:
        if isinstance(config, PromptTuningConfig):
            return VirtualTokens(_read_embeddings(base, states))
        return VirtualTokens(_split(base, config, states))
    except RuntimeError as error:
        raise CheckpointError(f"{place}: the adapter does not fit this base: {error}") from error


class VirtualTokens:
    """Keys and values of every layer, each `(1, heads, v, head size)`, before every sequence."""

    def __init__(self, layers: list[tuple[Tensor, Tensor]]) -> None:
        self.layers = layers
        self.count = int(layers[0][0].shape[2])

    def hook(self, base: PreTrainedModel) -> list[RemovableHandle]:
        """See `Inserted`."""
        trunk: Any = base.base_model
        insert: Callable[..., Any] = self._insert
        self._config = base.config.get_text_config()
        return [trunk.register_forward_pre_hook(insert, with_kwargs=True)]

    def _insert(
        self, trunk: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Fill an empty cache, and let every token see what stands in it, v places later itself."""
        cache = kwargs.get("past_key_values")
        if cache is None:
            cache = DynamicCache(config=self._config)
        if cache.get_seq_length() == 0:
            rows = len(kwargs["input_ids"])
            for number, (keys, values) in enumerate(self.layers):
                wide = (rows, -1, -1, -1)
                cache.update(keys.expand(wide), values.expand(wide), number)
        changed: dict[str, Any] = {"past_key_values": cache}
        seen = kwargs.get("attention_mask")
        if seen is not None:  # (B, S), or (B, 1, S, S) of a packed row
            before = seen.new_ones(*seen.shape[:-1], self.count)
            changed["attention_mask"] = torch.cat([before, seen], dim=-1)
        if kwargs.get("position_ids") is not None:
            changed["position_ids"] = kwargs["position_ids"] + self.count
        return args, kwargs | changed


class Factors:
    """IA3: a learned factor per feature, at the input of some layers and the output of others."""

    def __init__(self, factors: dict[str, tuple[Tensor, bool]]) -> None:
        self.factors = factors  # by the layer's name; True: at its input

    @classmethod
    def read(cls, base: PreTrainedModel, weights: dict[str, Tensor], place: str) -> "Factors":
        """From the weights on disk, `(1, in)` at an input and `(out, 1)` at an output."""
        found: dict[str, tuple[Tensor, bool]] = {}
        for key, weight in weights.items():
            name = key.removeprefix(_PREFIX).removesuffix(".ia3_l")
            try:
                layer = _innermost(base, name)
            except AttributeError as error:
                raise CheckpointError(f"{place}: this base has no layer {name}") from error
            at_input = weight.shape[0] == 1
            size = layer.in_features if at_input else layer.out_features
            if weight.numel() != size:
                raise CheckpointError(
                    f"{place}: {name} has {weight.numel()} factors, the base's layer {size} features"
                )
            found[name] = (weight.flatten().to(layer.weight.device), at_input)
        return cls(found)

    def hook(self, base: PreTrainedModel) -> list[RemovableHandle]:
        """See `Inserted`."""
        return [
            _innermost(base, name).register_forward_pre_hook(_at_input(factor))
            if at_input
            else _innermost(base, name).register_forward_hook(_at_output(factor))
            for name, (factor, at_input) in self.factors.items()
        ]


def _at_input(factor: Tensor) -> Callable[..., Any]:
    def scale(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return ((given[0].to(factor.dtype) * factor).to(given[0].dtype), *given[1:])

    return scale


def _at_output(factor: Tensor) -> Callable[..., Any]:
    def scale(_: nn.Module, given: tuple[Any, ...], found: Tensor) -> Tensor:
        return (found * factor).to(found.dtype)

    return scale


def _innermost(base: PreTrainedModel, name: str) -> Any:
    """The base's own layer of that name, below a LoRA that another role put around it."""
    layer = base.get_submodule(name)
    return layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer


def _cache(base: PreTrainedModel) -> DynamicCache:
    return DynamicCache(config=base.config.get_text_config())


@torch.no_grad()
def _read_embeddings(base: PreTrainedModel, states: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Keys and values that the base makes of embeddings `(v, d)` at the start of a sequence."""
    embedding, cache, training = base.get_input_embeddings().weight, _cache(base), base.training
    trunk: Any = base.base_model
    base.eval()
    trunk(
        inputs_embeds=states.to(embedding.device, base.dtype).unsqueeze(0),
        past_key_values=cache,
        use_cache=True,
    )
    base.train(training)
    return [(layer.keys, layer.values) for layer in cache.layers]


def _split(
    base: PreTrainedModel, config: PrefixTuningConfig, states: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """Keys and values out of PEFT's `(v, 2 · layers · heads · head size)`."""
    if config.prefix_projection or base.config.model_type == "gpt_bigcode":
        raise RuntimeError("a projected prefix, or one of gpt_bigcode, is not read")
    embedding, heads = base.get_input_embeddings().weight, config.num_attention_heads
    states = states.to(embedding.device, base.dtype)
    parts = states.view(len(states), 2 * config.num_layers, heads, config.token_dim // heads)
    each = parts.permute(1, 2, 0, 3).unsqueeze(1).contiguous()  # (2 layers, 1, heads, v, size)
    return [(each[2 * i], each[2 * i + 1]) for i in range(config.num_layers)]
