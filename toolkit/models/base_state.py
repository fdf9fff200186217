"""The state of a base that must stay the same while adapters are attached and removed."""

from collections.abc import Iterable

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn


class BaseState:
    """A snapshot of a base's layers and parameters, including those that adapter layers wrap."""

    def __init__(self, base: nn.Module, adapters: Iterable[str] = ()) -> None:
        """`adapters` names the attached adapters, whose parameters are not a part of the base."""
        self._lists = {n: len(m) for n, m in base.named_modules() if isinstance(m, nn.ModuleList)}
        self._parameters = {
            id(p): (p, p._version, p.untyped_storage()._cdata)
            for name, p in base.named_parameters()
            if not set(adapters) & set(name.split("."))
        }

    def difference(self, base: nn.Module, adapters: Iterable[str] = ()) -> str | None:
        """How the base differs from this snapshot; None if it does not."""
        later = BaseState(base, adapters)
        if later._lists != self._lists:
            return "its number of layers changed"
        if later._parameters.keys() != self._parameters.keys():
            return "its parameters were replaced"
        if any(later._parameters[key][1:] != state[1:] for key, state in self._parameters.items()):
            return "a weight was written to"
        return None


def remove_adapter_layers(base: nn.Module, kept: Iterable[str] = ()) -> None:
    """Restore a base's own layers where PEFT's layers hold none of the adapters to keep.

    PEFT leaves its layers in the base when an adapter is deleted or cannot be added.
    """
    kept = set(kept)
    for name, layer in reversed(list(base.named_modules())):  # inner layers first
        is_tuner = isinstance(layer, BaseTunerLayer)
        if not is_tuner and not isinstance(layer, AuxiliaryTrainingWrapper):
            continue
        if kept & layer._get_available_adapters():
            continue
        parent, _, attribute = name.rpartition(".")
        own = layer.get_base_layer() if is_tuner else layer.original_module
        setattr(base.get_submodule(parent), attribute, own)
    if not kept:
        base.__dict__.pop("peft_config", None)
