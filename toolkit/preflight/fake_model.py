"""A base and its adapters as shapes without data: every layer and parameter, no memory."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftConfig
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from toolkit.errors import ConfigError
from toolkit.models.arguments import ModelArguments
from toolkit.models.peft_methods import build_peft_config
from toolkit.world import resolve_base

if TYPE_CHECKING:
    from trl import ModelConfig

BLOCK, NESTED_BLOCK = 64, 256  # weights per scale of a 4-bit layer, and scales per scale of scales


def phantom_mode() -> FakeTensorMode:
    """What tensors belong to that have a shape and a type but no data."""
    return FakeTensorMode(allow_non_fake_inputs=True)


@contextmanager
def made_in(mode: FakeTensorMode) -> Iterator[None]:
    """Inside the block, new tensors have no data, and modules of such can be converted and copied.

    `Module.to` swaps a tensor with its conversion, which those without data do not allow. PyTorch's
    own deep copy of one, which PEFT makes of a score layer, asks for its data, and the process's
    memory is damaged when the copy goes.
    """
    module: Any = nn.Module
    tensor: Any = FakeTensor
    before = module._apply, tensor.__deepcopy__
    module._apply, tensor.__deepcopy__ = _converted, _copied
    try:
        with mode:
            yield
    finally:
        module._apply, tensor.__deepcopy__ = before


def _copied(self: Tensor, memo: dict[int, Any]) -> Tensor:
    if id(self) not in memo:
        copied = self.detach().clone().requires_grad_(self.requires_grad)
        own = isinstance(self, nn.Parameter)
        memo[id(self)] = nn.Parameter(copied, self.requires_grad) if own else copied
    found: Tensor = memo[id(self)]
    return found


def _converted(self: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    for module in self.modules() if recurse else [self]:
        for name, parameter in module._parameters.items():
            if parameter is not None and (new := fn(parameter)) is not parameter:
                module._parameters[name] = nn.Parameter(new.detach(), parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = fn(buffer)
    return self


def base_config(model: "ModelConfig", *, trust_remote_code: bool = False) -> Any:
    """The base's config, which is all that is read of it."""
    return AutoConfig.from_pretrained(
        resolve_base(model.model_name_or_path),
        revision=model.model_revision,
        trust_remote_code=trust_remote_code,
    )


def phantom_base(
    model: "ModelConfig",
    mode: FakeTensorMode,
    *,
    scalar: bool,
    trust_remote_code: bool = False,
    layers: int | None = None,
) -> PreTrainedModel:
    """The base that `load_base` would load, from its config alone.

    Args:
        model: as for `load_base`.
        mode: that its weights belong to.
        scalar: with a head to one scalar instead of the language-model head.
        layers: so many of its layers; default all.
    """
    model = ModelArguments.of(model)
    config = base_config(model, trust_remote_code=trust_remote_code)
    quantized = model.load_in_4bit or model.load_in_8bit
    asked = "bfloat16" if quantized and model.dtype in (None, "float32") else model.dtype
    dtype = getattr(config, "dtype", None) if asked in (None, "auto") else getattr(torch, asked)
    kind: Any = AutoModelForSequenceClassification if scalar else AutoModelForCausalLM
    if scalar:
        config.num_labels = 1
    if layers is not None:
        text = config.get_text_config()
        text.num_hidden_layers = layers
        if getattr(text, "layer_types", None) is not None:
            text.layer_types = text.layer_types[:layers]
    with made_in(mode):
        base: PreTrainedModel = kind.from_config(
            config,
            dtype=dtype or torch.float32,
            attn_implementation=model.attn_implementation,
            trust_remote_code=trust_remote_code,
        )
        if quantized:
            _quantize(base, model)
    base.requires_grad_(False)
    return base.eval()


