"""A trained AdaLoRA adapter as LoRA with a rank of its own per matrix: the same product, exactly.

AdaLoRA learns B·diag(E)·A and prunes triplets. Once it is trained that is B·(diag(E)·A), a LoRA,
which every role, vLLM and merging know.
"""

from peft import AdaLoraConfig, LoraConfig
from torch import Tensor

from toolkit.errors import CheckpointError

_PREFIX = "base_model.model."


def as_lora(
    config: AdaLoraConfig, weights: dict[str, Tensor]
) -> tuple[LoraConfig, dict[str, Tensor]]:
    """Config and weights, as PEFT saves them, of the same adapter as LoRA.

    A matrix that lost all its triplets has no adapter any more.

    Raises: CheckpointError where no matrix has any left.
    """
    # PEFT divides by the initial rank plus 1e-5, whatever is left of it
    scale = (config.lora_alpha if config.lora_alpha > 0 else config.init_r) / (config.init_r + 1e-5)
    found: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for key, low in weights.items():
        layer, _, part = key.rpartition(".")
        if part in ("lora_B", "lora_E"):
            continue
        if part != "lora_A":
            found[key] = low  # a layer that is saved whole
            continue
        right = (scale * weights[f"{layer}.lora_E"] * low).float()  # (r, in)
        left = weights[f"{layer}.lora_B"].float()  # (out, r)
        kept = (right.norm(dim=1) * left.norm(dim=0)) > 0
        if not bool(kept.any()):
            continue
        right, left = right[kept], left[:, kept]
        # of equal size, so that an optimizer that goes on moves both alike
        even = (left.norm(dim=0) / right.norm(dim=1)).sqrt()
        found[f"{layer}.lora_A.weight"] = right * even.unsqueeze(1)
        found[f"{layer}.lora_B.weight"] = left / even
        ranks[layer.removeprefix(_PREFIX)] = int(kept.sum())
    if not ranks:
        raise CheckpointError(
            "this AdaLoRA adapter has no rank left in any matrix; train it longer"
        )
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
    return lora, {k: v.contiguous() for k, v in found.items()}
