"""Scalar heads: one linear layer from the trunk's hidden states to a scalar per token."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from toolkit.errors import CheckpointError
from toolkit.models.weight_files import save_tensors
from toolkit.runs.run import HEAD_FILE as HEAD_FILE

MAX_HEAD_BYTES = 16 << 20


class ScalarHead(nn.Module):
    """Maps hidden states `(…, d)` to scalars `(…)`, in float32 for any precision of the trunk."""

    def __init__(self, hidden_size: int, *, zero: bool = False) -> None:
        """Start with weights of std 1/√(d+1) (Ziegler et al. 2019, arXiv:1909.08593) or zeros."""
        super().__init__()
        std = 0.0 if zero else (hidden_size + 1) ** -0.5
        self.weight = nn.Parameter(torch.randn(1, hidden_size) * std)
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, hidden: Tensor) -> Tensor:
        """Scalars `(…)` for hidden states `(…, d)`."""
        with torch.autocast(hidden.device.type, enabled=False):  # autocast would use bfloat16
            return nn.functional.linear(hidden.float(), self.weight, self.bias).squeeze(-1)

    def save(self, folder: Path) -> None:
        """Write `head.safetensors`: weight `(1, d)` and bias `(1,)`, float32."""
        tensors = {name: tensor.float() for name, tensor in self.state_dict().items()}
        save_tensors(tensors, folder / HEAD_FILE)

    @classmethod
    def load(cls, folder: Path) -> "ScalarHead":
        """Read `head.safetensors`.

        Raises: CheckpointError if it is missing, damaged or not finite.
        """
        file = folder / HEAD_FILE
        if not file.is_file():
            raise CheckpointError(
                f"{folder}: {HEAD_FILE} is missing; a reward or value role needs a head beside its "
                "adapter (the recipes `reward` and `ppo` write one)"
            )
        if file.stat().st_size > MAX_HEAD_BYTES:
            raise CheckpointError(
                f"{file}: has {file.stat().st_size} bytes, too many for one linear head"
            )
        try:
            tensors = load_file(file)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file}: damaged ({error})") from error
        shapes = {k: tuple(v.shape) for k, v in tensors.items()}
        size = shapes.get("weight", (1, 0))[-1]
        if shapes != {"weight": (1, size), "bias": (1,)}:
            raise CheckpointError(f"{file}: expected weight (1, d) and bias (1,), got {shapes}")
        if not all(bool(torch.isfinite(t).all()) for t in tensors.values()):
            raise CheckpointError(f"{file}: has values that are not finite; use another run")
        head = cls(size)
        head.load_state_dict(tensors)
        return head
