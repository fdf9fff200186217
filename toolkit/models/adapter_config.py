"""Read an adapter's config as data; fields that could change the base or import code are errors.

All checkpoints share one base, so an adapter made elsewhere may only add its own weights to it.
Each kind of adapter has a list of accepted fields with a check of the value. Any other field must
have PEFT's default, so a config of a newer PEFT loads unless it uses a new feature.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from peft import (
    AdaLoraConfig,
    IA3Config,
    LoraConfig,
    PeftConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
)
from safetensors import SafetensorError, safe_open

from toolkit.errors import CheckpointError
from toolkit.reading import read_json
from toolkit.runs.run import WEIGHTS_FILE

Shapes = Mapping[str, tuple[int, ...]]  # of the weights on disk, by PEFT's key
KEY_PREFIX = "base_model.model."  # of every weight's key in PEFT's files
KINDS: dict[str, type[PeftConfig]] = {
    "LORA": LoraConfig,
    "ADALORA": AdaLoraConfig,
    "IA3": IA3Config,
    "PREFIX_TUNING": PrefixTuningConfig,
    "PROMPT_TUNING": PromptTuningConfig,
}
# These initializations subtract what they put into the adapter from the base's weights. PEFT does
# so whenever such an adapter is attached, but all roles share the base.
CHANGES_THE_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")
HARMLESS_INITS = (True, False, None, "gaussian", "orthogonal", "eva")
# Ignored, because the weights are on disk: classes to import, and settings of initialization and runtime
IGNORED = (
    "auto_mapping", "runtime_config", "eva_config", "peft_version", "inference_mode", "megatron_core",
    "prompt_tuning_init_text", "tokenizer_name_or_path",
)  # fmt: skip
_NAME = re.compile(r"[\w.-]+")  # of a layer; as a pattern, it is read in linear time
_PATTERN = re.compile(r"(?:[\w.^$-]|\\[.d])+")  # matches in linear time, too: nothing is repeated


def read_config(folder: Path) -> PeftConfig:
    """The PEFT config of an adapter on disk; its layers are listed without regular expressions.

    Raises: CheckpointError for damaged files, and for a field that is not accepted (it is named).
    """
    place, shapes = folder / "adapter_config.json", _shapes(folder / WEIGHTS_FILE)
    try:
        content = read_json(place)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: damaged adapter ({error})") from error
    kind = content.get("peft_type") if isinstance(content, dict) else None
    config_class = KINDS.get(kind) if isinstance(kind, str) else None
    if config_class is None:
        raise CheckpointError(
            f"{place}: `peft_type` must be one of {', '.join(KINDS)}, got {str(kind)[:40]!r}"
        )
    fields = _checked_fields(content, config_class, place)
    if issubclass(config_class, LoraConfig | IA3Config):
        _use_layers_of_weights(fields, shapes, place)
    _check_size(fields, shapes, place)
    try:
        return config_class(**fields)
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{folder}: damaged adapter ({error})") from error


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of an adapter's weights; empty if only its config exists."""
    if not file.is_file():
        return {}
    try:
        with safe_open(file, framework="pt") as weights:
            keys = weights.keys()  # a list; the file itself is not iterable
            return {key: tuple(weights.get_slice(key).get_shape()) for key in keys}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file.parent}: damaged adapter ({error})") from error


def _checked_fields(
    content: Mapping[str, Any], config_class: type[PeftConfig], place: Path
) -> dict[str, Any]:
    """Check a config, and return its accepted fields; the other fields have no effect."""
    kept: dict[str, Any] = {}
    defaults = {f.name: f.default for f in dataclasses.fields(config_class)}
    accepted = _COMMON | _ACCEPTED[config_class]
    for name, value in content.items():
        if name in ("peft_type", *IGNORED):
            continue
        if name == "init_lora_weights":
            _check_init(value, place)
            continue
        if name in accepted and name in defaults:
            if not accepted[name](value):
                raise CheckpointError(f"{place}: `{name}` cannot be {str(value)[:80]!r}")
            kept[name] = value
        elif not (value in (None, False, [], {}, "") or value == defaults.get(name)):
            raise CheckpointError(
                f"{place}: `{name[:80]}` is not supported, because it could change the base that all "
                "checkpoints share or import code; convert the adapter to plain LoRA"
            )
    if kept.get("prompt_tuning_init") == "TEXT":
        kept["prompt_tuning_init"] = "RANDOM"  # else PEFT loads the tokenizer that the file names
    return kept


def _check_init(value: Any, place: Path) -> None:
    if isinstance(value, str) and value.lower().startswith(CHANGES_THE_BASE):
        raise CheckpointError(
            f"{place}: `init_lora_weights` {value[:40]!r} would change the base's weights, which "
            "all checkpoints share; convert the adapter to plain LoRA with PEFT's "
            "`path_initial_model_for_weight_conversion`"
        )
    if not (isinstance(value, bool | str | None) and value in HARMLESS_INITS):
        raise CheckpointError(f"{place}: `init_lora_weights` cannot be {str(value)[:40]!r}")


