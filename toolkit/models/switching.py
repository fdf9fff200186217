"""Which adapter of a model is active, changed without a change of what is trainable."""

from collections.abc import Iterator
from contextlib import contextmanager

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn


class Switch:
    """Activates one adapter of a model, or none, and touches nothing else.

    PEFT's `set_adapter` walks all modules and every `requires_grad`: 5 ms where a pass takes 80. Its
    layers' own two attributes are all that a forward pass reads.

    `layers` are those that adapters live in; `plain` says whether the short way will do, which it
    does not for `modules_to_save` and trainable tokens; `bare` whether no adapter is active.
    """

    def __init__(self) -> None:
        self.bare = False
        self.index(None)

    def index(self, model: PeftModel | None) -> None:
        """Note the layers that adapters live in, after one came or went."""
        self.model = model
        modules = [] if model is None else list(model.modules())
        self.layers = [m for m in modules if isinstance(m, BaseTunerLayer)]
        self.plain = not any(isinstance(m, AuxiliaryTrainingWrapper) for m in modules)

    def activate(self, name: str, *, bare: bool) -> None:
        """Make an adapter the active one; with `bare` it is, and is disabled."""
        assert self.model is not None
        if not self.plain:
            self._by_peft(self.model, name, bare=bare)
        for layer in self.layers:
            layer._active_adapter = [name]
            layer._disable_adapters = bare
        self.model.active_adapter = self.model.base_model.active_adapter = name
        self.bare = bare

    def _by_peft(self, model: PeftModel, name: str, *, bare: bool) -> None:
        with same_trainable(model):
            if self.bare:
                model.base_model.enable_adapter_layers()
            model.set_adapter(name)
            if bare:
                model.base_model.disable_adapter_layers()


@contextmanager
def same_trainable(model: nn.Module) -> Iterator[None]:
    """What was trainable, and is still there, is so again afterwards, and nothing else of it is."""
    flags = [(p, p.requires_grad) for p in model.parameters()]
    try:
        yield
    finally:
        for parameter, flag in flags:
            if parameter.requires_grad != flag:
                parameter.requires_grad_(flag)
