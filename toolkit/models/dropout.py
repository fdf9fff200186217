"""Switching off what a model adds at random while it trains: dropout, dropped layers, jittered routers."""

from typing import Any

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

RANDOM = ("dropout", "layerdrop", "jitter")  # in the names of rates


def disable_dropout(model: nn.Module) -> None:
    """Set every such rate in a model to zero, for as long as the model lives.

    Llama-like attention has no `nn.Dropout`: it reads its own `attention_dropout` while it trains.
    Falcon reads its rates from its config, OPT drops layers, and Mixtral jitters its routers.
    """
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        _to_zero(module)
        config = vars(module).get("config")
        if hasattr(config, "__dict__"):
            _to_zero(config)


def _to_zero(holder: Any) -> None:
    for name, value in list(vars(holder).items()):
        if isinstance(value, float) and any(word in name for word in RANDOM):
            setattr(holder, name, 0.0)
