"""A new adapter's PEFT config from a recipe's options."""

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
from peft.utils.constants import (
    TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as IA3_TARGETS,
)
from peft.utils.constants import (
    TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as LORA_TARGETS,
)
from torch import nn
from transformers import PreTrainedModel
from trl import ModelConfig, get_peft_config

from toolkit.errors import ConfigError
from toolkit.models.arguments import LORA_KINDS, VIRTUAL_TOKENS, ModelArguments

# why a role that needs LoRA does not take the others
NEEDS_LORA = (
    "policy, value and reward share one PEFT model, which holds adapters of one kind, and that is "
    "LoRA (lora, rslora, dora, and adalora once it is trained)"
)
UNKNOWN_STEPS = 1_000_000  # AdaLoRA's schedule, until the trainer knows how many there are


def build_peft_config(
    model: ModelConfig, base: PreTrainedModel, *, gradient_checkpointing: bool = False
) -> PeftConfig | None:
    """The config of a new adapter on a base; None without `use_peft`.

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
            refuse_lost_scales(base)
        found: LoraConfig = get_peft_config(model)
        found.target_modules = set(targets) if isinstance(targets, list) else targets
        found.use_dora |= method == "dora"
        found.use_rslora |= method == "rslora"
        return found
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
                "peft_method prefix: its keys and values travel in the cache, which gradient "
                "checkpointing drops; set `gradient_checkpointing: false`"
            )
        # random keys and values of size 1 are far from any token's; zeros are seen and say nothing
        return PrefixTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=tokens, init_weights="zero"
        )
    return PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=tokens,
        # from real tokens' embeddings, which does better than noise (arXiv:2104.08691, section 3.2)
        prompt_tuning_init=PromptTuningInit.SAMPLE_VOCAB,
    )


def refuse_lost_scales(base: PreTrainedModel) -> None:
    """Raises: ConfigError where DoRA cannot be put on a base."""
    if getattr(base, "is_loaded_in_8bit", False) and base.device.type == "cpu":
        raise ConfigError(
            "peft_method dora: it reads the base's weights, and PEFT loses the scales of an 8-bit "
            "layer while it does so on a CPU; load the base in 4 bit"
        )


def why_refused(error: Exception) -> str:
    """What a library says against an adapter or an option, on one line, with a fix for what names none."""
    reason = " ".join(str(error).split()) or type(error).__name__
    if "ParamWrapper" in reason:  # PEFT's layer for weights of experts, which all-linear takes too
        reason += (
            " The experts of this base are in its targets: set lora_dropout to 0 and leave DoRA, or name "
            "the attention's layers alone (lora_target_modules: [q_proj, k_proj, v_proj, o_proj])"
        )
    return reason


def _targets(
    model: ModelArguments, base: PreTrainedModel, known: dict[str, Any]
) -> str | list[str] | None:
    """The layers asked for; None where PEFT knows those of this architecture."""
    targets = model.lora_target_modules
    linear = {n.rpartition(".")[2] for n, m in base.named_modules() if _is_linear(m)}
    if targets is None:
        kind = base.config.model_type
        if kind not in known:
            raise ConfigError(
                f"lora_target_modules: which layers get an adapter is not known for {kind}; name some "
                f"of {', '.join(sorted(linear))}, or all-linear"
            )
    names = [n for n, _ in base.named_modules()]
    if isinstance(targets, str) and targets.isidentifier():
        targets = [targets]  # TRL takes it out of its list, and PEFT would read a pattern
    for wanted in targets if isinstance(targets, list) else []:
        if not any(n == wanted or n.endswith(f".{wanted}") for n in names):
            raise ConfigError(
                f"lora_target_modules: no layer is called {wanted}; linear layers of this base are "
                f"{', '.join(sorted(linear))}"
            )
    found: str | list[str] | None = targets
    return found


def _feedforward(
    base: PreTrainedModel, config: Any, targets: str | list[str] | None
) -> list[str] | None:
    """Which of IA3's layers read the feed-forward part's inner states: they are scaled at the input."""
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
