"""Roles: adapters with a purpose on one base, attached, switched and saved without side effects.

PEFT's `set_adapter` freezes every adapter but the one it activates, and its contexts leave one
activated that was not before. Here a switch changes which adapter is active and nothing else:
which parameters are trainable stays as it was, also when the body raises.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from peft import AdaLoraConfig, LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.lora import ParamWrapper
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from toolkit.errors import CheckpointError
from toolkit.kernels.fused_lora import FusedLoraLinear, use_fused_layers
from toolkit.models.adapters import fill, read_adapter, save_adapter
from toolkit.models.fingerprint import BASE_FILE, check_fingerprint
from toolkit.models.heads import ScalarHead
from toolkit.models.merging import merged_weights
from toolkit.models.peft_methods import NEEDS_LORA, refuse_lost_scales, why_refused
from toolkit.models.prompt_and_ia3_adapters import INSERTED, Inserted, insertable
from toolkit.models.switching import Switch, same_trainable
from toolkit.runs.run import ADAPTER_FILES

POLICY, REFERENCE, VALUE, REWARD = "default", "ref", "value", "reward"


class Roles:
    """The adapters on one base and the heads that belong to them.

    `model` is the PeftModel once a first LoRA is attached. Heads are registered on it as
    `model.heads`, so that an optimizer over the model's parameters sees them. `inserted` are the
    adapters of other kinds, which are not trained here.
    """

    def __init__(self, base: PreTrainedModel, base_fingerprint: dict[str, str]) -> None:
        self.base = base
        self.fingerprint = base_fingerprint
        self.model: PeftModel | None = None
        self.heads = nn.ModuleDict()
        self.inserted: dict[str, Inserted] = {}
        self._speaking: str | None = None  # which of the inserted is in place
        self._handles: list[RemovableHandle] = []
        self._switch = Switch()

    def attach(
        self,
        name: str,
        folder: str | Path,
        *,
        trainable: bool = False,
        head: bool = False,
        any_precision: bool = False,
    ) -> None:
        """Load an adapter (and its head) from a run directory under the name of a role.

        Raises: CheckpointError where files are missing or damaged, weights are not finite, keys
            do not fit, or the adapter belongs to another base. Nothing stays attached then.
        """
        folder = Path(folder)
        _refuse_bad_name(name)
        check_fingerprint(folder, self.fingerprint, any_precision=any_precision)
        config, weights = read_adapter(folder)
        if isinstance(config, INSERTED):
            if trainable or head:
                raise CheckpointError(f"{folder} is {_kind(config)}, but {NEEDS_LORA}")
            with self.using(None):
                self.inserted[name] = insertable(self.base, config, weights, str(folder))
            return
        loaded_head = ScalarHead.load(folder) if head else None
        self._add(name, config, trainable=trainable)
        assert self.model is not None
        try:
            fill(self.model, name, weights, folder)
        except BaseException:
            self.detach(name)
            raise
        if loaded_head is not None:
            self._add_head(name, loaded_head, trainable=trainable)

    def create(self, name: str, config: PeftConfig) -> None:
        """Attach a freshly initialised, trainable adapter (LoRA starts as the identity)."""
        _refuse_bad_name(name)
        self._add(name, config, trainable=True)

    def detach(self, name: str) -> None:
        """Remove a role's adapter and head; the others stay as they are."""
        self.inserted.pop(name, None)
        if self.model is not None and name in self.model.peft_config:
            if list(self.model.peft_config) == [name]:
                self.base = self.model.unload()
                self.model = None
            else:
                with same_trainable(self.model):
                    self.model.delete_adapter(name)  # PEFT activates, and unfreezes, another
            self._switch.index(self.model)
        if name in self.heads:
            del self.heads[name]

    @contextmanager
    def using(self, name: str | None) -> Iterator[nn.Module]:
        """The model with one role's adapter active; None is the pristine base.

        Whatever was active and whatever was trainable is so again afterwards, also on an error.
        Forward *and* backward of a role belong inside its block: gradient checkpointing
        recomputes under whichever adapter is active at the time of the backward pass.
        """
        inserted = name if name in self.inserted else None
        attached = [*self.inserted, *([] if self.model is None else self.model.peft_config)]
        if name is not None and name not in attached:
            known = ", ".join(attached) or "none"
            raise CheckpointError(f"no role {name!r} is attached; attached are {known}")
        speaking = self._speaking
        if self.model is None:
            try:
                self._insert(inserted)
                yield self.base
            finally:
                self._insert(speaking)
            return
        before, was_bare = self.model.active_adapters[0], self._switch.bare
        bare = name is None or inserted is not None
        try:
            self._insert(inserted)
            self._switch.activate(before if bare else str(name), bare=bare)
            yield self.model
        finally:
            self._switch.activate(before, bare=was_bare)
            self._insert(speaking)

    def mixes(self, name: str | None) -> bool:
        """Whether rows of this role may share a batch with rows of others: see `mixed`."""
        if name is None:
            return True
        return (
            name not in self.inserted
            and self._switch.plain
            and not any(
                name in getattr(layer, "lora_variant", ())  # such as DoRA
                or (isinstance(layer, ParamWrapper) and name in layer.lora_A)  # on experts
                for layer in self._switch.layers
            )
        )

    @contextmanager
    def mixed(self, names: Sequence[str | None]) -> Iterator[nn.Module]:
        """The model with a role for each row of the batches that it is given; None is the base.

        In eval mode, without gradients. The roles must `mixes`, unless all names are one.
        """
        if len(set(names)) == 1 or self.model is None:
            with self.using(names[0]) as model:
                yield model
            return
        first = next(n for n in names if n is not None)
        rows = [n or "__base__" for n in names]  # PEFT's word
        try:
            hooks = self.model.base_model._enable_peft_forward_hooks(adapter_names=rows)
            with self.using(first) as model, hooks:
                yield model
        finally:
            for layer in self._switch.layers:
                if isinstance(layer, FusedLoraLinear):
                    layer.clear_row_weights()

    def _insert(self, name: str | None) -> None:
        """Put one of the inserted adapters in the place of another, or of none."""
        if name == self._speaking:
            return
        for handle in self._handles:
            handle.remove()
        self._handles = [] if name is None else self.inserted[name].hook(self.base)
        self._speaking = name

    @contextmanager
    def merged(self, name: str | None) -> Iterator[nn.Module]:
        """As `using`, with a LoRA merged into copies of the base's weights: see `merged_weights`."""
        with self.using(name) as model:
            if name is None or name in self.inserted:
                yield model
                return
            tied = self.base.get_input_embeddings().weight
            with merged_weights(self._switch.layers, name, tied=tied):
                yield model

    @property
    def rewards(self) -> list[str]:
        """The attached reward roles: `reward`, or `reward_0`, `reward_1`, … of an ensemble."""
        return [n for n in self.heads if n == REWARD or n.startswith(f"{REWARD}_")]

    def trainable_names(self) -> list[str]:
        """Names of all parameters that an optimizer would move."""
        module = self.model or self.base
        return [n for n, p in module.named_parameters() if p.requires_grad]

    def save(self, name: str, folder: str | Path) -> None:
        """Write one role as plain PEFT files, with its head and the base's fingerprint beside."""
        assert self.model is not None
        folder = Path(folder)
        if name in self.model.peft_config:
            save_adapter(self.model, folder, self.fingerprint, name=name)
        else:  # of an earlier run, which had one
            for stale in (*ADAPTER_FILES, BASE_FILE):
                (folder / stale).unlink(missing_ok=True)
        if name in self.heads:
            folder.mkdir(parents=True, exist_ok=True)
            head = self.heads[name]
            assert isinstance(head, ScalarHead)
            head.save(folder)

    def add_value_head(self) -> None:
        """A trainable head of zeros for the value role; it may do without an adapter of its own."""
        size = self.base.config.get_text_config().hidden_size
        self._add_head(VALUE, ScalarHead(size, zero=True), trainable=True)

    def _add(self, name: str, config: PeftConfig, *, trainable: bool) -> None:
        if not isinstance(config, LoraConfig) or isinstance(config, AdaLoraConfig):
            raise CheckpointError(f"role {name!r} is {_kind(config)}, but {NEEDS_LORA}")
        if config.bias != "none":
            raise CheckpointError(
                f"role {name!r}: LoRA with bias={config.bias!r} would train biases of the base, "
                "which all roles share; use bias='none'"
            )
        if config.use_dora:
            refuse_lost_scales(self.base)
        config.inference_mode = not trainable
        use_fused_layers(config)
        if self.model is None:
            try:
                self.model = get_peft_model(self.base, config, adapter_name=name)
            except ValueError as error:
                raise CheckpointError(f"role {name!r}: {why_refused(error)}") from error
            assert self.model is not None
            self.model.heads = self.heads
        else:
            self._add_beside(self.model, name, config)
        self._switch.index(self.model)
        for parameter in self._parameters(name):
            parameter.requires_grad_(trainable)
        self.model.train(self.base.training)  # a new adapter's dropout arrives switched on

    @staticmethod
    def _add_beside(model: PeftModel, name: str, config: PeftConfig) -> None:
        """Add an adapter to others, of which the same stays active."""
        active = model.active_adapters[0]
        with same_trainable(model):
            try:
                model.add_adapter(name, config)
            except ValueError as error:
                raise CheckpointError(
                    f"role {name!r}: PEFT cannot hold it beside {', '.join(model.peft_config)} "
                    f"({why_refused(error)})"
                ) from error
            model.set_adapter(active)

    def load(self, name: str, folder: Path) -> None:
        """Replace the weights of an attached role, and its head, by those in a folder.

        Raises: CheckpointError where they are missing, damaged, of another base, or do not fit.
        """
        assert self.model is not None
        if name in self.model.peft_config:
            check_fingerprint(folder, self.fingerprint)
            _, weights = read_adapter(folder)
            fill(self.model, name, weights, folder)
        if name in self.heads:
            self.heads[name].load_state_dict(ScalarHead.load(folder).state_dict())

    def _add_head(self, name: str, head: ScalarHead, *, trainable: bool) -> None:
        size = self.base.config.get_text_config().hidden_size
        if head.weight.shape[1] != size:
            self.detach(name)
            raise CheckpointError(
                f"role {name!r}: the head reads {head.weight.shape[1]} features, the base has {size}"
            )
        device = self.base.get_input_embeddings().weight.device
        self.heads[name] = head.to(device).requires_grad_(trainable)

    def _parameters(self, name: str) -> list[nn.Parameter]:
        assert self.model is not None
        return [p for n, p in self.model.named_parameters() if belongs_to(n, name)]


def belongs_to(parameter: str, role: str) -> bool:
    """Whether a parameter of the PeftModel, by its name, is a role's: of its adapter or its head.

    A layer of the base may itself be called `value`, as BERT's are.
    """
    holders = r"lora_\w+|modules_to_save|trainable_tokens_\w+|heads"
    return re.search(rf"(^|\.)({holders})\.{re.escape(role)}(\.|$)", parameter) is not None


def _kind(config: PeftConfig) -> str:
    return f"a {config.peft_type.value} adapter" if config.peft_type else "no known adapter"


def _refuse_bad_name(name: str) -> None:
    if not name or "." in name or name in "lora_":
        raise CheckpointError(f"a role cannot be called {name!r}: PEFT keys would be ambiguous")
