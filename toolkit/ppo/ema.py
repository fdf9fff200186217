"""An exponential moving average of the policy's adapter, over the optimizer steps."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from toolkit.errors import CheckpointError
from toolkit.models.roles import POLICY, Roles, belongs_to
from toolkit.models.weight_files import save_tensors

EMA_FILE, LAST = "ema.safetensors", "last"


class PolicyEMA(TrainerCallback):  # type: ignore[misc]
    """Averages the policy's trainable tensors in float32 after every optimizer step.

    The weight of step k after t steps is (1 − d)·d^(t−k) / (1 − d^t). The denominator is the bias
    correction, as in Adam: without it, the average of a short run would mostly be the initial adapter.

    Args:
        roles: roles with a trainable policy.
        decay: d, between 0 and 1; the average covers about the last 1 / (1 − d) steps.
    """

    def __init__(self, roles: Roles, decay: float) -> None:
        assert roles.model is not None
        self.decay = decay
        self.parameters: dict[str, nn.Parameter] = {
            name: p
            for name, p in roles.model.named_parameters()
            if p.requires_grad and belongs_to(name, POLICY)
        }
        self.average = {
            name: p.detach().to(torch.float32, copy=True) for name, p in self.parameters.items()
        }

    @torch.no_grad()
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Update the average; after the first step it equals the policy."""
        share = (1 - self.decay) / (1 - self.decay**state.global_step)
        for name, parameter in self.parameters.items():
            self.average[name].lerp_(parameter.float(), share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside the block the policy has the averaged weights; afterwards it has its own again."""
        own = {name: p.detach().clone() for name, p in self.parameters.items()}
        try:
            self._copy_to_policy(self.average)
            yield
        finally:
            self._copy_to_policy(own)

    @torch.no_grad()
    def _copy_to_policy(self, weights: dict[str, torch.Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(weights[name])

    def __str__(self) -> str:
        return (
            f"the adapter is an average of the policy (ema_decay {self.decay}); "
            f"{LAST}/ holds the policy itself"
        )

    def save(self, folder: Path) -> None:
        """Write the average in float32."""
        save_tensors(self.average, folder / EMA_FILE)

    def load(self, folder: Path) -> None:
        """Load the average from a checkpoint.

        Raises: CheckpointError if the checkpoint has no average, or one of another adapter.
        """
        file = folder / EMA_FILE
        try:
            saved = load_file(file)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{file}: cannot be read ({error}); a run with `ema_decay` resumes only from the "
                "checkpoints of a run with `ema_decay`"
            ) from error
        shapes = [{n: t.shape for n, t in tensors.items()} for tensors in (saved, self.average)]
        if shapes[0] != shapes[1]:
            raise CheckpointError(f"{file}: does not fit the policy's adapter; resume with its run")
        for name, tensor in self.average.items():
            tensor.copy_(saved[name])


def averaged_policy(ema: PolicyEMA | None) -> AbstractContextManager[None]:
    """Inside the block the policy has its averaged weights; if `ema` is None, nothing changes."""
    return nullcontext() if ema is None else ema.in_place()
