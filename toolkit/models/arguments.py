"""Which base, in what precision, and what kind of adapter: TRL's ModelConfig and what it lacks."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trl import ModelConfig

from toolkit.errors import ConfigError

METHODS = ("lora", "rslora", "dora", "adalora", "prefix", "prompt", "ia3")
LORA_KINDS = ("lora", "rslora", "dora")
VIRTUAL_TOKENS = 20
# what says how an adapter is shaped, by the methods that read it
_READ_BY = {
    "lora_r": (*LORA_KINDS, "adalora"),
    "lora_alpha": (*LORA_KINDS, "adalora"),
    "lora_dropout": (*LORA_KINDS, "adalora"),
    "lora_target_modules": (*LORA_KINDS, "adalora", "ia3"),
    "lora_modules_to_save": (*LORA_KINDS,),
    "use_rslora": LORA_KINDS,
    "use_dora": LORA_KINDS,
    "num_virtual_tokens": ("prefix", "prompt"),
}
_OF_4_BIT = ("bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage")


@dataclass
class ModelArguments(ModelConfig):  # type: ignore[misc]
    """TRL's ModelConfig; an option that would have no effect is refused, never dropped in silence."""

    peft_method: str | None = field(
        default=None,
        metadata={"help": "Kind of a new adapter; default lora.", "choices": list(METHODS)},
    )
    num_virtual_tokens: int | None = field(
        default=None,
        metadata={"help": f"Virtual tokens of prefix and prompt; default {VIRTUAL_TOKENS}."},
    )
    device_map: str | None = field(
        default=None,
        metadata={"help": "Where the base goes: cpu, cuda, cuda:1, auto; default the GPU, if any."},
    )
    chat_template: str | None = field(
        default=None,
        metadata={
            "help": "Template of messages: chatml, plain, or a Jinja file; default the tokenizer's."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.peft_method is not None and self.peft_method not in METHODS:
            raise ValueError(
                f"`peft_method` must be one of {', '.join(METHODS)}, got {self.peft_method!r}"
            )
        if self.lora_task_type != "CAUSAL_LM":
            raise ValueError(
                f"`lora_task_type` is {self.lora_task_type}, but the recipe knows its task; remove it"
            )
        if self.lora_target_parameters:
            raise ValueError(
                "`lora_target_parameters`: PEFT puts no second adapter with other targets on such "
                "layers, so no reward or value role would fit beside it; use `lora_target_modules`"
            )
        for name, low in (("lora_r", 1), ("lora_alpha", 1), ("num_virtual_tokens", 1)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise ValueError(f"`{name}` must be at least {low}, got {value}")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"`lora_dropout` must be in [0, 1), got {self.lora_dropout}")
        useless = [n for n in self._changed() if self.method not in _READ_BY[n]]
        if useless:
            raise ValueError(
                f"`peft_method` {self.method} has no {', '.join(useless)}; remove them, or choose one "
                f"of {', '.join(_READ_BY[useless[0]])}"
            )
        four_bit = [n for n in _OF_4_BIT if getattr(self, n) != _default(n)]
        if four_bit and not self.load_in_4bit:
            raise ValueError(f"`{four_bit[0]}` is for 4 bit only; set `load_in_4bit: true`")

    @property
    def method(self) -> str:
        """The kind of adapter, one of `METHODS`."""
        if self.peft_method in (None, "lora"):
            return "dora" if self.use_dora else "rslora" if self.use_rslora else "lora"
        return str(self.peft_method)

    def _changed(self) -> list[str]:
        return [name for name in _READ_BY if getattr(self, name) != _default(name)]

    def _agrees(self, name: str, other: "ModelArguments | None") -> bool:
        if other is None:
            return False
        if name in ("peft_method", "use_rslora", "use_dora"):
            return self.method == other.method
        ours, theirs = (getattr(it, name) for it in (self, other))
        return bool(sorted(ours) == sorted(theirs) if _lists(ours, theirs) else ours == theirs)

    @classmethod
    def of(cls, model: ModelConfig) -> "ModelArguments":
        """TRL's ModelConfig as ours."""
        return model if isinstance(model, cls) else cls(**vars(model))


def refuse_adapter_options(
    model: ModelConfig, *, because: str, made_with: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Refuse options of an adapter's shape where another thing decides it, and decides otherwise.

    Args:
        because: what decides, such as "the adapter comes from the parent".
        made_with: the options that each of the adapters was made with; what all of them were made
            with may be said again, so that one YAML will do for all stages.

    Raises: ConfigError naming the options.
    """
    ours = ModelArguments.of(model)
    given = [*(["peft_method"] if ours.peft_method else []), *ours._changed()]
    theirs = [_shaped(options) for options in made_with]
    useless = [n for n in given if not theirs or any(not ours._agrees(n, it) for it in theirs)]
    if useless:
        raise ConfigError(f"{', '.join(f'`{n}`' for n in useless)} would have no effect: {because}")


def _shaped(options: Mapping[str, Any]) -> ModelArguments | None:
    """The shape in a run's configuration; None where it says none."""
    said = {name: options[name] for name in ("peft_method", *_READ_BY) if name in options}
    try:
        return ModelArguments(**said) if said else None
    except (TypeError, ValueError):  # changed by hand
        return None


def _lists(*values: Any) -> bool:
    return all(isinstance(value, list) for value in values)


def _default(name: str) -> Any:
    return next(f.default for f in dataclasses.fields(ModelArguments) if f.name == name)
