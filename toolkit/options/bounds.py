"""Bounds of the numeric options of this package, TRL and transformers."""

import dataclasses
import math
import re
from typing import Any

from toolkit.errors import ConfigError

SEEDS = 2**32 - 1  # numpy's highest
PROCESSES = 256
SIZE = 1 << 16  # of a batch or a layer: a mistyped number must not take all memory

# (lowest, whether the lowest itself is excluded, highest): option names
BOUNDS: dict[tuple[float, bool, float], tuple[str, ...]] = {
    (0, True, math.inf): (
        "beta", "discopop_tau", "logging_steps", "save_steps", "eval_steps",
    ),
    (0, False, math.inf): (
        "learning_rate", "weight_decay", "adam_epsilon", "max_grad_norm", "warmup_steps", "eval_delay",
        "save_total_limit", "neftune_noise_alpha",
        "center_rewards_coefficient",
        "desirable_weight", "undesirable_weight", "router_aux_loss_coef", "loss_weights",
    ),
    (0, False, 1): (
        "adam_beta1", "adam_beta2", "label_smoothing_factor", "ld_alpha", "ref_model_mixup_alpha",
    ),
    (0, False, 0.5): ("label_smoothing",),  # above 0.5 most labels would be wrong
    (0, False, SEEDS): ("seed", "data_seed"),
    (1, False, math.inf): (
        "eval_accumulation_steps", "max_length", "ref_model_sync_steps",
    ),
    (0, False, PROCESSES): ("dataloader_num_workers",),
    (1, False, PROCESSES): ("dataset_num_proc", "dataloader_prefetch_factor", "ensemble"),
    (1, False, SIZE): (
        "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
        "num_mini_batches", "steps_per_generation", "num_iterations", "ptx_batch_size",
        "precompute_ref_batch_size", "pad_to_multiple_of",
        "lora_r", "num_virtual_tokens", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "width",
    ),
    (1, False, 1 << 20): ("rollout_batch_size", "vocab_size", "tokenizer_documents"),
}  # fmt: skip
WHOLE_ABOVE_1 = ("logging_steps", "save_steps", "eval_steps")  # below 1: a share of all steps


def check_numbers(recipe: str, config: Any) -> None:
    """Check the numbers of a config, except those that it names in `with_other_bounds` and checks itself.

    Raises: ConfigError that names a number out of its range.
    """
    others = getattr(config, "with_other_bounds", ())
    for (low, is_open, high), names in BOUNDS.items():
        expected = f"above {low}" if is_open else f"at least {low}"
        expected = expected if high == math.inf else f"in {low}…{high}"
        for name in names:
            for value in _numbers(config, name) if name not in others else ():
                if not (low < value or (value == low and not is_open)) or value > high:
                    raise ConfigError(f"{recipe}: `{name}` must be {expected}, got {value}")
    for name in WHOLE_ABOVE_1:
        for value in _numbers(config, name):
            if value > 1 and value != int(value):
                raise ConfigError(
                    f"{recipe}: `{name}` must be a whole number of steps, or below 1 a share of all "
                    f"steps, got {value}"
                )
    steps = getattr(config, "max_steps", -1)
    if steps < 1 and steps != -1:
        raise ConfigError(
            f"{recipe}: `max_steps` must be at least 1, or -1 to train for `num_train_epochs`, "
            f"got {steps}"
        )
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        words = str(value) if field.name == "optim_args" else ""  # "eps=1e-6,betas=(0.9, 0.99)"
        if _contains_nan(value) or re.search(r"\bnan\b", words, re.IGNORECASE):
            raise ConfigError(f"{recipe}: `{field.name}` contains NaN; expected a number")


def _numbers(config: Any, name: str) -> list[float]:
    """The numbers in an option's value: one number, or those of a list; none for text or no value."""
    value = getattr(config, name, None)
    values = value if isinstance(value, list) else [value]
    return [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]


def _contains_nan(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_contains_nan, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_contains_nan, value))
    return isinstance(value, float) and math.isnan(value)
