"""Try options on a toy model, because libraries reject some only after the model is loaded."""

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from huggingface_hub import HfApi
from peft import PeftConfig
from transformers.utils import is_liger_kernel_available

from toolkit.errors import ConfigError
from toolkit.models.arguments import ModelArguments
from toolkit.models.tokenizer import load_tokenizer
from toolkit.preflight.dry_run import DryTraining
from toolkit.preflight.online_dry_run import dry_run
from toolkit.recipe import Options, Recipe
from toolkit.stages import Stage
from toolkit.world import BASE_NAME, resolve_base

OPTIMIZER_OPTIONS = ("optim", "optim_args", "lr_scheduler_type", "lr_scheduler_kwargs")
LOSS_OPTIONS = (
    "loss_type", "loss_weights", "label_smoothing", "label_smoothing_factor", "f_divergence_type",
    "f_alpha_divergence_coef", "use_weighting", "ld_alpha",
)  # fmt: skip
TOY_BATCH = 8  # GRPO's default for the answers to a prompt
LIBRARY_ERRORS = (ValueError, TypeError, KeyError, ImportError, NotImplementedError, ConfigError)


def try_training_options(name: str, args: Any) -> None:
    """Try to make the optimizer, the schedule and the log integrations for a single weight.

    Raises: ConfigError with the library's reason.
    """
    with _library_errors(name, {option: getattr(args, option) for option in OPTIMIZER_OPTIONS}):
        _try_optimizer(args)
    with _library_errors(name, {"report_to": args.report_to}):
        _try_reporting(args)
    if args.use_liger_kernel and not is_liger_kernel_available():
        raise ConfigError(
            f"{name}: `use_liger_kernel` needs the package liger-kernel, which is not installed; "
            "pip install liger-kernel, or remove the option"
        )
    if args.push_to_hub:
        _try_hub(name, args.hub_token)


def try_options(recipe: Recipe, options: Options) -> None:
    """Try training options; if loss options were changed, also try a step of the recipe's trainer.

    Raises: ConfigError with the library's reason.
    """
    try_training_options(recipe.name, options.args)
    changed = _changed_loss_options(options.args)
    if changed:
        with _library_errors(recipe.name, changed):
            _try_loss(recipe, options, changed)


@contextmanager
def _library_errors(name: str, options: Mapping[str, Any]) -> Iterator[None]:
    """Turn a library's error about these options into one line that names the options."""
    try:
        yield
    except LIBRARY_ERRORS as error:
        cause = error.__cause__ or error  # the library's own error, which `WholeCheckpoints` wraps
        values = ", ".join(f"`{n}` {getattr(v, 'value', v)}" for n, v in options.items() if v)
        reason = " ".join(str(cause).split()) or type(cause).__name__
        raise ConfigError(f"{name}: {values} cannot be used: {reason}") from error


def _try_optimizer(args: Any) -> None:
    from torch import nn
    from transformers import Trainer, get_scheduler

    toy = nn.Linear(1, 1)
    kind, options = Trainer.get_optimizer_cls_and_kwargs(args, toy)
    if {"model", "params", "optimizer_dict"} & options.keys():
        raise ValueError("it only works without adapters; set adamw_torch")
    get_scheduler(
        args.lr_scheduler_type,
        optimizer=kind(toy.parameters(), **options),
        num_warmup_steps=args.get_warmup_steps(10),
        num_training_steps=10,
        scheduler_specific_kwargs=args.lr_scheduler_kwargs,
    )


def _try_reporting(args: Any) -> None:
    from transformers.integrations import get_reporting_integration_callbacks

    for callback in get_reporting_integration_callbacks(args.report_to):
        try:
            callback()
        except RuntimeError as error:
            raise ImportError(str(error)) from error


def _try_hub(name: str, token: str | None) -> None:
    """Check the hub's token now, because after the training it would be too late."""
    try:
        HfApi().whoami(token)
    except Exception as error:  # of the hub's client and of its HTTP library
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ConfigError(
            f"{name}: `push_to_hub` needs the hub and a token that may write to it ({reason}); log in "
            "with `hf auth login`, or remove the option and upload the run later with `hf upload`"
        ) from error


def _changed_loss_options(args: Any) -> dict[str, Any]:
    """The loss options that differ from their defaults."""
    changed = {}
    for field in dataclasses.fields(args):
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if field.name in LOSS_OPTIONS and getattr(args, field.name) != default:
            changed[field.name] = getattr(args, field.name)
    return changed


def _try_loss(recipe: Recipe, options: Options, changed: Mapping[str, Any]) -> None:
    """One step of the recipe's trainer on fake tensors of the embedded base; no weights are read."""
    short = {"max_completion_length": 8} if hasattr(options.args, "max_completion_length") else {}
    with tempfile.TemporaryDirectory() as folder:
        args = type(options.args)(
            output_dir=folder,
            use_cpu=options.args.use_cpu,  # accelerate keeps one device for the whole process
            bf16=False,
            report_to="none",
            per_device_train_batch_size=TOY_BATCH,
            **short,
            **changed,
        )
        model = ModelArguments(model_name_or_path=BASE_NAME, use_peft=True)
        stage = Stage(recipe, options._replace(args=args, model=model))
        tokenizer = load_tokenizer(resolve_base(BASE_NAME))
        dry = dry_run(_ToyTraining(stage, tokenizer, layers=1))
        dry.peaks(TOY_BATCH)


class _ToyTraining(DryTraining):
    def adapter_config(self, run: str) -> PeftConfig:
        """The config of a new adapter, because the parent's adapter may not fit the embedded base."""
        return self.new_adapter_config(self.model)
