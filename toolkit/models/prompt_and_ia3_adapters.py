"""Prefix, prompt and IA3 adapters as frozen policies, applied through forward hooks.

PEFT cannot attach them and LoRA to one base; it only trains them (toolkit.trainers.supervised). Prefix and
prompt tuning both become keys and values before every sequence. Those of a prompt are computed once from
its embeddings. IA3 multiplies some layers' inputs or outputs by factors.
"""

from collections.abc import Callable
from typing import Any

import torch
from peft import IA3Config, PeftConfig, PrefixTuningConfig, PromptTuningConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from toolkit.errors import CheckpointError
from toolkit.models.adapter_config import KEY_PREFIX

HOOKED = (PrefixTuningConfig, PromptTuningConfig, IA3Config)


def hooked_adapter(
    base: PreTrainedModel, config: PeftConfig, weights: dict[str, Tensor], place: str
) -> "HookedAdapter":
    """Make a hooked adapter from its config and weights; requires that no adapter is active.

    Args:
        place: the adapter's folder, for messages.

    Raises: CheckpointError if the adapter does not fit the base.
    """
    if isinstance(config, IA3Config):
        return IA3Factors(base, weights, place)
    if any(type(layer) is not DynamicLayer for layer in _cache(base).layers):
        raise CheckpointError(
            f"{place}: virtual tokens precede the whole sequence, but some layers of this base do "
            "not attend to all of it (sliding window or no attention); use another kind of adapter"
        )
    (states,) = weights.values()  # (v, ...)
    try:
        if isinstance(config, PromptTuningConfig):
            return VirtualTokens(_read_embeddings(base, states))
        return VirtualTokens(_split(base, config, states))
    except RuntimeError as error:
        raise CheckpointError(f"{place}: the adapter does not fit this base: {error}") from error


class VirtualTokens:
    """Keys and values of each layer, `(1, heads, v, head size)`, put before every sequence."""

    def __init__(self, layers: list[tuple[Tensor, Tensor]]) -> None:
        self.layers = layers
        self.count = int(layers[0][0].shape[2])

    def hook(self, base: PreTrainedModel) -> list[RemovableHandle]:
        """Register the hooks; removing the handles deactivates the adapter."""
        trunk: Any = base.base_model
        prepend: Callable[..., Any] = self._prepend
        self._config = base.config.get_text_config()
        return [trunk.register_forward_pre_hook(prepend, with_kwargs=True)]

    def _prepend(
        self, trunk: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Fill an empty cache with the v virtual tokens; extend the mask and shift the positions."""
        cache = kwargs.get("past_key_values")
        if cache is None:
            cache = DynamicCache(config=self._config)
        if cache.get_seq_length() == 0:
            rows = len(kwargs["input_ids"])
            for number, (keys, values) in enumerate(self.layers):
                wide = (rows, -1, -1, -1)
                cache.update(keys.expand(wide), values.expand(wide), number)
        changed: dict[str, Any] = {"past_key_values": cache}
        mask = kwargs.get("attention_mask")
        if mask is not None:  # (B, S), or (B, 1, S, S) of a packed row
            before = mask.new_ones(*mask.shape[:-1], self.count)
            changed["attention_mask"] = torch.cat([before, mask], dim=-1)
        if kwargs.get("position_ids") is not None:
            changed["position_ids"] = kwargs["position_ids"] + self.count
        return args, kwargs | changed


class IA3Factors:
    """IA3: learned factors that multiply the input features of some layers, the output of others.

    Args:
        weights: factors as PEFT stores them, `(1, in)` for an input and `(out, 1)` for an output.
    """

    def __init__(self, base: PreTrainedModel, weights: dict[str, Tensor], place: str) -> None:
        self.factors: dict[str, tuple[Tensor, bool]] = {}  # layer -> factors, whether at its input
        for key, weight in weights.items():
            name = key.removeprefix(KEY_PREFIX).removesuffix(".ia3_l")
            try:
                layer = _base_layer(base, name)
            except AttributeError as error:
                raise CheckpointError(f"{place}: this base has no layer {name}") from error
            at_input = weight.shape[0] == 1
            size = layer.in_features if at_input else layer.out_features
            if weight.numel() != size:
                raise CheckpointError(
                    f"{place}: {name} has {weight.numel()} factors, the base's layer {size} features"
                )
            self.factors[name] = (weight.flatten().to(layer.weight.device), at_input)

    def hook(self, base: PreTrainedModel) -> list[RemovableHandle]:
        """Register the hooks; removing the handles deactivates the adapter."""
        return [
            _base_layer(base, name).register_forward_pre_hook(_scale_input(factor))
            if at_input
            else _base_layer(base, name).register_forward_hook(_scale_output(factor))
            for name, (factor, at_input) in self.factors.items()
        ]


HookedAdapter = VirtualTokens | IA3Factors


def _scale_input(factor: Tensor) -> Callable[..., Any]:
    def scale(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return ((args[0].to(factor.dtype) * factor).to(args[0].dtype), *args[1:])

    return scale


def _scale_output(factor: Tensor) -> Callable[..., Any]:
    def scale(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return (output * factor).to(output.dtype)

    return scale


def _base_layer(base: PreTrainedModel, name: str) -> Any:
    """The base's own layer of this name, also if another role's LoRA layer wraps it."""
    layer = base.get_submodule(name)
    return layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer


def _cache(base: PreTrainedModel) -> DynamicCache:
    return DynamicCache(config=base.config.get_text_config())


@torch.no_grad()
def _read_embeddings(base: PreTrainedModel, states: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Keys and values that the base computes from embeddings `(v, d)` at the start of a sequence."""
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
    """Keys and values of each layer from PEFT's `(v, 2 · layers · heads · head size)`."""
    if config.prefix_projection or base.config.model_type == "gpt_bigcode":
        raise RuntimeError("a prefix with projection, or for gpt_bigcode, is not supported")
    embedding, heads = base.get_input_embeddings().weight, config.num_attention_heads
    states = states.to(embedding.device, base.dtype)
    parts = states.view(len(states), 2 * config.num_layers, heads, config.token_dim // heads)
    each = parts.permute(1, 2, 0, 3).unsqueeze(1).contiguous()  # (2 layers, 1, heads, v, size)
    return [(each[2 * i], each[2 * i + 1]) for i in range(config.num_layers)]
