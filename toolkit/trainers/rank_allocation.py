"""AdaLoRA while it trains: the budget of ranks is allocated after every step.

Source: Zhang et al. 2023, arXiv:2303.10512.
"""

from typing import Any

import torch
from peft import AdaLoraModel, PeftModel
from torch import Tensor, nn
from transformers import (
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from toolkit.errors import ConfigError

WARMUP, FINAL = 0.1, 0.3  # shares of the steps before ranks are taken away, and after


class RankAllocation(TrainerCallback):  # type: ignore[misc]
    """Tells AdaLoRA how many steps there are, and lets it prune while the gradients are there."""

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **_: Any,
    ) -> None:
        """Fit the schedule to the run."""
        tuner = _tuner(model)
        assert tuner is not None
        config = tuner.peft_config[tuner.trainable_adapter_name]
        if state.max_steps < 2:
            raise ConfigError(
                f"adalora weighs ranks by their gradients before it prunes: {state.max_steps} steps are "
                "too few, train for 2 or more"
            )
        config.total_step = state.max_steps
        config.tinit = int(WARMUP * state.max_steps)
        config.tfinal = int(FINAL * state.max_steps)

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **_: Any,
    ) -> None:
        """The importance of each triplet, from the weights after the step and its gradients."""
        tuner = _tuner(model)
        assert tuner is not None
        tuner.update_and_allocate(state.global_step + 1)  # counted after this call


def orthogonality(model: nn.Module) -> Tensor | None:
    """AdaLoRA's weighted mean of ‖AA' − I‖ and ‖B'B − I‖ over the matrices; None for others.

    Source: eq. 4 of the paper; PEFT's `AdaLoraModel.forward`, which does the same.
    """
    tuner = _tuner(model)
    if tuner is None:
        return None
    name = tuner.trainable_adapter_name
    terms = []
    for key, p in tuner.model.named_parameters():
        for part, left in ((f"lora_A.{name}", True), (f"lora_B.{name}", False)):
            if key.endswith(part):
                square = p @ p.T if left else p.T @ p
                terms.append(torch.linalg.norm(square - torch.eye(len(square), device=p.device)))
    weight: float = tuner.peft_config[name].orth_reg_weight
    return weight * torch.stack(terms).mean()


def _tuner(model: nn.Module | None) -> Any:
    tuner = model.base_model if isinstance(model, PeftModel) else None
    return tuner if isinstance(tuner, AdaLoraModel) else None
