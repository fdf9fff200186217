"""Adapters on disk and into memory: plain PEFT files, safetensors only, with their base's fingerprint."""

from pathlib import Path

import torch
from peft import (
    AdaLoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from toolkit.errors import CheckpointError
from toolkit.models.adalora import as_lora
from toolkit.models.fingerprint import save_fingerprint
from toolkit.runs.run import WEIGHTS_FILE

# Ways to initialise LoRA that put what they take out of the base's weights back into the adapter.
# PEFT does so again whenever such an adapter is attached, and all roles share the base.
CHANGES_THE_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")


def read_adapter(folder: Path) -> tuple[PeftConfig, dict[str, torch.Tensor]]:
    """Config and weights of an adapter on disk; safetensors only, a pickle is never opened.

    AdaLoRA is read as the LoRA that it comes to.

    Raises: CheckpointError where a file is missing or damaged or a weight is not finite.
    """
    for file in ("adapter_config.json", WEIGHTS_FILE):
        if not (folder / file).is_file():
            raise CheckpointError(f"{folder}: {file} is missing; expected a run with an adapter")
    try:
        config = PeftConfig.from_pretrained(str(folder))
        weights = load_file(folder / WEIGHTS_FILE)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder}: damaged adapter ({error})") from error
    init = getattr(config, "init_lora_weights", None)
    if isinstance(init, str) and init.lower().startswith(CHANGES_THE_BASE):
        raise CheckpointError(
            f"{folder}: its init_lora_weights is {init[:40]!r}, which would change the base's weights, "
            "and all checkpoints share them; convert it to plain LoRA with PEFT's "
            "`path_initial_model_for_weight_conversion`"
        )
    if getattr(config, "megatron_config", None):
        raise CheckpointError(
            f"{folder}: it has a `megatron_config`, for which PEFT imports a module that the adapter "
            "names; expected a plain LoRA"
        )
    # one adapter that yields NaN stops sampling for every row of a batch it shares
    bad = [k for k, v in weights.items() if not bool(torch.isfinite(v).all())]
    if bad:
        raise CheckpointError(f"{folder}: {bad[0]} holds numbers that are not finite")
    return as_lora(config, weights) if isinstance(config, AdaLoraConfig) else (config, weights)


def fill(model: PeftModel, name: str, weights: dict[str, torch.Tensor], folder: Path) -> None:
    """Put weights read from a folder into an attached adapter.

    Raises: CheckpointError where any is missing, is too many or has another shape.
    """
    try:
        expected = set(get_peft_model_state_dict(model, adapter_name=name))
    except KeyError as error:
        raise CheckpointError(
            f"{folder}: PEFT holds no adapter with `trainable_token_indices` beside one without; train "
            "the tokens in the base, or in every adapter on it"
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
    """Write one adapter at the folder's root, whatever its name in memory, and whose base it knows.

    PEFT's own `save_pretrained` would put every adapter but "default" into a folder of its name.
    AdaLoRA is written as the LoRA that it comes to.
    """
    config = model.peft_config[name]
    weights = get_peft_model_state_dict(model, adapter_name=name)
    if isinstance(config, AdaLoraConfig):
        config, weights = as_lora(config, weights)
    write_adapter(folder, config, weights)
    save_fingerprint(folder, base_fingerprint)


def write_adapter(folder: Path, config: PeftConfig, weights: dict[str, torch.Tensor]) -> None:
    """Write an adapter's weights and config as PEFT reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().cpu().contiguous() for k, v in weights.items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    inference, config.inference_mode = config.inference_mode, True
    config.save_pretrained(str(folder))
    config.inference_mode = inference
