"""An exponential moving average of the policy's adapter, over the optimizer steps."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from toolkit.errors import CheckpointError
from toolkit.models.roles import POLICY, Roles, belongs_to

EMA_FILE, LAST = "ema.safetensors", "last"


class PolicyEMA(TrainerCallback):  # type: ignore[misc]
    """Averages the policy's trainable tensors in float32 after every optimizer step.

    The weight of step k after t steps is (1 − d)·d^(t−k) / (1 − d^t): without the denominator,
    which is Adam's correction, a short run's average would mostly be the adapter it started from.

    Args:
        roles: with the policy attached as trainable.
        decay: d, between 0 and 1; about the last 1 / (1 − d) steps count.
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
        """Move the average towards the policy; after the first step it is the policy."""
        share = (1 - self.decay) / (1 - self.decay**state.global_step)
        for name, parameter in self.parameters.items():
            self.average[name].lerp_(parameter.float(), share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The policy has the averaged weights inside, and its own again afterwards, to the bit."""
        own = {name: p.detach().clone() for name, p in self.parameters.items()}
        try:
            self._fill(self.average)
            yield
        finally:
            self._fill(own)

    @torch.no_grad()
    def _fill(self, weights: dict[str, torch.Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(weights[name])

    def __str__(self) -> str:
        return (
            f"the adapter is the policy's average (ema_decay {self.decay}); "
            f"{LAST}/ holds the policy that it follows"
        )

    def save(self, folder: Path) -> None:
        """Write the average in float32."""
        save_file(
            {name: t.cpu().contiguous() for name, t in self.average.items()}, folder / EMA_FILE
        )

    def load(self, folder: Path) -> None:
        """Take up the average that a checkpoint holds.

        Raises: CheckpointError where it has none, or that of another adapter.
        """
        file = folder / EMA_FILE
        try:
            saved = load_file(file)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{file}: cannot be read ({error}); a run with `ema_decay` resumes from checkpoints "
                "of a run that had it"
            ) from error
        shapes = [{n: t.shape for n, t in tensors.items()} for tensors in (saved, self.average)]
        if shapes[0] != shapes[1]:
            raise CheckpointError(f"{file}: does not fit the policy's adapter")
        for name, tensor in self.average.items():
            tensor.copy_(saved[name])
