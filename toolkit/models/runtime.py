"""Changes to a loaded model and its process: disable dropout, return freed memory."""

import ctypes
import sys
from typing import Any

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

RANDOM = ("dropout", "layerdrop", "jitter")  # parts of the names of rates


def disable_dropout(model: nn.Module) -> None:
    """Permanently set all rates of dropout, dropped layers and router noise in a model to zero.

    Llama-like attention has no `nn.Dropout` and reads its own `attention_dropout`. Falcon reads its
    rates from its config, OPT drops layers, and Mixtral adds noise to its routers.
    """
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        _zero_rates(module)
        config = vars(module).get("config")
        if hasattr(config, "__dict__"):
            _zero_rates(config)


def _zero_rates(holder: Any) -> None:
    for name, value in list(vars(holder).items()):
        if isinstance(value, float) and any(word in name for word in RANDOM):
            setattr(holder, name, 0.0)


def release_memory() -> None:
    """Return freed memory from the allocator to the system, in a few milliseconds.

    A rollout's caches and an update's activations differ in size. Without this call, glibc and
    PyTorch's CUDA allocator keep the memory of one phase in pieces that the other phase cannot use.
    On other systems this function does nothing.
    """
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
