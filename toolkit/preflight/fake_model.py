"""A base and its adapters as fake tensors, which have a shape and a type but no data."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    Trainer,
)

from toolkit.models.adapter_config import read_config
from toolkit.models.arguments import ModelArguments
from toolkit.models.heads import ScalarHead
from toolkit.models.precision import check_stored_quantization
from toolkit.models.roles import Roles
from toolkit.world import resolve_base

if TYPE_CHECKING:
    from trl import ModelConfig

BLOCK, NESTED_BLOCK = 64, 256  # weights per scale of a 4-bit layer, and scales per scale of scales


def new_fake_mode() -> FakeTensorMode:
    """A mode for fake tensors that allows real token ids and masks."""
    return FakeTensorMode(allow_non_fake_inputs=True)


@contextmanager
def fake_tensors(mode: FakeTensorMode) -> Iterator[None]:
    """Inside the block, new tensors are fake, and modules with fake tensors can be converted and copied.

    `Module.to` swaps a tensor with its conversion, which fake tensors do not allow. PEFT
    copies a score layer. PyTorch's own deep copy of a fake tensor reads its data and damages the memory of
    the process. Trainers do not move their model to the device.
    """
    with (
        patch.object(nn.Module, "_apply", _apply),
        patch.object(FakeTensor, "__deepcopy__", _deepcopy),
        patch.object(Trainer, "_move_model_to_device", lambda *_: None),
        mode,
    ):
        yield


def _deepcopy(self: Tensor, memo: dict[int, Any]) -> Tensor:
    if id(self) not in memo:
        copy = self.detach().clone().requires_grad_(self.requires_grad)
        is_parameter = isinstance(self, nn.Parameter)
        memo[id(self)] = nn.Parameter(copy, self.requires_grad) if is_parameter else copy
    result: Tensor = memo[id(self)]
    return result


def _apply(self: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    for module in self.modules() if recurse else [self]:
        for name, parameter in module._parameters.items():
            if parameter is not None and (new := fn(parameter)) is not parameter:
                module._parameters[name] = nn.Parameter(new.detach(), parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = fn(buffer)
    return self


def base_config(model: "ModelConfig", *, trust_remote_code: bool = False) -> Any:
    """The base's config, the only file of the base that is read."""
    return AutoConfig.from_pretrained(
        resolve_base(model.model_name_or_path),
        revision=model.model_revision,
        trust_remote_code=trust_remote_code,
    )


def fake_base(
    model: "ModelConfig",
    mode: FakeTensorMode,
    *,
    scalar: bool,
    trust_remote_code: bool = False,
    layers: int | None = None,
) -> PreTrainedModel:
    """The base that `load_base` would load, from its config alone; with `layers`, only its first ones.

    With `scalar`, it has a head to one scalar instead of the language-model head.
    """
    model = ModelArguments.of(model)
    config = base_config(model, trust_remote_code=trust_remote_code)
    check_stored_quantization(config.to_dict(), model, config.name_or_path)
    quantized = model.load_in_4bit or model.load_in_8bit
    name = "bfloat16" if quantized and model.dtype in (None, "float32") else model.dtype
    dtype = getattr(config, "dtype", None) if name in (None, "auto") else getattr(torch, name)
    kind: Any = AutoModelForSequenceClassification if scalar else AutoModelForCausalLM
    if scalar:
        config.num_labels = 1
    if layers is not None:
        text = config.get_text_config()
        text.num_hidden_layers = layers
        if getattr(text, "layer_types", None) is not None:
            text.layer_types = text.layer_types[:layers]
    with fake_tensors(mode):
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


class UntrainedRoles(Roles):
    """Roles whose `attach` creates new weights in the shapes of a folder's adapter.

    Only `adapter_config.json` is read.
    """

    def attach(
        self,
        name: str,
        folder: str | Path,
        *,
        trainable: bool = False,
        head: bool = False,
        any_precision: bool = False,
    ) -> None:
        """Create the adapter and, if `head` is set, its head."""
        self._add(name, read_config(Path(folder)), trainable=trainable)
        if head:
            size = self.base.config.get_text_config().hidden_size
            self._add_head(name, ScalarHead(size), trainable=trainable)


def stored_bytes(module: nn.Module) -> int:
    """Bytes of a module's parameters and buffers; tied tensors count once."""
    tensors = [*module.parameters(), *module.buffers()]
    sizes = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    return sum(sizes.values())


def _quantize(base: PreTrainedModel, model: ModelArguments) -> None:
    """Replace each linear layer except the heads by a layer with the size of a quantized one."""
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

    four_bit = bool(model.load_in_4bit)
    count, compute_dtype = layer.weight.numel(), layer.weight.dtype
    quantized = _new_linear4bit() if four_bit else _Quantized(1, 1, bias=False)
    quantized.in_features, quantized.out_features = layer.in_features, layer.out_features
    quantized.bias, quantized.compute_dtype = layer.bias, compute_dtype
    if not four_bit:
        weight = torch.empty(layer.weight.shape, dtype=torch.int8)
        quantized.weight = nn.Parameter(weight, requires_grad=False)
        quantized.register_buffer("scales", torch.empty(layer.out_features))
        return quantized
    packed: Any = nn.Parameter(torch.empty((count // 2, 1), dtype=torch.uint8), requires_grad=False)
    packed.compress_statistics, packed.quant_type = model.use_bnb_nested_quant, "nf4"
    packed.quant_state = None
    quantized.weight = packed
    scales = count // BLOCK
    nested = model.use_bnb_nested_quant
    quantized.register_buffer("scales", torch.empty(scales, dtype=torch.uint8 if nested else None))
    if nested:
        quantized.register_buffer("scales_of_scales", torch.empty(scales // NESTED_BLOCK + 1))
    assert isinstance(quantized, bnb.nn.Linear4bit)
    return quantized


class _Quantized(nn.Linear):
    """A linear layer whose weight is unpacked for each product, as bitsandbytes does."""

    compute_dtype: torch.dtype

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output `(…, out)` for an input `(…, in)`."""
        rows = x.to(self.compute_dtype)
        shape = (self.out_features, self.in_features)
        out: Tensor = _UnpackedProduct.apply(rows, self.weight, shape)  # type: ignore[no-untyped-call]
        return (out if self.bias is None else out + self.bias).to(x.dtype)


def _new_linear4bit() -> Any:
    """A layer that PEFT treats as bitsandbytes' 4-bit layer, so that it uses its 4-bit LoRA."""
    import bitsandbytes as bnb

    class Linear4bit(_Quantized, bnb.nn.Linear4bit):  # type: ignore[misc]
        def __init__(self) -> None:
            nn.Module.__init__(self)

    return Linear4bit()


class _UnpackedProduct(torch.autograd.Function):
    """x · Wᵀ; the unpacked W exists only during forward and during backward, and x is not kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, shape: tuple[int, int]) -> Tensor:
        ctx.packed, ctx.shape = packed, shape
        return nn.functional.linear(x, x.new_empty(shape))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad @ grad.new_empty(ctx.shape), None, None
