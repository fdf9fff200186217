"""Checks of a training recipe's options before anything is loaded; `toolkit check` runs them, too."""

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolkit.data.loading import check_source
from toolkit.errors import ConfigError
from toolkit.models.arguments import ModelArguments, reject_adapter_options
from toolkit.options.bounds import check_numbers
from toolkit.options.unsupported import reject_unsupported, reject_unusable
from toolkit.recipe import Options, Recipe, recipes
from toolkit.runs.inputs import require_separate
from toolkit.runs.parents import base_options, made_with, require_adapter
from toolkit.runs.replacing import refuse_unfinished
from toolkit.runs.resuming import is_requested, last_checkpoint
from toolkit.runs.settings import read_settings, require_same, settings_of
from toolkit.stages import is_planned


def check_requirements(
    recipe: Recipe, options: Options, *, planned: Mapping[str, Any] | None = None
) -> tuple[Options, str | None]:
    """Check that a recipe can start with these options; nothing is loaded, written or changed.

    For a stage of a pipeline, `planned` holds the directories that earlier stages will write. Then no
    checkpoint is looked up, because the pipeline decides about resuming.

    Returns: the resolved options (an ensemble's directory becomes those of its members; without
        `model_name_or_path`, the base is that of the parent; with `use_cpu` on a machine with a GPU, the
        base's `device_map` is "cpu"), and the checkpoint to resume from (None for a fresh start).
    Raises: ConfigError, DatasetError or CheckpointError that names the option and the fix.
    """
    from toolkit.preflight.options import try_options  # heavy: imports the trainers
    from toolkit.trainers.checkpoints import reject_jit_checkpoint

    name, planned_runs = recipe.name, planned or {}
    options = _on_one_device(recipe, options)
    script, args, model, mixture, own = options
    parent = options.parent
    for config in options:
        check_numbers(name, config)
        reject_unsupported(name, config)
    reject_unusable(name, recipe.rows, args)
    require_separate(args.output_dir, *_on_base_of_parents(options, planned_runs))
    if recipe.needs_parent and parent is None:
        raise ConfigError(f"{name}: `parent` is missing; add the SFT run: --parent runs/world/sft")
    if parent is not None:
        reject_adapter_options(
            model,
            because=f"the adapter comes from the parent {parent}",
            made_with=[_planned_made_with(parent, planned_runs)],
        )
    options = recipe.requirements(options, planned_runs)
    options = _on_base_of_parents(options, planned_runs)
    if parent is not None and not is_planned(parent, planned_runs):
        require_adapter(parent, "parent")
    if args.max_steps <= 0 and args.num_train_epochs <= 0:
        raise ConfigError(
            f"{name}: `num_train_epochs` must be above 0, got {args.num_train_epochs}; raise it, or set "
            "`max_steps`"
        )
    reject_jit_checkpoint(args)
    if script.dataset_streaming:
        _check_streaming(recipe, args)
    _check_packing(recipe, args)
    if not is_planned(script.dataset_name, planned_runs):
        check_source(script, mixture, own)
    demonstrations = getattr(own, "demonstrations", None)
    if demonstrations is not None:
        check_source(dataclasses.replace(script, dataset_name=demonstrations), type(mixture)())
    if parent is None and not model.use_peft:
        or_parent = ", or set `parent` to the SFT run" if hasattr(own, "parent") else ""
        raise ConfigError(
            f"{name}: `use_peft` is false, but only adapters can be trained: set it to true{or_parent}"
        )
    try_options(recipe, options)
    return options, None if planned is not None else _checkpoint(recipe, options)


def _checkpoint(recipe: Recipe, options: Options) -> str | None:
    """The checkpoint to resume from.

    Raises: CheckpointError if `output_dir` holds an unfinished run that is not resumed, or if the
        checkpoint was written with other options.
    """
    args, own = options.args, options.own
    resume = last_checkpoint(args.output_dir, args.resume_from_checkpoint)
    if resume and options.parent is None and options.model.method == "adalora":
        raise ConfigError(
            f"{recipe.name}: adalora cannot be resumed, because a checkpoint does not hold the "
            "importance of the ranks; start again with --resume_from_checkpoint false"
        )
    if resume is not None:
        saved = read_settings(Path(resume)) or {}
        require_same(Path(resume), saved, settings_of(options), inputs=False)
    if resume is None:
        is_ensemble = getattr(own, "ensemble", 1) > 1
        keeps_members = is_ensemble and is_requested(args.resume_from_checkpoint)
        refuse_unfinished(Path(args.output_dir), inside=not keeps_members)
    return resume


