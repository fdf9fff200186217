"""Precision and device of a base: options of `from_pretrained`, and checks of a stored quantization."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING, AutoHfQuantizer

from toolkit.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from trl import ModelConfig

BITSANDBYTES = "bitsandbytes"
WITH_ADAPTERS = (
    BITSANDBYTES,
    "gptq",
    "awq",
    "aqlm",
    "eetq",
    "hqq",
    "torchao",
)  # PEFT has layers for them


def check_stored_quantization(config: Mapping[str, Any], model: "ModelConfig", name: str) -> None:
    """Check that adapters can be trained on weights that are stored quantized.

    Args:
        config: the content of the base's config.json.
        name: the base.

    Raises: CheckpointError for a method that transformers would ignore, or whose layers pass no
        gradients; ConfigError for an option that quantizes the weights again.
    """
    text = config.get("text_config")
    text = text if isinstance(text, Mapping) else {}
    stored = config.get("quantization_config") or text.get("quantization_config")
    if not stored:
        return
    bits = next((b for b in ("4bit", "8bit") if stored.get(f"load_in_{b}")), None)
    method = BITSANDBYTES if bits else str(stored.get("quant_method", "an unnamed method"))
    problem = None
    if f"{method}_{bits}" not in AUTO_QUANTIZER_MAPPING and method not in AUTO_QUANTIZER_MAPPING:
        problem = "which transformers does not support"
    elif not _passes_gradients(dict(stored)):
        problem = "whose layers pass no gradients to adapters"
    if problem is not None:
        raise CheckpointError(
            f"{name}: its config.json stores weights quantized with {method}, {problem}; use the "
            f"unquantized model, or one quantized with {', '.join(WITH_ADAPTERS)}"
        )
    for option in ("load_in_4bit", "load_in_8bit"):
        if getattr(model, option) and option != f"load_in_{bits}":
            raise ConfigError(
                f"{option}: the weights of {name} are already stored quantized with {method}"
                f"{f' in {bits}' if bits else ''}; remove the option"
            )


def _passes_gradients(stored: dict[str, Any]) -> bool:
    """Whether gradients reach an adapter through layers of this quantization, as far as is known."""
    try:
        quantizer: Any = AutoHfQuantizer.from_config(stored, pre_quantized=True)
        # a device without support for the method gets unquantized weights
        return bool(quantizer.is_trainable) or hasattr(quantizer.quantization_config, "dequantize")
    except Exception:  # a package is missing or a value is damaged, which loading reports
        return True


def loading_options(model: "ModelConfig") -> dict[str, Any]:
    """The options of precision, device and attention as keyword arguments of `from_pretrained`."""
    from trl import get_quantization_config

    if (model.load_in_4bit or model.load_in_8bit) and model.dtype in (None, "float32"):
        # TRL's default would make float32 the compute type of the quantized layers
        model = dataclasses.replace(model, dtype="bfloat16")
    options: dict[str, Any] = {
        "revision": model.model_revision,
        "dtype": "auto" if model.dtype in (None, "auto") else getattr(torch, model.dtype),
        "attn_implementation": model.attn_implementation,
        "use_safetensors": True,  # a pickle is never opened
    }
    quantized = get_quantization_config(model)
    if quantized is not None:
        options["quantization_config"] = quantized
        device = torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
        options["device_map"] = {"": device}
    if model.device_map is not None:
        options["device_map"] = _device_map(model.device_map)
    return options


def _device_map(option: str) -> str | dict[str, str]:
    """transformers' `device_map` for an option: `auto` (or a variant), or one device."""
    if option in ("auto", "balanced", "balanced_low_0", "sequential"):
        return option
    try:
        device = torch.device(option)
    except RuntimeError as error:
        raise ConfigError(
            f"device_map: must be a device (cpu, cuda, cuda:1) or auto, got {option!r}"
        ) from error
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigError(
            f"device_map: {option} is not available: this machine has {count} CUDA devices"
        )
    return {"": option}


def keep_backward_on_cpu(base: PreTrainedModel) -> None:
    """Stop bitsandbytes from packing 4-bit weights for inference on a CPU with AVX512-BF16.

    `Linear4bit` packs its weights in the first pass without gradients and keeps them packed. The
    packed product has no backward, so after a rollout no gradient would reach earlier layers.
    """
    for module in base.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
