"""TRL's trainers for SFT, DPO and KTO, with checkpoints that are whole or not there, for any adapter."""

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from trl import DPOTrainer as TrlDPOTrainer
from trl import KTOTrainer as TrlKTOTrainer
from trl import SFTTrainer as TrlSFTTrainer

from toolkit.models.adapters import fill, read_adapter
from toolkit.models.roles import POLICY, REFERENCE
from toolkit.trainers.checkpoints import WholeCheckpoints
from toolkit.trainers.rank_allocation import orthogonality


class _AnyAdapter(WholeCheckpoints):
    """Resumes virtual tokens, which PEFT will not load to train."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        adapted: Any = self.model if model is None else model  # type: ignore[attr-defined]
        if not (isinstance(adapted, PeftModel) and adapted.active_peft_config.is_prompt_learning):
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
            return
        for name in adapted.peft_config:
            folder = Path(resume_from_checkpoint) / ("" if name == POLICY else name)
            fill(adapted, name, read_adapter(folder)[1], folder)


class SFTTrainer(_AnyAdapter, TrlSFTTrainer):  # type: ignore[misc]
    """TRL's SFTTrainer; see `WholeCheckpoints`."""

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """TRL's, and AdaLoRA's term beside it: PEFT adds that to a loss that TRL does not read."""
        found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        term = orthogonality(self.model) if model.training else None
        if term is None:
            return found
        loss = (found[0] if return_outputs else found) + term / (
            self.current_gradient_accumulation_steps if num_items_in_batch is not None else 1
        )
        return (loss, found[1]) if return_outputs else loss


class _AgainstReference(_AnyAdapter):
    """Before a TRL trainer that puts a reference beside the policy's adapter: makes it a true copy."""

    def __init__(self, model: PeftModel, **kwargs: Any) -> None:
        with warnings.catch_warnings():
            # "ref" is a part of "prefix_tuning_", the key of no weight of ours
            warnings.filterwarnings("ignore", "Adapter name 'ref' should not be contained")
            super().__init__(model, **kwargs)
        _copy_to_reference(model)


class DPOTrainer(_AgainstReference, TrlDPOTrainer):  # type: ignore[misc]
    """TRL's DPOTrainer; see `WholeCheckpoints`."""


class KTOTrainer(_AgainstReference, TrlKTOTrainer):  # type: ignore[misc]
    """TRL's KTOTrainer; see `WholeCheckpoints`."""


@torch.no_grad()
def _copy_to_reference(model: PeftModel) -> None:
    """Make `ref` the policy's copy, frozen.

    TRL copies what has `.default.` inside its name, and so leaves IA3's factors, which end in
    `.default`, as they were made: a reference that is the bare base, without a word. What PEFT adds
    for virtual tokens can be trained.
    """
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    for name, parameter in parameters.items():
        if f".{POLICY}." in f"{name}.":
            copy = parameters[f"{name}.".replace(f".{POLICY}.", f".{REFERENCE}.")[:-1]]
            copy.data.copy_(parameter.data)
            copy.requires_grad_(False)
