"""Values of options that no training could use, and those that the libraries would refuse only later."""

import dataclasses
import math
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from toolkit.errors import ConfigError

SEEDS = 2**32 - 1  # numpy's highest

# (lowest, whether it is itself too low, highest): the options, ours, TRL's and transformers'
BOUNDS: dict[tuple[float, bool, float], tuple[str, ...]] = {
    (0, True, math.inf): (
        "beta", "discopop_tau", "logging_steps", "save_steps", "eval_steps",
    ),
    (0, False, math.inf): (
        "learning_rate", "weight_decay", "adam_epsilon", "max_grad_norm", "warmup_steps", "eval_delay",
        "dataloader_num_workers", "save_total_limit", "neftune_noise_alpha",
        "center_rewards_coefficient",
        "desirable_weight", "undesirable_weight", "router_aux_loss_coef", "loss_weights",
    ),
    (0, False, 1): (
        "adam_beta1", "adam_beta2", "label_smoothing_factor", "ld_alpha", "ref_model_mixup_alpha",
    ),
    (0, False, 0.5): ("label_smoothing",),  # a label that is wrong more often than not is none
    (0, False, SEEDS): ("seed", "data_seed"),
    (1, False, math.inf): (
        "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
        "eval_accumulation_steps", "max_length", "dataset_num_proc",
        "pad_to_multiple_of", "ref_model_sync_steps", "precompute_ref_batch_size", "vocab_size",
        "tokenizer_documents", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "width",
    ),
}  # fmt: skip
WHOLE_ABOVE_1 = ("logging_steps", "save_steps", "eval_steps")  # below they are shares of all steps
OF_THE_OPTIMIZER = ("optim", "optim_args", "lr_scheduler_type", "lr_scheduler_kwargs")
# what a loss is made of, beside numbers that `BOUNDS` has
OF_THE_LOSS = (
    "loss_type", "loss_weights", "label_smoothing", "label_smoothing_factor", "f_divergence_type",
    "f_alpha_divergence_coef", "use_weighting", "ld_alpha", "sync_ref_model",
)  # fmt: skip
REFUSALS = (ValueError, TypeError, KeyError, ImportError, NotImplementedError)
ROWS = [{"prompt": "Sky?", "chosen": "Blue.", "rejected": "Green.", "completion": "Blue."}]
COLUMNS = {
    "sft": ("prompt", "completion"),
    "dpo": ("prompt", "chosen", "rejected"),
    "kto": ("prompt", "completion", "label"),
}


def check_numbers(recipe: str, config: Any) -> None:
    """Raise ConfigError naming a number that is out of its range."""
    for (low, strict, high), names in BOUNDS.items():
        wanted = f"above {low}" if strict else f"at least {low}"
        wanted = wanted if high == math.inf else f"in {low}…{high}"
        for name in names:
            for value in _numbers(config, name):
                if not (low < value or (value == low and not strict)) or value > high:
                    raise ConfigError(f"{recipe}: `{name}` must be {wanted}, got {value}")
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
            f"{recipe}: `max_steps` must be at least 1, or -1 for as many as `num_train_epochs` make, "
            f"got {steps}"
        )
    for field in dataclasses.fields(config):
        given = getattr(config, field.name)
        words = str(given) if field.name == "optim_args" else ""  # "eps=1e-6,betas=(0.9, 0.99)"
        if _holds_nan(given) or re.search(r"\bnan\b", words, re.IGNORECASE):
            raise ConfigError(f"{recipe}: `{field.name}` holds a NaN; expected a number")


def _holds_nan(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_nan, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(_holds_nan, value))
    return isinstance(value, float) and math.isnan(value)


def try_options(recipe: str, training: Any) -> None:
    """Raise ConfigError for an optimizer, a schedule, a log or a loss that the libraries refuse.

    They are made as the trainer would, for a toy: so all that a library checks is known of before a
    model is loaded.
    """
    with _refusals(recipe, {name: getattr(training, name) for name in OF_THE_OPTIMIZER}):
        _try_optimizer(training)
    with _refusals(recipe, {"report_to": training.report_to}):
        _try_reporting(training)
    changed = _changed(training) if recipe in COLUMNS else {}
    if changed:
        with _refusals(recipe, changed):
            _try_loss(recipe, training, changed)


@contextmanager
def _refusals(recipe: str, options: Mapping[str, Any]) -> Iterator[None]:
    """What a library raises at these options, as one line that names them."""
    try:
        yield
    except (*REFUSALS, ConfigError) as error:
        reason = error.__cause__ or error  # the library's own, which `WholeCheckpoints` wraps
        given = ", ".join(f"`{n}` {getattr(v, 'value', v)}" for n, v in options.items() if v)
        said = " ".join(str(reason).split()) or type(reason).__name__
        raise ConfigError(f"{recipe}: {given} cannot be used: {said}") from error


def _try_optimizer(training: Any) -> None:
    """Make the optimizer and the schedule, of a single weight."""
    from torch import nn
    from transformers import Trainer, get_scheduler

    toy = nn.Linear(1, 1)
    kind, options = Trainer.get_optimizer_cls_and_kwargs(training, toy)
    if {"model", "params", "optimizer_dict"} & options.keys():
        raise ValueError("it is for full training, and not for adapters; set adamw_torch")
    get_scheduler(
        training.lr_scheduler_type,
        optimizer=kind(toy.parameters(), **options),
        num_warmup_steps=training.get_warmup_steps(10),
        num_training_steps=10,
        scheduler_specific_kwargs=training.lr_scheduler_kwargs,
    )


def _try_reporting(training: Any) -> None:
    from transformers.integrations import get_reporting_integration_callbacks

    for callback in get_reporting_integration_callbacks(training.report_to):
        try:
            callback()
        except RuntimeError as error:
            raise ImportError(str(error)) from error


def _numbers(config: Any, name: str) -> list[float]:
    """The value of an option, or its values; none where it is not set or a word."""
    given = getattr(config, name, None)
    values = given if isinstance(given, list) else [given]
    return [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]


def _changed(training: Any) -> dict[str, Any]:
    """The options of the loss that are not TRL's defaults."""
    default = type(training).__dataclass_fields__
    found = {name: getattr(training, name) for name in OF_THE_LOSS if name in default}
    return {n: value for n, value in found.items() if value != _default(default[n])}


def _default(field: Any) -> Any:
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()


def _try_loss(recipe: str, training: Any, changed: Mapping[str, Any]) -> None:
    """One step of TRL's own trainer on a phantom of the embedded base; no weight is read."""
    from datasets import Dataset

    from toolkit.models.arguments import ModelArguments
    from toolkit.models.tokenizer import load_tokenizer
    from toolkit.preflight.dry_run import Rehearsal
    from toolkit.world import BASE_NAME, resolve_base

    rows = [{"label": good, **row} for row in ROWS for good in (True, False)]
    table = Dataset.from_list([{n: row[n] for n in COLUMNS[recipe]} for row in rows])
    tokenizer = load_tokenizer(resolve_base(BASE_NAME))
    with tempfile.TemporaryDirectory() as folder:
        toy = type(training)(
            output_dir=folder,
            use_cpu=training.use_cpu,  # for accelerate the whole process is where this says
            bf16=False,
            report_to="none",
            per_device_train_batch_size=2,
            **changed,
        )
        model = ModelArguments(model_name_or_path=BASE_NAME, use_peft=True)
        dry = Rehearsal(recipe, toy, model, table, tokenizer, parent=None, layers=1)
        dry.step(dict(dry.trainer.train_dataset[0]), batch=2)
