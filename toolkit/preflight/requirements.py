"""What a training recipe refuses before it loads anything; check.py asks the same."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit.data.loading import check_source
from toolkit.errors import CheckpointError, ConfigError
from toolkit.models.arguments import refuse_adapter_options
from toolkit.models.heads import HEAD_FILE
from toolkit.options.config import is_local_path
from toolkit.preflight.options import check_numbers, try_options
from toolkit.reward.functions import check_names
from toolkit.runs.parents import is_finished, made_with, require_adapter, reward_models
from toolkit.runs.replacing import refuse_unfinished
from toolkit.runs.resuming import asked, last_checkpoint
from toolkit.runs.run import Run


def opening(
    recipe: str, configs: Sequence[Any], *, made_before: Mapping[str, Any] | None = None
) -> str | None:
    """Whether a recipe can begin with these arguments; nothing is loaded or written.

    Two options are changed: PPO's `reward_model`, where an ensemble's folder becomes the folders of its
    members, and with `use_cpu` on a machine with a GPU the base's `device_map`.

    Args:
        recipe: sft, reward, ppo, dpo or kto.
        configs: its five argument classes, in their order.
        made_before: for a pipeline's stage the directories that earlier stages will have made. The
            pipeline decides itself what it resumes.

    Returns: the checkpoint to resume from, None for a fresh start.
    Raises: ConfigError, DatasetError or CheckpointError naming the option and what would do.
    """
    script, training, model, mixture, start = configs
    later: Mapping[str, Any] = {} if made_before is None else made_before
    parent = getattr(start, "parent", None)
    _one_device(recipe, training, model)
    for config in configs:
        check_numbers(recipe, config)
    if recipe in ("dpo", "kto") and parent is None:
        raise ConfigError(
            f"{recipe}: `parent` is missing; give the SFT run: --parent runs/world/sft"
        )
    if recipe == "kto":
        _open_kto(training)
    if parent is not None:
        refuse_adapter_options(
            model,
            because=f"the adapter is that of the parent {parent}",
            made_with=[_made_with(parent, later)],
        )
    if recipe == "ppo":
        _open_ppo(training, start, later)
    if parent is not None and not is_planned(parent, later):
        require_adapter(parent, "parent")
    _check_epochs(recipe, training)
    if script.dataset_streaming:
        _open_stream(recipe, training)
    if not is_planned(script.dataset_name, later):
        check_source(script, mixture, start)
    if getattr(start, "demonstrations", None) is not None:
        check_source(
            dataclasses.replace(script, dataset_name=start.demonstrations), type(mixture)()
        )
    if parent is None and not model.use_peft:
        raise ConfigError(
            f"{recipe}: `use_peft` is false, but only adapters are trained: set it to true"
            + ("" if recipe == "sft" else ", or give the SFT run as `parent`")
        )
    try_options(recipe, training)
    if made_before is not None:
        return None
    resume = last_checkpoint(training.output_dir, training.resume_from_checkpoint)
    if resume and recipe == "sft" and model.method == "adalora":
        raise ConfigError(
            "sft: adalora cannot be resumed, no checkpoint holds what it knows of the importance of "
            "ranks; start again with --resume_from_checkpoint false"
        )
    if resume is None:
        ensemble = recipe == "reward" and start.ensemble > 1
        goes_on = ensemble and asked(training.resume_from_checkpoint)  # with the members it has
        refuse_unfinished(Path(training.output_dir), inside=not goes_on)
    return resume


def require_reward_models(path: str) -> list[str]:
    """The folder of a reward model, or those of an ensemble's members, each looked at cheaply.

    Raises: CheckpointError where one is missing, unfinished, or no reward model.
    """
    found = reward_models(path)
    for member in found:
        require_adapter(member, "reward_model")
        if not (Path(member) / HEAD_FILE).is_file():
            raise CheckpointError(
                f"reward_model: {member} has no {HEAD_FILE}, so it is no reward model; give a "
                "run of recipes/reward.py"
            )
    return found


def is_planned(name: str | None, later: Mapping[str, Any]) -> bool:
    """Whether an earlier stage of the pipeline has yet to make, or to finish, what an option names.

    A dataset or a run that is there and finished is looked at as any other.
    """
    if name is None or str(name) not in later:
        return False
    folder = Path(name)
    if (folder / "run.json").is_file() and not (folder / "adapter_config.json").is_file():
        return Run.load(folder).state != "finished"  # comparisons, or an ensemble
    return not is_finished(folder) if is_local_path(name) else True


def _made_with(parent: str, later: Mapping[str, Any]) -> dict[str, Any]:
    """The options that the parent's adapter was made with, or will be by an earlier stage."""
    if not is_planned(parent, later):
        return made_with(parent)
    stage = later[str(parent)]
    before, model = getattr(stage, "parent", None), getattr(stage, "model", None)
    if before is not None:
        return _made_with(before, later)
    return {} if model is None else vars(model)


