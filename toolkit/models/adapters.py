"""Read and write adapters: PEFT's files, safetensors only, with the fingerprint of their base."""

from pathlib import Path

import torch
from peft import (
    AdaLoraConfig,
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from toolkit.errors import CheckpointError
from toolkit.models.adapter_config import KEY_PREFIX, read_config
from toolkit.models.base import save_fingerprint
from toolkit.models.weight_files import save_tensors
from toolkit.runs.integrity import too_large
from toolkit.runs.parents import require_unchanged
from toolkit.runs.run import WEIGHTS_FILE

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def read_adapter(folder: Path) -> tuple[PeftConfig, dict[str, Tensor]]:
    """Config and weights of an adapter on disk; AdaLoRA is converted to LoRA.

    Only safetensors are read; a pickle is never opened.

    Raises: CheckpointError if a file is missing, damaged or changed, if a weight is not finite or not
        of `DTYPES`, or if `read_config` raises it.
    """
    for file in ("adapter_config.json", WEIGHTS_FILE):
        if not (folder / file).is_file():
            raise CheckpointError(f"{folder}: {file} is missing; expected a run with an adapter")
    reason = too_large(folder / WEIGHTS_FILE)
    if reason is not None:
        raise CheckpointError(f"{folder}: {reason}")
    config = read_config(folder)
    try:
        weights = load_file(folder / WEIGHTS_FILE)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder}: damaged adapter ({error})") from error
    for key, weight in weights.items():
        if weight.dtype not in DTYPES:
            raise CheckpointError(
                f"{folder}: {key} is stored as {weight.dtype}, expected one of "
                f"{', '.join(map(str, DTYPES))}; convert the adapter"
            )
        # a single adapter with NaN stops sampling for every row of a mixed batch
        if not bool(torch.isfinite(weight.float()).all()):
            raise CheckpointError(f"{folder}: {key} is not finite; use another run")
    require_unchanged(folder)
    return as_lora(config, weights) if isinstance(config, AdaLoraConfig) else (config, weights)


def fill(model: PeftModel, name: str, weights: dict[str, Tensor], folder: Path) -> None:
    """Copy weights read from a folder into an attached adapter.

    Raises: CheckpointError where a weight is missing, unexpected or of another shape.
    """
    try:
        expected = set(get_peft_model_state_dict(model, adapter_name=name))
    except KeyError as error:
        raise CheckpointError(
            f"{folder}: PEFT cannot attach adapters with and without `trainable_token_indices` to "
            "one base; train the tokens in the base, or in each of the adapters"
        ) from error
    if expected != set(weights):
        missing, extra = sorted(expected - set(weights)), sorted(set(weights) - expected)
        raise CheckpointError(
            f"{folder}: the adapter's weights do not fit this base; "
            f"missing {missing[:2]}, not expected {extra[:2]}"
        )
    try:
        set_peft_model_state_dict(model, weights, adapter_name=name)
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{folder}: the adapter does not fit this base: {detail}") from error


def save_adapter(
    model: PeftModel, folder: Path, base_fingerprint: dict[str, str], *, name: str = "default"
) -> None:
    """Write one adapter, and its base's fingerprint, into the folder; AdaLoRA is written as LoRA.

    PEFT's `save_pretrained` would put every adapter except "default" into a subfolder.
    """
    config = model.peft_config[name]
    weights = get_peft_model_state_dict(model, adapter_name=name)
    if isinstance(config, AdaLoraConfig):
        config, weights = as_lora(config, weights)
    write_adapter(folder, config, weights)
    save_fingerprint(folder, base_fingerprint)


def write_adapter(folder: Path, config: PeftConfig, weights: dict[str, Tensor]) -> None:
    """Write an adapter's weights and config in PEFT's format."""
    folder.mkdir(parents=True, exist_ok=True)
    sort_sets(config)
    save_tensors(weights, folder / WEIGHTS_FILE)
    inference, config.inference_mode = config.inference_mode, True
    config.save_pretrained(str(folder))
    config.inference_mode = inference


def sort_sets(config: PeftConfig) -> None:
    """Turn sets, such as `target_modules`, into sorted lists: a set's order varies by run."""
    for name, value in vars(config).items():
        if isinstance(value, set):
            setattr(config, name, sorted(value))


def as_lora(
    config: AdaLoraConfig, weights: dict[str, Tensor]
) -> tuple[LoraConfig, dict[str, Tensor]]:
    """Convert a trained AdaLoRA adapter, without loss, to a LoRA with one rank per matrix.

    AdaLoRA learns B·diag(E)·A and prunes triplets, so it equals the LoRA B·(diag(E)·A). All roles,
    vLLM and merging support this LoRA. A matrix without triplets gets no adapter.

    Args:
        config, weights: config and weights of the adapter, as PEFT saves them.

    Raises: CheckpointError if all triplets of all matrices are pruned.
    """
    # PEFT divides by the initial rank plus 1e-5, not by the remaining one
    scale = (config.lora_alpha if config.lora_alpha > 0 else config.init_r) / (config.init_r + 1e-5)
    converted: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for key, weight in weights.items():
        layer, _, part = key.rpartition(".")
        if part in ("lora_B", "lora_E"):
            continue
        if part != "lora_A":
            converted[key] = weight  # a layer that is saved whole
            continue
        right = (scale * weights[f"{layer}.lora_E"] * weight).float()  # (r, in)
        left = weights[f"{layer}.lora_B"].float()  # (out, r)
        kept = (right.norm(dim=1) * left.norm(dim=0)) > 0
        if not bool(kept.any()):
            continue
        right, left = right[kept], left[:, kept]
        # equal norms, so that further training moves both alike
        balance = (left.norm(dim=0) / right.norm(dim=1)).sqrt()
        converted[f"{layer}.lora_A.weight"] = (right * balance.unsqueeze(1)).contiguous()
        converted[f"{layer}.lora_B.weight"] = (left / balance).contiguous()
        ranks[layer.removeprefix(KEY_PREFIX)] = int(kept.sum())
    if not ranks:
        raise CheckpointError("this AdaLoRA adapter has rank 0 in every matrix; train it longer")
    most = max(ranks.values())
    lora = LoraConfig(
        task_type=config.task_type,
        base_model_name_or_path=config.base_model_name_or_path,
        revision=config.revision,
        r=most,
        lora_alpha=most,
        rank_pattern=dict(ranks),
        alpha_pattern=dict(ranks),  # alpha / r = 1 everywhere
        lora_dropout=config.lora_dropout,
        target_modules=sorted(ranks),
        modules_to_save=config.modules_to_save,
        inference_mode=config.inference_mode,
    )
    return lora, converted