def _use_layers_of_weights(fields: dict[str, Any], shapes: Shapes, place: Path) -> None:
    """Replace regular expressions and layer numbers by the names of layers that have weights."""
    targets = fields.get("target_modules")
    plain = targets is None or targets == "all-linear" or isinstance(targets, list)
    others = ("exclude_modules", "layers_to_transform", "layers_pattern")
    if plain and not any(fields.get(name) not in (None, [], "") for name in others):
        return
    layers = {
        key.removeprefix(KEY_PREFIX).rpartition(part)[0]: shape
        for key, shape in shapes.items()
        for part in (".lora_A.", ".lora_embedding_A", ".ia3_l")
        if part in key
    }
    if not layers or not all(map(_NAME.fullmatch, layers)):
        raise CheckpointError(
            f"{place}: `target_modules` must list names of layers, got {str(targets)[:80]!r}"
        )
    fields["target_modules"] = sorted(layers)
    for name in others:
        fields.pop(name, None)
    if "feedforward_modules" in fields:
        fields["feedforward_modules"] = sorted(n for n, shape in layers.items() if shape[0] == 1)


def _check_size(fields: dict[str, Any], shapes: Shapes, place: Path) -> None:
    """Bound the memory: no rank or number of tokens may exceed the weights' shapes."""
    largest = max((max(shape, default=0) for shape in shapes.values()), default=0)
    if not shapes:
        return
    for name in ("r", "init_r", "num_virtual_tokens", "token_dim", "num_layers"):
        value = fields.get(name) or 0
        if name == "r" and fields.get("rank_pattern"):
            fields["r"] = min(value, largest)  # a layer of this rank has weights that large
        elif value > largest:
            raise CheckpointError(
                f"{place}: `{name}` is {value}, larger than the adapter's weights"
            )
    for pattern, rank in (fields.get("rank_pattern") or {}).items():
        if isinstance(rank, int) and rank > largest:
            raise CheckpointError(
                f"{place}: `rank_pattern` has {rank} for {pattern[:40]!r}, larger than the weights"
            )
    targets = fields.get("target_modules")
    if isinstance(targets, list) and len(targets) > len(shapes) + 64:
        raise CheckpointError(
            f"{place}: `target_modules` lists {len(targets)} layers, but there are {len(shapes)} weights"
        )


Check = Callable[[Any], bool]


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_names(value: Any) -> bool:
    """Whether a value is a list of layer names without patterns."""
    names = isinstance(value, list) and all(
        isinstance(v, str) and _NAME.fullmatch(v) for v in value
    )
    return value is None or names


def _whole(low: int, high: int = 1 << 20) -> Check:
    return lambda v: (
        v is None or (isinstance(v, int) and not isinstance(v, bool) and low <= v <= high)
    )


def _number(low: float, high: float) -> Check:
    return lambda v: (
        isinstance(v, int | float)
        and not isinstance(v, bool)
        and math.isfinite(v)
        and low <= v <= high
    )


def _by_layer(check: Check) -> Check:
    """Make a check for a mapping from layers to numbers; PEFT reads the keys as patterns."""
    return lambda v: (
        v is None
        or (
            isinstance(v, dict)
            and all(_PATTERN.fullmatch(key) and check(number) for key, number in v.items())
        )
    )


def _anything(_: Any) -> bool:
    return True


def _is_any_names(value: Any) -> bool:
    """Whether a value is names, or a pattern that `_use_layers_of_weights` replaces."""
    return isinstance(value, str) or _is_names(value)


_ALPHA = _number(-1e6, 1e6)
_COMMON: dict[str, Check] = {
    "task_type": lambda v: v in (None, "CAUSAL_LM", "SEQ_CLS", "FEATURE_EXTRACTION"),
    "base_model_name_or_path": _is_text,
    "revision": _is_text,
}
_LORA: dict[str, Check] = {
    "r": _whole(1),
    "lora_alpha": _ALPHA,
    "lora_dropout": _number(0, 1),
    "target_modules": _is_any_names,
    "exclude_modules": _is_any_names,
    "layers_to_transform": _anything,
    "layers_pattern": _anything,
    "fan_in_fan_out": _is_bool,
    "bias": lambda v: v in ("none", "all", "lora_only"),  # roles accept "none" only
    "use_rslora": _is_bool,
    "use_dora": _is_bool,
    "lora_bias": _is_bool,
    "modules_to_save": _is_names,
    "rank_pattern": _by_layer(_whole(1)),
    "alpha_pattern": _by_layer(_ALPHA),
    "qalora_group_size": _anything,  # without use_qalora it has no effect
}
_VIRTUAL: dict[str, Check] = {
    name: _whole(1)
    for name in (
        "num_virtual_tokens", "token_dim", "num_transformer_submodules", "num_attention_heads",
        "num_layers", "encoder_hidden_size",
    )
}  # fmt: skip
_ACCEPTED: dict[type[PeftConfig], dict[str, Check]] = {
    LoraConfig: _LORA,
    AdaLoraConfig: _LORA
    | {
        "rank_pattern": lambda v: v is None or isinstance(v, dict),  # not read: the weights decide
        "init_r": _whole(1),
        "target_r": _whole(0),
        "tinit": _whole(0, 1 << 40),
        "tfinal": _whole(0, 1 << 40),
        "deltaT": _whole(0, 1 << 40),
        "total_step": _whole(0, 1 << 40),
        "beta1": _number(0, 1),
        "beta2": _number(0, 1),
        "orth_reg_weight": _number(0, 1e6),
    },
    IA3Config: {
        "target_modules": _is_any_names,
        "exclude_modules": _is_any_names,
        "feedforward_modules": _is_any_names,
        "fan_in_fan_out": _is_bool,
        "init_ia3_weights": _is_bool,
    },
    PrefixTuningConfig: _VIRTUAL
    | {"prefix_projection": _is_bool, "init_weights": lambda v: v in (None, "zero")},
    PromptTuningConfig: _VIRTUAL
    | {"prompt_tuning_init": lambda v: v in ("RANDOM", "TEXT", "SAMPLE_VOCAB")},
}