def _one_device(recipe: str, training: Any, model: Any) -> None:
    """Refuse several GPUs, over which transformers would spread a run and multiply its batch.

    With `use_cpu` the base stays off a card that is there, too.
    """
    import torch

    if training.use_cpu and torch.cuda.is_available() and model.device_map is None:
        model.device_map = "cpu"
    if not training.use_cpu and torch.cuda.device_count() > 1:
        raise ConfigError(
            f"{recipe}: {torch.cuda.device_count()} GPUs are visible, but a run trains on one; on several "
            "its batch would be another than the config says. Choose one: CUDA_VISIBLE_DEVICES=0 "
            "python recipes/…"
        )


def _open_ppo(training: Any, start: Any, later: Mapping[str, Any]) -> None:
    check_names(start.reward_funcs)
    if not start.reward_model and not start.reward_funcs:
        raise ConfigError(
            "ppo: `reward_model` is missing: --reward_model runs/world/reward, or --reward_funcs "
            "FILE.py:FUNCTION"
        )
    if not start.reward_model and training.value_role == "adapter":
        raise ConfigError(
            "ppo: the value starts from the reward model, and there is none: --value_role zero (an "
            "adapter of its own) or head (on the policy's trunk)"
        )
    found: list[str] = []
    for run in start.reward_model:
        if is_planned(run, later):
            planned = getattr(getattr(later[str(run)], "start", None), "ensemble", 1)
            found += [run] if planned == 1 else [f"{run}/member-{i}" for i in range(planned)]
            continue
        found += require_reward_models(run)
    start.reward_model = found
    if training.ptx_coef and start.ptx_texts is None:
        raise ConfigError(
            f"ppo: `ptx_coef` is {training.ptx_coef}, but there are no pretraining texts: set "
            "`ptx_texts`, such as world:corpus"
        )


def _check_epochs(recipe: str, training: Any) -> None:
    if training.max_steps <= 0 and training.num_train_epochs <= 0:
        raise ConfigError(
            f"{recipe}: `num_train_epochs` must be above 0, got {training.num_train_epochs}: nothing "
            "would be trained"
        )


def require_test_split(training: Any, splits: Mapping[str, Any]) -> None:
    """Raise ConfigError where a run shall be evaluated, but nothing is held out."""
    strategy = getattr(training.eval_strategy, "value", training.eval_strategy)
    if strategy != "no" and "test" not in splits:
        raise ConfigError(
            f"`eval_strategy` is {strategy}, but there is no test split: set `test_split_size`, or "
            "`eval_strategy: no`"
        )


def _open_stream(recipe: str, training: Any) -> None:
    reasons = {
        "reward": "a ranking's pairs must be together",
        "ppo": "rollouts draw from all prompts",
        "kto": "all rows are shuffled before the first step",
    }
    if recipe in reasons:
        raise ConfigError(
            f"{recipe}: `dataset_streaming` is for sft and dpo, since {reasons[recipe]}; leave it out"
        )
    if training.max_steps <= 0:
        raise ConfigError(
            f"{recipe}: `dataset_streaming` needs `max_steps`, since a stream's end is not known, got "
            f"{training.max_steps}"
        )
    wrong = {
        "dataloader_num_workers": "its rows are counted in this process",
        "precompute_ref_log_probs": "TRL needs all rows for it",
    }
    for option, why in wrong.items():
        if getattr(training, option, 0):
            raise ConfigError(
                f"{recipe}: `dataset_streaming` and `{option}` do not go together, since {why}; leave "
                "one out"
            )


def _open_kto(training: Any) -> None:
    if training.loss_type == "apo_zero_unpaired":  # which needs no KL
        return
    if training.per_device_train_batch_size < 2:
        raise ConfigError(
            "kto: `per_device_train_batch_size` must be at least 2: KTO estimates its KL on answers to "
            "the other prompts of the batch"
        )
    if training.train_sampling_strategy != "sequential":
        raise ConfigError(
            f"kto: `train_sampling_strategy` must be sequential, got {training.train_sampling_strategy}: "
            "a row's KL is taken from its neighbour (the recipe shuffles the rows once)"
        )
