"""Which layers PEFT builds for a LoRA of ours: those that take the short way where they can."""

from typing import Any

from peft import PeftConfig
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from toolkit.kernels.fused_lora import FusedLoraLinear
from toolkit.kernels.fused_quantized import quantized_or_none


def fuse(config: PeftConfig) -> None:
    """Make PEFT build our layers beside linear ones, plain or quantized by bitsandbytes."""
    if hasattr(config, "_register_custom_module"):  # LoRA has it; other kinds of adapter do not
        config._register_custom_module({nn.Linear: _fused_or_none})


def _fused_or_none(
    target: nn.Module, adapter_name: str, config: Any, **kwargs: Any
) -> LoraLayer | None:
    """None where the layer is of a kind that PEFT alone knows."""
    base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
    if type(base) is not nn.Linear:
        return quantized_or_none(target, adapter_name, config, **kwargs)
    return FusedLoraLinear(target, adapter_name, config=config, **kwargs)