def adapter_config(
    model: "ModelConfig",
    base: PreTrainedModel,
    parent: str | Path | None,
    *,
    gradient_checkpointing: bool = False,
) -> PeftConfig:
    """The parent's adapter's shape, or that of a new adapter.

    Raises: ConfigError where there is neither.
    """
    if parent is not None:
        config = PeftConfig.from_pretrained(str(parent))
        config.inference_mode = False
        config.base_model_name_or_path = base.config._name_or_path  # PEFT warns of another
        return config
    made = build_peft_config(model, base, gradient_checkpointing=gradient_checkpointing)
    if made is None:
        raise ConfigError("no adapter: `use_peft` is false, and there is no `parent`")
    return made


def recorded_parent(parent: str | None) -> str | None:
    """The parent's folder, if it holds an adapter whose shape can be read."""
    if parent is None:
        return None
    file = Path(parent) / "adapter_config.json"
    try:
        json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return parent


def stored_bytes(module: nn.Module) -> int:
    """Bytes of a module's parameters and buffers, what is tied counted once."""
    tensors = [*module.parameters(), *module.buffers()]
    found = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    return sum(found.values())


def _quantize(base: PreTrainedModel, model: ModelArguments) -> None:
    """Put in the place of every linear layer but the heads one with the bytes of a quantized one."""
    kept = {"lm_head", "score"} | {
        name for name, m in base.named_modules() if m is base.get_output_embeddings()
    }
    for name, layer in list(base.named_modules()):
        if type(layer) is nn.Linear and name not in kept and name.rpartition(".")[2] not in kept:
            parent = base.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], _quantized(layer, model))
    base.is_loaded_in_4bit, base.is_loaded_in_8bit = model.load_in_4bit, model.load_in_8bit


def _quantized(layer: nn.Linear, model: ModelArguments) -> Any:
    import bitsandbytes as bnb

    four = bool(model.load_in_4bit)
    count, compute = layer.weight.numel(), layer.weight.dtype
    made = _four_bit() if four else _Quantized(1, 1, bias=False)
    made.in_features, made.out_features = layer.in_features, layer.out_features
    made.bias, made.compute_dtype = layer.bias, compute
    if not four:
        made.weight = nn.Parameter(
            torch.empty(layer.weight.shape, dtype=torch.int8), requires_grad=False
        )
        made.register_buffer("scales", torch.empty(layer.out_features))
        return made
    packed = torch.empty((count // 2, 1), dtype=torch.uint8)
    made.weight = nn.Parameter(packed, requires_grad=False)
    weight: Any = made.weight
    weight.compress_statistics, weight.quant_type = model.use_bnb_nested_quant, "nf4"
    weight.quant_state = None
    scales = count // BLOCK
    nested = model.use_bnb_nested_quant
    made.register_buffer("scales", torch.empty(scales, dtype=torch.uint8 if nested else None))
    if nested:
        made.register_buffer("scales_of_scales", torch.empty(scales // NESTED_BLOCK + 1))
    assert isinstance(made, bnb.nn.Linear4bit)
    return made


class _Quantized(nn.Linear):
    """A linear layer whose weight is unpacked for each product, as bitsandbytes does."""

    compute_dtype: torch.dtype

    def forward(self, x: Tensor) -> Tensor:
        """`(…, in)` to `(…, out)`."""
        rows = x.to(self.compute_dtype)
        shape = (self.out_features, self.in_features)
        out: Tensor = _Unpacked.apply(rows, self.weight, shape)  # type: ignore[no-untyped-call]
        return (out if self.bias is None else out + self.bias).to(x.dtype)


def _four_bit() -> Any:
    """An instance that PEFT takes for bitsandbytes' 4-bit layer, and so gives its own LoRA."""
    import bitsandbytes as bnb

    class FourBit(_Quantized, bnb.nn.Linear4bit):  # type: ignore[misc]
        def __init__(self) -> None:
            nn.Module.__init__(self)

    return FourBit()


class _Unpacked(torch.autograd.Function):
    """x · W' where W exists only inside of forward and of backward; x is not kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, shape: tuple[int, int]) -> Tensor:
        ctx.packed, ctx.shape = packed, shape
        return nn.functional.linear(x, x.new_empty(shape))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad @ grad.new_empty(ctx.shape), None, None
