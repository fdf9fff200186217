"""Loading the base once, in the precision and on the device that are asked for."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from toolkit.errors import CheckpointError, ConfigError
from toolkit.models.arguments import ModelArguments
from toolkit.models.tokenizer import load_tokenizer, stop_ids
from toolkit.options.config import is_local_path
from toolkit.world import resolve_base

if TYPE_CHECKING:
    from trl import ModelConfig


def load_base(
    model: "ModelConfig",
    *,
    scalar: bool = False,
    parent: str | Path | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the frozen base and its tokenizer, in the precision that `model` asks for.

    It lands on the GPU where there is one, unless `device_map` says otherwise.

    Args:
        model: TRL's ModelConfig or ours; `model_name_or_path` is a hub id, a folder, or `world:base`
            (also the default), which ships with the package.
        scalar: load it with a linear head to one scalar instead of the language-model head.
        parent: a run whose adapter is gone on from; its chat template is taken.
        trust_remote_code: run Python that comes with the model.

    Raises: CheckpointError where there is no such model or it has no usable tokenizer; ConfigError
        for options that this model cannot have.
    """
    model = ModelArguments.of(model)
    name = resolve_base(model.model_name_or_path)
    if model.model_revision != "main" and (is_local_path(name) or Path(name).is_dir()):
        raise ConfigError(
            f"model_revision: {model.model_revision} is for models of the hub; {name} is a folder"
        )
    kwargs = _how(model) | {"trust_remote_code": trust_remote_code}
    try:
        tokenizer = load_tokenizer(
            name,
            revision=model.model_revision,
            chat_template=model.chat_template,
            parent=parent,
            trust_remote_code=trust_remote_code,
        )
        if scalar:
            from trl.trainer.reward_trainer import suppress_seqcls_warning

            with suppress_seqcls_warning():
                base = AutoModelForSequenceClassification.from_pretrained(
                    name, num_labels=1, **kwargs
                )
        else:
            base = AutoModelForCausalLM.from_pretrained(name, **kwargs)
    except (OSError, ValueError, ImportError) as error:
        raise CheckpointError(
            f"{name}: cannot load the base model ({_first_line(error)}){_if_code(error)}"
        ) from error
    _refuse_several_devices(base, model.device_map)
    if "device_map" not in kwargs and torch.cuda.is_available():
        base.to("cuda")
    base.requires_grad_(False)
    _keep_backward_on_cpu(base)
    base.config.pad_token_id = tokenizer.pad_token_id
    if not scalar:
        # a hub model's own defaults (a repetition penalty, top-k) would sample from another
        # distribution than the one that is scored; only its stop tokens are kept
        base.generation_config = GenerationConfig(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=stop_ids(base, tokenizer),
            pad_token_id=tokenizer.pad_token_id,
        )
    return base, tokenizer


def _how(model: "ModelConfig") -> dict[str, Any]:
    """Precision, place and attention, for `from_pretrained`."""
    from trl import get_quantization_config

    if (model.load_in_4bit or model.load_in_8bit) and model.dtype in (None, "float32"):
        # TRL's default would make float32 the compute type of the quantized layers
        model = dataclasses.replace(model, dtype="bfloat16")
    how: dict[str, Any] = {
        "revision": model.model_revision,
        "dtype": "auto" if model.dtype in (None, "auto") else getattr(torch, model.dtype),
        "attn_implementation": model.attn_implementation,
        "use_safetensors": True,  # a pickle is never opened
    }
    quantized = get_quantization_config(model)
    if quantized is not None:
        how["quantization_config"] = quantized
        here = torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
        how["device_map"] = {"": here}
    if model.device_map is not None:
        how["device_map"] = _device_map(model.device_map)
    return how


def _refuse_several_devices(base: PreTrainedModel, asked: str | None) -> None:
    places = {str(place) for place in getattr(base, "hf_device_map", {}).values()}
    if len(places) > 1:
        raise ConfigError(
            f"device_map: {asked} spreads the base over {', '.join(sorted(places))}, but "
            "adapters are trained on one device; load it in 4 bit, or take a smaller base"
        )


def _keep_backward_on_cpu(base: PreTrainedModel) -> None:
    """Stop bitsandbytes from packing 4-bit weights for inference on a CPU with AVX512-BF16.

    Its `Linear4bit` packs them at the first pass without gradient and keeps them so; the packed
    product has no backward, so that after a rollout no gradient reaches the layers below.
    """
    for module in base.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _device_map(asked: str) -> str | dict[str, str]:
    """`auto` and its kin as they are; a device is where everything goes."""
    if asked in ("auto", "balanced", "balanced_low_0", "sequential"):
        return asked
    try:
        device = torch.device(asked)
    except RuntimeError as error:
        raise ConfigError(
            f"device_map: must be a device (cpu, cuda, cuda:1) or auto, got {asked!r}"
        ) from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device_map: {asked} is not there; {torch.cuda.device_count()} CUDA devices are"
        )
    return {"": asked}


def _if_code(error: BaseException) -> str:
    """How to go on where a model comes with Python of its own."""
    if "trust_remote_code" not in str(error):
        return ""
    return "; if you trust its code, add --trust_remote_code true to a recipe (the app runs none)"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