def _planned_made_with(parent: str, planned: Mapping[str, Any]) -> dict[str, Any]:
    """The options that the parent's adapter was made with, or will be made with by an earlier stage."""
    if not is_planned(parent, planned):
        return made_with(parent)
    stage = planned[str(parent)]
    grandparent, model = getattr(stage, "parent", None), getattr(stage, "model", None)
    if grandparent is not None:
        return _planned_made_with(grandparent, planned)
    return {} if model is None else vars(model)


def _on_base_of_parents(options: Options, planned: Mapping[str, Any]) -> Options:
    """The options with the base of the parent or of the first reward model, unless a base is named."""
    model = ModelArguments.of(options.model)
    for run in (options.parent, *options.rewards):
        if run is None or model.model_name_or_path is not None:
            continue
        if is_planned(run, planned):
            stage_model = getattr(planned[str(run)], "model", None)
            model = model if stage_model is None else model.with_base_of(vars(stage_model))
        else:
            model = model.with_base_of(base_options(run))
    return options._replace(model=model)


def _on_one_device(recipe: Recipe, options: Options) -> Options:
    """The options for one device.

    Raises: ConfigError if several GPUs are visible, because transformers would use all of them and
        multiply the batch.
    """
    import torch

    args, model = options.args, options.model
    if not args.use_cpu and torch.cuda.device_count() > 1:
        raise ConfigError(
            f"{recipe.name}: {torch.cuda.device_count()} GPUs are visible, but a run trains on one, "
            "because several would multiply the batch size. Choose one: CUDA_VISIBLE_DEVICES=0 "
            f"toolkit {recipe.name} …"
        )
    if args.use_cpu and torch.cuda.is_available() and model.device_map is None:
        model = copy.copy(model)
        model.device_map = "cpu"
    return options._replace(model=model)


def _check_packing(recipe: Recipe, args: Any) -> None:
    """Reject TRL's packing in which a row's tokens attend to the rows before it."""
    packs, packs_held_out = getattr(args, "packing", False), getattr(args, "eval_packing", None)
    if (packs or packs_held_out) and args.packing_strategy == "wrapped":
        raise ConfigError(
            f"{recipe.name}: `packing_strategy` wrapped cuts rows, and each row attends to the rows before "
            "it; set `packing_strategy: bfd`, which keeps rows separate"
        )
    if packs_held_out and not packs:
        raise ConfigError(
            f"{recipe.name}: with `eval_packing` but without `packing`, held-out rows attend to the rows "
            "before them; set `packing: true` as well, or remove `eval_packing`"
        )


def _check_streaming(recipe: Recipe, args: Any) -> None:
    if not recipe.streams:
        streaming = " and ".join(name for name, other in recipes().items() if other.streams)
        raise ConfigError(
            f"{recipe.name}: `dataset_streaming` is not supported, because {recipe.not_streamed}; remove "
            f"it, or use {streaming}"
        )
    if args.max_steps <= 0:
        raise ConfigError(
            f"{recipe.name}: `dataset_streaming` needs `max_steps` above 0, got {args.max_steps}; set it, "
            "because a stream's length is unknown"
        )
    for option in ("logging_strategy", "eval_strategy", "save_strategy"):
        if getattr(args, option) == "epoch":
            raise ConfigError(
                f"{recipe.name}: with `dataset_streaming`, `{option}` cannot be epoch, because a stream "
                "has no known end; set it to steps"
            )
    reasons = {
        "dataloader_num_workers": "rows are counted in the main process",
        "precompute_ref_log_probs": "TRL computes them for all rows before training",
    }
    for option, reason in reasons.items():
        if getattr(args, option, 0):
            raise ConfigError(
                f"{recipe.name}: `dataset_streaming` cannot be combined with `{option}`, because "
                f"{reason}; remove one of them"
            )
