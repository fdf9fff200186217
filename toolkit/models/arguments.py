"""Options of the base and of a new adapter: TRL's ModelConfig and further options."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trl import ModelConfig

from toolkit.errors import ConfigError
from toolkit.options.fields import option

METHODS = ("lora", "rslora", "dora", "adalora", "prefix", "prompt", "ia3")
LORA_KINDS = ("lora", "rslora", "dora")
VIRTUAL_TOKENS = 20
# options of an adapter's shape -> the methods that use them
_USED_BY = {
    "lora_r": (*LORA_KINDS, "adalora"),
    "lora_alpha": (*LORA_KINDS, "adalora"),
    "lora_dropout": (*LORA_KINDS, "adalora"),
    "lora_target_modules": (*LORA_KINDS, "adalora", "ia3"),
    "lora_modules_to_save": (*LORA_KINDS,),
    "use_rslora": LORA_KINDS,
    "use_dora": LORA_KINDS,
    "num_virtual_tokens": ("prefix", "prompt"),
}
_FOUR_BIT = ("bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage")
# options that select the base and its precision
BASE = ("model_name_or_path", "model_revision", "dtype", "load_in_4bit", "load_in_8bit", *_FOUR_BIT)


@dataclass
class ModelArguments(ModelConfig):  # type: ignore[misc]
    """TRL's ModelConfig with further options; an option without effect raises an error."""

    peft_method: str | None = option(None, "Method of a new adapter; default lora.", *METHODS)
    num_virtual_tokens: int | None = option(
        None, f"Virtual tokens of prefix and prompt; default {VIRTUAL_TOKENS}."
    )
    device_map: str | None = option(
        None, "Device of the base: cpu, cuda, cuda:1, auto; default: any GPU."
    )
    chat_template: str | None = option(
        None,
        "Chat template: chatml, plain, thinking (the tokenizer's own, thoughts enabled), or "
        "a Jinja file; default the tokenizer's own.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.peft_method is not None and self.peft_method not in METHODS:
            raise ValueError(
                f"`peft_method` must be one of {', '.join(METHODS)}, got {self.peft_method!r}"
            )
        if self.lora_task_type != "CAUSAL_LM":
            raise ValueError(
                f"`lora_task_type` is set by the recipe, got {self.lora_task_type}; remove it"
            )
        if self.lora_target_parameters:
            raise ValueError(
                "`lora_target_parameters` is not supported: PEFT cannot add a second adapter to such "
                "layers, so the reward and value roles would not fit; use `lora_target_modules`"
            )
        for name in ("lora_r", "lora_alpha", "num_virtual_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"`lora_dropout` must be in [0, 1), got {self.lora_dropout}")
        unused = [n for n in self._changed() if self.method not in _USED_BY[n]]
        if unused:
            raise ValueError(
                f"`peft_method` {self.method} has no {', '.join(unused)}; remove them, or choose one "
                f"of {', '.join(_USED_BY[unused[0]])}"
            )
        four_bit = [n for n in _FOUR_BIT if getattr(self, n) != _default(n)]
        if four_bit and not self.load_in_4bit:
            raise ValueError(f"`{four_bit[0]}` is for 4 bit only; set `load_in_4bit: true`")

    @property
    def method(self) -> str:
        """The method of the adapter, one of `METHODS`."""
        if self.peft_method in (None, "lora"):
            return "dora" if self.use_dora else "rslora" if self.use_rslora else "lora"
        return str(self.peft_method)

    def _changed(self) -> list[str]:
        return [name for name in _USED_BY if getattr(self, name) != _default(name)]

    def _agrees(self, name: str, other: "ModelArguments | None") -> bool:
        """Whether an option has the same value in both; the order of layers does not count."""
        if other is None:
            return False
        if name in ("peft_method", "use_rslora", "use_dora"):
            return self.method == other.method
        values = [getattr(arguments, name) for arguments in (self, other)]
        ours, theirs = (sorted(v) if isinstance(v, list) else v for v in values)
        return bool(ours == theirs)

    def with_base_of(self, config: Mapping[str, Any]) -> "ModelArguments":
        """These options with the base and the precision of a run's config, unless a base is named."""
        if self.model_name_or_path is not None:
            return self
        own = {name: config[name] for name in BASE if config.get(name) is not None}
        changed = {n: v for n, v in own.items() if getattr(self, n) == _default(n)}
        return dataclasses.replace(self, **changed)

    @classmethod
    def of(cls, model: ModelConfig) -> "ModelArguments":
        """Convert TRL's ModelConfig to ModelArguments."""
        return model if isinstance(model, cls) else cls(**vars(model))


def reject_adapter_options(
    model: ModelConfig, *, because: str, made_with: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Reject adapter options that differ from those of the existing adapters.

    Args:
        because: why the options have no effect, such as "the adapter comes from the parent".
        made_with: the options that each existing adapter was made with. Equal options are accepted,
            so that one YAML can be used for all stages.

    Raises: ConfigError naming the options.
    """
    arguments = ModelArguments.of(model)
    options = [*(["peft_method"] if arguments.peft_method else []), *arguments._changed()]
    shapes = [_shape(config) for config in made_with]
    unused = [n for n in options if not shapes or any(not arguments._agrees(n, s) for s in shapes)]
    if unused:
        raise ConfigError(f"{', '.join(f'`{n}`' for n in unused)} would have no effect: {because}")


def _shape(config: Mapping[str, Any]) -> ModelArguments | None:
    """The adapter options in a run's configuration; None if they are missing or damaged."""
    options = {name: config[name] for name in ("peft_method", *_USED_BY) if name in config}
    try:
        return ModelArguments(**options) if options else None
    except (TypeError, ValueError):
        return None


def _default(name: str) -> Any:
    return next(f.default for f in dataclasses.fields(ModelArguments) if f.name == name)
