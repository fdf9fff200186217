"""Switching dropout off: also where a layer keeps its rate as a number and not as a module."""

from torch import nn
from torch.nn.modules.dropout import _DropoutNd


def disable_dropout(model: nn.Module) -> None:
    """Set every rate of dropout in a model to zero, for as long as the model lives.

    Llama-like attention has no `nn.Dropout`: it reads its own `attention_dropout` while it trains.
    """
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
