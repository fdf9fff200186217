"""What must not change about a base while adapters are attached to it and removed."""

from collections.abc import Iterable

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn


class BaseState:
    """The layers and parameters of a base at one moment, also inside the layers of adapters."""

    def __init__(self, base: nn.Module, adapters: Iterable[str] = ()) -> None:
        """`adapters` are attached; their own parameters are not a part of the base."""
        self._lists = {n: len(m) for n, m in base.named_modules() if isinstance(m, nn.ModuleList)}
        self._parameters = {
            id(p): (p, p._version, p.untyped_storage()._cdata)
            for name, p in base.named_parameters()
            if not set(adapters) & set(name.split("."))
        }

    def difference(self, base: nn.Module, adapters: Iterable[str] = ()) -> str | None:
        """How the base differs from this state, or None."""
        later = BaseState(base, adapters)
        if later._lists != self._lists:
            return "its number of layers is another"
        if later._parameters.keys() != self._parameters.keys():
            return "it has other parameters"
        if any(later._parameters[key][1:] != state[1:] for key, state in self._parameters.items()):
            return "a weight was written to"
        return None


def remove_adapter_layers(base: nn.Module) -> None:
    """Put a base's own layers back in the place of PEFT's, which a failed first adapter left there."""
    for name, layer in list(base.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            own = layer.get_base_layer()
        elif isinstance(layer, AuxiliaryTrainingWrapper):
            own = layer.original_module
        else:
            continue
        parent, _, attribute = name.rpartition(".")
        setattr(base.get_submodule(parent), attribute, own)
    base.__dict__.pop("peft_config", None)
