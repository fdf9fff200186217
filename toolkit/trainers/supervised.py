"""TRL's trainers for SFT, DPO and KTO, with complete checkpoints and every kind of adapter."""

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import AdaLoraModel, PeftModel, PromptTuningConfig
from torch import Tensor, nn
from transformers import TrainerCallback
from trl import DPOTrainer as TrlDPOTrainer
from trl import KTOTrainer as TrlKTOTrainer
from trl import SFTTrainer as TrlSFTTrainer

from toolkit.errors import ConfigError
from toolkit.models.adapters import fill, read_adapter
from toolkit.models.roles import POLICY, REFERENCE
from toolkit.trainers.checkpoints import WholeCheckpoints
from toolkit.trainers.row_tokenizer import SharedEncoding
from toolkit.trainers.weighted_evaluation import OTHERS, WeightedEvaluation

ADALORA_WARMUP, ADALORA_FINAL = 0.1, 0.3  # shares of the steps before and after pruning


class _Supervised(WeightedEvaluation, SharedEncoding, WholeCheckpoints):
    """Tokenizes rows as all recipes do; can resume virtual tokens, which PEFT alone cannot."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        adapted: Any = self.model if model is None else model
        if not (isinstance(adapted, PeftModel) and adapted.active_peft_config.is_prompt_learning):
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
            return
        for name in adapted.peft_config:
            folder = Path(resume_from_checkpoint) / ("" if name == POLICY else name)
            fill(adapted, name, read_adapter(folder)[1], folder)


class SFTTrainer(_Supervised, TrlSFTTrainer):  # type: ignore[misc]
    """TRL's SFTTrainer with complete checkpoints; trains AdaLoRA as in its paper."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if adalora(self.model) is not None:
            self.add_callback(RankAllocation())

    def batch_weights(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """All metrics are means over the tokens that carry a loss."""
        config = getattr(self.model, "active_peft_config", None)
        first = 0 if isinstance(config, PromptTuningConfig) else 1  # virtual tokens predict token 0
        return {OTHERS: (inputs["labels"][:, first:] != -100).sum()}

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """TRL's loss plus AdaLoRA's orthogonality term, which TRL would leave out."""
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        term = orthogonality(self.model) if model.training else None
        if term is None:
            return result
        loss = (result[0] if return_outputs else result) + term / (
            self.current_gradient_accumulation_steps if num_items_in_batch is not None else 1
        )
        return (loss, result[1]) if return_outputs else loss


class WithReference:
    """Mixin for TRL trainers: the reference adapter is an exact, frozen copy of the policy's."""

    def __init__(self, model: PeftModel, **kwargs: Any) -> None:
        with warnings.catch_warnings():
            # PEFT warns since "ref" is a part of "prefix_tuning_", which no key contains
            warnings.filterwarnings("ignore", "Adapter name 'ref' should not be contained")
            super().__init__(model, **kwargs)  # type: ignore[call-arg]
            if (
                REFERENCE not in model.peft_config
            ):  # GRPO with a `beta` of 0; evaluations measure a KL
                model.add_adapter(REFERENCE, model.peft_config[POLICY])
                model.set_adapter(POLICY)
        _copy_to_reference(model)


class DPOTrainer(WithReference, _Supervised, TrlDPOTrainer):  # type: ignore[misc]
    """TRL's DPOTrainer with complete checkpoints."""

    def batch_weights(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Pairs, or the tokens of their completions."""
        chosen, rejected = inputs["completion_mask"].chunk(2)
        return {OTHERS: len(chosen)} | _token_weights(chosen, rejected)


class KTOTrainer(WithReference, _Supervised, TrlKTOTrainer):  # type: ignore[misc]
    """TRL's KTOTrainer with complete checkpoints."""

    def batch_weights(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Rows of a label, or the tokens of their completions."""
        mask, good = inputs["completion_mask"], torch.as_tensor(inputs["label"]).bool()
        sides = {"chosen": good.sum(), "rejected": (~good).sum()}
        rows = {f"{name}/{side}": n for side, n in sides.items() for name in ("rewards", "logps")}
        return {OTHERS: len(good)} | rows | _token_weights(mask[good], mask[~good])


def _token_weights(chosen: Tensor, rejected: Tensor) -> dict[str, Any]:
    """The tokens of the metrics that are means over tokens, from the masks of the completions."""
    tokens = {"chosen": chosen[:, 1:].sum(), "rejected": rejected[:, 1:].sum()}
    return {
        "entropy": tokens["chosen"] + tokens["rejected"],
        "mean_token_accuracy": tokens["chosen"],  # DPO only
        "logits/chosen": tokens["chosen"],
        "logits/rejected": tokens["rejected"],
    }


@torch.no_grad()
def _copy_to_reference(model: PeftModel) -> None:
    """Copy the policy's adapter to `ref` and freeze the copy.

    TRL copies parameters with `.default.` in their names. IA3's names end in `.default`, so IA3's reference
    would silently be the bare base. PEFT would leave virtual tokens of `ref` trainable.
    """
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    for name, parameter in parameters.items():
        if f".{POLICY}." in f"{name}.":
            copy = parameters[f"{name}.".replace(f".{POLICY}.", f".{REFERENCE}.")[:-1]]
            copy.data.copy_(parameter.data)
            copy.requires_grad_(False)


class RankAllocation(TrainerCallback):  # type: ignore[misc]
    """Fits AdaLoRA's schedule to the number of steps and prunes ranks after every step.

    Source: Zhang et al. 2023, arXiv:2303.10512.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        """Set the schedule.

        Raises: ConfigError if the training has only one step.
        """
        tuner = adalora(model)
        config = tuner.peft_config[tuner.trainable_adapter_name]
        if state.max_steps < 2:
            raise ConfigError(
                f"peft_method adalora: AdaLoRA needs a step's gradients before it can prune ranks, but "
                f"this training has {state.max_steps} step; train for 2 or more steps"
            )
        config.total_step = state.max_steps
        config.tinit = int(ADALORA_WARMUP * state.max_steps)
        config.tfinal = int(ADALORA_FINAL * state.max_steps)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        """Update each triplet's importance from the updated weights and their gradients; prune."""
        adalora(model).update_and_allocate(state.global_step + 1)  # the step is counted after this


def orthogonality(model: nn.Module) -> Tensor | None:
    """AdaLoRA's weighted mean of ‖AA' − I‖ and ‖B'B − I‖ over the matrices; None for other adapters.

    Source: eq. 4 of the paper; PEFT's `AdaLoraModel.forward` computes the same.
    """
    tuner = adalora(model)
    if tuner is None:
        return None
    name = tuner.trainable_adapter_name
    terms = []
    for key, p in tuner.model.named_parameters():
        if key.endswith((f"lora_A.{name}", f"lora_B.{name}")):
            square = p @ p.T if f"lora_A.{name}" in key else p.T @ p
            terms.append(torch.linalg.norm(square - torch.eye(len(square), device=p.device)))
    weight: float = tuner.peft_config[name].orth_reg_weight
    return weight * torch.stack(terms).mean()


def adalora(model: nn.Module | None) -> Any:
    """PEFT's AdaLoraModel inside a model, or None for other adapters."""
    tuner = model.base_model if isinstance(model, PeftModel) else None
    return tuner if isinstance(tuner, AdaLoraModel) else None
