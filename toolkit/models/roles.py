"""Roles: adapters on one shared base, attached, switched and saved without side effects.

PEFT's `set_adapter` freezes every adapter except the active one, and PEFT's contexts
activate another adapter at their end. A switch here changes only which adapter is active: the set
of trainable parameters stays the same, also if the block raises an error.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from peft import AdaLoraConfig, LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.lora import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from toolkit.errors import CheckpointError
from toolkit.kernels.fused_lora import FusedLoraLinear, use_fused_layers
from toolkit.models.adapters import fill, read_adapter, save_adapter
from toolkit.models.base import BASE_FILE, check_fingerprint
from toolkit.models.base_state import BaseState, remove_adapter_layers
from toolkit.models.heads import ScalarHead
from toolkit.models.merging import merged_weights
from toolkit.models.peft_methods import NEEDS_LORA, library_reason, reject_dora_on_8bit_cpu
from toolkit.models.prompt_and_ia3_adapters import HOOKED, HookedAdapter, hooked_adapter
from toolkit.runs.run import ADAPTER_FILES

POLICY, REFERENCE, VALUE, REWARD = "default", "ref", "value", "reward"


class Roles:
    """The adapters on one base, and the heads that belong to them.

    `model` is the PeftModel after the first LoRA was attached. `heads` are registered on it, so that an
    optimizer over its parameters includes them. `hooked` holds frozen adapters of other kinds.
    """

    def __init__(self, base: PreTrainedModel, base_fingerprint: dict[str, str]) -> None:
        self.base = base
        self.fingerprint = base_fingerprint
        self.model: PeftModel | None = None
        self.heads = nn.ModuleDict()
        self.hooked: dict[str, HookedAdapter] = {}
        self._active: str | None = None  # the hooked adapter whose hooks are registered
        self._handles: list[RemovableHandle] = []
        self._bare = False  # True while the adapters of `model` are disabled
        self._damage: str | None = None  # why the base cannot be used any more
        self._index()

    @property
    def rewards(self) -> list[str]:
        """The attached reward roles: `reward`, or `reward_0`, `reward_1`, … of an ensemble."""
        return [n for n in self.heads if n == REWARD or n.startswith(f"{REWARD}_")]

    def parameters(self, name: str) -> list[nn.Parameter]:
        """The parameters of a role's adapter and head."""
        assert self.model is not None
        return [p for n, p in self.model.named_parameters() if belongs_to(n, name)]

    def attach(
        self,
        name: str,
        folder: str | Path,
        *,
        trainable: bool = False,
        head: bool = False,
        any_precision: bool = False,
    ) -> None:
        """Attach a role: load its adapter, and its head if `head` is set, from a run directory.

        Args:
            any_precision: accept an adapter trained on the same weights in another quantization.

        Raises: CheckpointError if files are missing or damaged, weights are not finite, keys do not
            fit, or the adapter belongs to another base. Then nothing stays attached and the base is
            unchanged.
        """
        folder = Path(folder)
        state = BaseState(self.base, self._names())
        try:
            self._attach(name, folder, trainable, head, any_precision)
        except BaseException:
            self.detach(name)
            difference = state.difference(self.base, self._names())
            if difference is not None:
                self._damage = f"{folder} changed the base ({difference}); load the base again"
            raise

    def _attach(
        self, name: str, folder: Path, trainable: bool, head: bool, any_precision: bool
    ) -> None:
        check_fingerprint(folder, self.fingerprint, any_precision=any_precision)
        config, weights = read_adapter(folder)
        if isinstance(config, HOOKED):
            if trainable or head:
                raise CheckpointError(f"{folder} is {_kind(config)}; {NEEDS_LORA}")
            with self.using(None):
                self.hooked[name] = hooked_adapter(self.base, config, weights, str(folder))
            return
        loaded_head = ScalarHead.load(folder) if head else None
        self._add(name, config, trainable=trainable)
        assert self.model is not None
        fill(self.model, name, weights, folder)
        if loaded_head is not None:
            self._add_head(name, loaded_head, trainable=trainable)

    def attach_rewards(self, runs: Sequence[str]) -> None:
        """Attach reward models with their heads; see `rewards` for their names."""
        for number, run in enumerate(runs):
            self.attach(REWARD if len(runs) == 1 else f"{REWARD}_{number}", run, head=True)

    def create(self, name: str, config: PeftConfig) -> None:
        """Attach a new, trainable adapter; a new LoRA does not change the base's outputs."""
        self._add(name, config, trainable=True)

    def add_value_head(self) -> None:
        """Add a trainable head of zeros for the value; the value may use the policy's adapter."""
        size = self.base.config.get_text_config().hidden_size
        self._add_head(VALUE, ScalarHead(size, zero=True), trainable=True)

    def load(self, name: str, folder: Path) -> None:
        """Load weights for an attached role and its head from a folder.

        Raises: CheckpointError if they are missing, damaged, of another base, or do not fit.
        """
        assert self.model is not None
        if name in self.model.peft_config:
            check_fingerprint(folder, self.fingerprint)
            _, weights = read_adapter(folder)
            fill(self.model, name, weights, folder)
        if name in self.heads:
            self.heads[name].load_state_dict(ScalarHead.load(folder).state_dict())

    def save(self, name: str, folder: str | Path) -> None:
        """Write one role as plain PEFT files, with its head and the base's fingerprint."""
        assert self.model is not None
        folder = Path(folder)
        if name in self.model.peft_config:
            save_adapter(self.model, folder, self.fingerprint, name=name)
        else:  # an earlier run may have written an adapter for this role
            for stale in (*ADAPTER_FILES, BASE_FILE):
                (folder / stale).unlink(missing_ok=True)
        if name in self.heads:
            folder.mkdir(parents=True, exist_ok=True)
            head = self.heads[name]
            assert isinstance(head, ScalarHead)
            head.save(folder)

    def detach(self, name: str) -> None:
        """Remove a role's adapter and head; the other roles do not change."""
        self.hooked.pop(name, None)
        if self.model is not None and name in self.model.peft_config:
            if list(self.model.peft_config) == [name]:
                self.base = self.model.unload()
                self.model = None
            else:
                with _same_trainable(self.model):
                    self.model.delete_adapter(name)  # PEFT activates and unfreezes another one
                    remove_adapter_layers(self.base, self.model.peft_config)
            self._index()
        if name in self.heads:
            del self.heads[name]

    @contextmanager
    def using(self, name: str | None) -> Iterator[nn.Module]:
        """Inside the block, the model has one role's adapter active; None is the bare base.

        Afterwards the adapter that was active before is active again, also on an error. Run both
        forward and backward of a role inside its block: gradient checkpointing recomputes with the
        adapter that is active during the backward pass.
        """
        if self._damage is not None:
            raise CheckpointError(self._damage)
        attached = [*self.hooked, *self._names()]
        if name is not None and name not in attached:
            names = ", ".join(attached) or "none"
            raise CheckpointError(f"no role {name!r} is attached; attached roles: {names}")
        active, bare = self._active, self._bare
        adapter = "" if self.model is None else self.model.active_adapters[0]
        try:
            if name is None or name in self.hooked:
                self._activate(name, adapter, bare=True)
            else:
                self._activate(None, name, bare=False)
            yield self.model or self.base
        finally:
            self._activate(active, adapter, bare=bare)

    def can_mix(self, name: str | None) -> bool:
        """Whether rows of this role can share a batch with rows of other roles; see `mixed`."""
        if name is None or name in self.hooked or not self._plain:
            return name is None
        return not any(
            name in getattr(layer, "lora_variant", ())  # such as DoRA
            or (isinstance(layer, ParamWrapper) and name in layer.lora_A)  # on experts
            for layer in self._layers
        )

    @contextmanager
    def mixed(self, names: Sequence[str | None]) -> Iterator[nn.Module]:
        """The model with one role per row of its batches; None is the base without adapters.

        For eval mode without gradients. Each role must allow `can_mix`, unless all are the same.
        """
        if len(set(names)) == 1 or self.model is None:
            with self.using(names[0]) as model:
                yield model
            return
        first = next(n for n in names if n is not None)
        rows = [n or "__base__" for n in names]  # PEFT's name for no adapter
        try:
            hooks = self.model.base_model._enable_peft_forward_hooks(adapter_names=rows)
            with self.using(first) as model, hooks:
                yield model
        finally:
            for layer in self._layers:
                if isinstance(layer, FusedLoraLinear):
                    layer.clear_row_weights()

    @contextmanager
    def merged(self, name: str | None) -> Iterator[nn.Module]:
        """Like `using`, with a LoRA merged into copies of the base's weights: see `merged_weights`."""
        with self.using(name) as model:
            if name is None or name in self.hooked:
                yield model
                return
            tied = self.base.get_input_embeddings().weight
            with merged_weights(self._layers, name, tied=tied):
                yield model

    def _names(self) -> list[str]:
        """The names of the adapters of `model`."""
        return [] if self.model is None else list(self.model.peft_config)

    def _index(self) -> None:
        """Update the list of adapter layers after an adapter was added or removed.

        `_plain` is False with `modules_to_save` or trainable tokens, which need PEFT's own switch.
        """
        modules = [] if self.model is None else list(self.model.modules())
        self._layers = [m for m in modules if isinstance(m, BaseTunerLayer)]
        self._plain = not any(isinstance(m, AuxiliaryTrainingWrapper) for m in modules)

    def _activate(self, hooked: str | None, name: str, *, bare: bool) -> None:
        """Register the hooks of at most one hooked adapter; activate or disable an adapter of `model`.

        PEFT's `set_adapter` visits all modules and parameters, which takes 5 ms; a pass takes 80
        ms. A forward pass only reads two attributes of the adapter layers.
        """
        if hooked != self._active:
            for handle in self._handles:
                handle.remove()
            self._handles = [] if hooked is None else self.hooked[hooked].hook(self.base)
            self._active = hooked
        if self.model is None:
            return
        if not self._plain:
            with _same_trainable(self.model):
                if self._bare:
                    self.model.base_model.enable_adapter_layers()
                self.model.set_adapter(name)
                if bare:
                    self.model.base_model.disable_adapter_layers()
        for layer in self._layers:
            layer._active_adapter = [name]
            layer._disable_adapters = bare
        self.model.active_adapter = self.model.base_model.active_adapter = name
        self._bare = bare

    def _add(self, name: str, config: PeftConfig, *, trainable: bool) -> None:
        if not name or "." in name or name in "lora_":
            raise CheckpointError(
                f"a role cannot be named {name!r}, because PEFT's keys would be ambiguous; rename it"
            )
        if not isinstance(config, LoraConfig) or isinstance(config, AdaLoraConfig):
            raise CheckpointError(f"role {name!r} is {_kind(config)}; {NEEDS_LORA}")
        if config.bias != "none":
            raise CheckpointError(
                f"role {name!r}: LoRA with bias={config.bias!r} would train biases of the base, "
                "which all roles share; use bias='none'"
            )
        if config.use_dora:
            reject_dora_on_8bit_cpu(self.base)
        config.inference_mode = not trainable
        use_fused_layers(config)
        try:
            if self.model is None:
                self.model = get_peft_model(self.base, config, adapter_name=name)
                self.model.heads = self.heads
            else:
                active = self.model.active_adapters[0]
                with _same_trainable(self.model):
                    self.model.add_adapter(name, config)
                    self.model.set_adapter(active)
        except BaseException as error:
            if self.model is not None:  # PEFT has forgotten the name, but left some layers
                self.model.peft_config.setdefault(name, config)
            self.detach(name)
            if self.model is None:
                remove_adapter_layers(self.base)
            if not isinstance(error, ValueError | TypeError):
                raise
            beside = f" beside {', '.join(self._names())}" if self.model else ""
            raise CheckpointError(
                f"role {name!r}: PEFT cannot add this adapter{beside} ({library_reason(error)})"
            ) from error
        self._index()
        for parameter in self.parameters(name):
            parameter.requires_grad_(trainable)
        self.model.train(self.base.training)  # PEFT adds an adapter's dropout in training mode

    def _add_head(self, name: str, head: ScalarHead, *, trainable: bool) -> None:
        size = self.base.config.get_text_config().hidden_size
        if head.weight.shape[1] != size:
            self.detach(name)
            raise CheckpointError(
                f"role {name!r}: the head reads {head.weight.shape[1]} features, but the base has {size}"
            )
        device = self.base.get_input_embeddings().weight.device
        self.heads[name] = head.to(device).requires_grad_(trainable)


@contextmanager
def _same_trainable(model: nn.Module) -> Iterator[None]:
    """Restore `requires_grad` of each parameter that exists before and after the block."""
    flags = [(p, p.requires_grad) for p in model.parameters()]
    try:
        yield
    finally:
        for parameter, flag in flags:
            if parameter.requires_grad != flag:
                parameter.requires_grad_(flag)


def belongs_to(parameter: str, role: str) -> bool:
    """Whether a parameter name of the PeftModel belongs to a role's adapter or head.

    A layer of the base may itself be called `value`, as in BERT.
    """
    holders = r"lora_\w+|modules_to_save|trainable_tokens_\w+|heads"
    return re.search(rf"(^|\.)({holders})\.{re.escape(role)}(\.|$)", parameter) is not None


def _kind(config: PeftConfig) -> str:
    return f"a {config.peft_type.value} adapter" if config.peft_type else "an unknown adapter"
