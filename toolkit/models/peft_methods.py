"""The PEFT config of a new adapter from the model options."""

import math
from typing import Any

from peft import (
    AdaLoraConfig,
    IA3Config,
    LoraConfig,
    PeftConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    PromptTuningInit,
)
from peft.utils.constants import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as IA3_TARGETS
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as LORA_TARGETS
from torch import nn
from transformers import PreTrainedModel
from trl import ModelConfig, get_peft_config

from toolkit.errors import ConfigError
from toolkit.models.arguments import LORA_KINDS, VIRTUAL_TOKENS, ModelArguments

NEEDS_LORA = (  # the end of messages about a role with another kind of adapter
    "use LoRA (lora, rslora, dora or a trained adalora), because policy, value and reward share one "
    "PEFT model, which holds adapters of one kind"
)
UNKNOWN_STEPS = 1_000_000  # AdaLoRA's schedule until `RankAllocation` sets the number of steps


def build_peft_config(
    model: ModelConfig, base: PreTrainedModel, *, gradient_checkpointing: bool = False
) -> PeftConfig | None:
    """The PEFT config of a new adapter on a base; None if `use_peft` is false.

    Raises: ConfigError for options that do not fit the base or each other.
    """
    model = ModelArguments.of(model)
    if not model.use_peft:
        return None
    method, config = model.method, base.config.get_text_config()
    if method in (*LORA_KINDS, "adalora"):
        targets = _targets(model, base, LORA_TARGETS)
        if method == "adalora":
            return AdaLoraConfig(
                task_type="CAUSAL_LM",
                init_r=math.ceil(1.5 * model.lora_r),  # arXiv:2303.10512, section 4.1
                target_r=model.lora_r,
                lora_alpha=model.lora_alpha,
                lora_dropout=model.lora_dropout,
                target_modules=targets,
                total_step=UNKNOWN_STEPS,
            )
        if method == "dora":
            reject_dora_on_8bit_cpu(base)
        lora: LoraConfig = get_peft_config(model)
        lora.target_modules = set(targets) if isinstance(targets, list) else targets
        lora.use_dora |= method == "dora"
        lora.use_rslora |= method == "rslora"
        return lora
    if method == "ia3":
        targets = _targets(model, base, IA3_TARGETS)
        return IA3Config(
            task_type="CAUSAL_LM",
            target_modules=targets,
            feedforward_modules=_feedforward(base, config, targets),
        )
    tokens = model.num_virtual_tokens or VIRTUAL_TOKENS
    if method == "prefix":
        if gradient_checkpointing:
            raise ConfigError(
                "peft_method prefix: it needs the key-value cache, which gradient checkpointing disables; "
                "set `gradient_checkpointing: false`"
            )
        # PEFT's default, random keys and values of size 1, is far from those of real tokens
        return PrefixTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=tokens, init_weights="zero"
        )
    return PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=tokens,
        # embeddings of real tokens work better than noise (arXiv:2104.08691, section 3.2)
        prompt_tuning_init=PromptTuningInit.SAMPLE_VOCAB,
    )


def reject_dora_on_8bit_cpu(base: PreTrainedModel) -> None:
    """Raises: ConfigError for an 8-bit base on a CPU, which DoRA does not support."""
    if getattr(base, "is_loaded_in_8bit", False) and base.device.type == "cpu":
        raise ConfigError(
            "peft_method dora: PEFT loses the scales of 8-bit layers when DoRA reads their weights on "
            "a CPU; load the base in 4 bit"
        )


def library_reason(error: Exception) -> str:
    """A library's error message on one line, with a fix if the message is known to lack it."""
    reason = " ".join(str(error).split()) or type(error).__name__
    if "ParamWrapper" in reason:  # PEFT's layer for weights of experts, included in all-linear
        reason += (
            " The target layers include experts: set lora_dropout to 0 and do not use DoRA, or target "
            "only the attention's layers (lora_target_modules: [q_proj, k_proj, v_proj, o_proj])"
        )
    return reason


def _targets(
    model: ModelArguments, base: PreTrainedModel, known: dict[str, Any]
) -> str | list[str] | None:
    """`lora_target_modules` if set; None if PEFT has defaults for this architecture."""
    targets = model.lora_target_modules
    linear = {n.rpartition(".")[2] for n, m in base.named_modules() if _is_linear(m)}
    if targets is None:
        kind = base.config.model_type
        if kind not in known:
            raise ConfigError(
                f"lora_target_modules: PEFT has no default layers for {kind}; set it to all-linear "
                f"or to some of {', '.join(sorted(linear))}"
            )
    names = [n for n, _ in base.named_modules()]
    if isinstance(targets, str) and targets.isidentifier():
        targets = [targets]  # TRL unpacks a list of one, and PEFT would read the text as a pattern
    for target in targets if isinstance(targets, list) else []:
        if not any(n == target or n.endswith(f".{target}") for n in names):
            raise ConfigError(
                f"lora_target_modules: this base has no layer {target}; its linear layers are "
                f"{', '.join(sorted(linear))}"
            )
    checked: str | list[str] | None = targets
    return checked


def _feedforward(
    base: PreTrainedModel, config: Any, targets: str | list[str] | None
) -> list[str] | None:
    """The target layers whose input IA3 scales, because it is the MLP's inner state."""
    if targets is None:
        return None
    inner = getattr(config, "intermediate_size", None)
    wide = {
        name.rpartition(".")[2]
        for name, layer in base.named_modules()
        if _is_linear(layer) and getattr(layer, "in_features", None) == inner
    }
    names = wide if isinstance(targets, str) else wide & {t.rpartition(".")[2] for t in targets}
    return sorted(names)


def _is_linear(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or type(layer).__name__ == "Conv1D"
