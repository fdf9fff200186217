"""Checks of the roles, data and settings of PPO, RLOO and GRPO before anything is computed."""

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from toolkit.errors import ConfigError
from toolkit.models.roles import POLICY, VALUE, Roles
from toolkit.ppo.config import EVALUATED, PPOConfig
from toolkit.ppo.prompts import require_prompts
from toolkit.reward.functions import RewardFunction

# options of the library's training step, and why training on sampled answers cannot use them
UNSUPPORTED = {
    "neftune_noise_alpha": "it adds noise to embeddings in updates but not in rollouts, so the "
    "policy ratio would never be 1",
    "auto_find_batch_size": "the size of a minibatch changes the result; `check` finds one that fits",
    "torch_compile": "the trainer calls only parts of the model",
    "torch_empty_cache_steps": "the trainer frees memory between rollout and updates",
}


def require(condition: object, message: str) -> None:
    """Raise ConfigError unless a condition holds."""
    if not condition:
        raise ConfigError(message)


def check_requirements(
    roles: Roles,
    args: PPOConfig,
    tokenizer: PreTrainedTokenizerBase,
    train_dataset: Dataset,
    reward_funcs: Sequence[RewardFunction],
    ptx_texts: Sequence[str],
    *,
    has_eval_metrics: bool,
    has_optimizer: bool,
) -> None:
    """Raise ConfigError if roles, data and settings do not fit together.

    Args:
        has_eval_metrics: whether evaluations add metrics of `eval_metrics`, whose names are not yet known.
        has_optimizer: whether the caller passes an optimizer.
    """
    require(
        roles.model is not None and POLICY in roles.model.peft_config and VALUE in roles.heads,
        f"PPO needs the roles {POLICY!r} and {VALUE!r}; attach them with toolkit.ppo.roles",
    )
    require(
        args.total_episodes or args.max_steps > 0 or args.num_train_epochs > 0,
        f"`num_train_epochs` is {args.num_train_epochs}, so nothing would be trained; set it above 0, or "
        "set `total_episodes` or `max_steps`",
    )
    check_shared_requirements(
        roles, args, tokenizer, train_dataset, reward_funcs, has_eval_metrics=has_eval_metrics
    )
    require(
        not args.ptx_coef or ptx_texts,
        f"`ptx_coef` is {args.ptx_coef}, but there are no pretraining texts; pass `ptx_texts`",
    )
    _check_options(args, has_optimizer)


def check_shared_requirements(
    roles: Roles,
    args: Any,
    tokenizer: PreTrainedTokenizerBase,
    train_dataset: Dataset,
    reward_funcs: Sequence[RewardFunction],
    *,
    has_eval_metrics: bool,
) -> None:
    """Raise ConfigError if rewards, prompts and settings do not fit together; see `check_requirements`."""
    require(tokenizer.eos_token, "the tokenizer has no EOS token; set its `eos_token`")
    require_prompts(train_dataset)
    require(len(train_dataset), "the training split is empty; training needs at least one prompt")
    require(
        roles.rewards or reward_funcs,
        "there is no reward; attach a reward role, or pass `reward_funcs`",
    )
    for function in reward_funcs:
        require(callable(function), f"`reward_funcs` must be functions, got {function!r}")
    weights = len(reward_funcs) if args.reward_weights is None else len(args.reward_weights)
    require(
        weights == len(reward_funcs),
        f"`reward_weights` must have one weight for each of {len(reward_funcs)} functions, got {weights}",
    )
    for name in ("completion_ids", "completions", "prompts") if reward_funcs else ():
        require(
            name not in train_dataset.column_names,
            f"the dataset has a column `{name}`, but reward functions get `{name}` from the rollout; "
            "rename the column",
        )
    for option, reason in UNSUPPORTED.items():
        value = getattr(args, option)
        require(not value, f"`{option}` {value} is not supported, because {reason}; remove it")
    optim = getattr(args.optim, "value", args.optim)
    require(
        "schedule_free" not in str(optim),
        f"`optim` {optim} is not supported, because rollouts would not use its averaged weights; choose "
        "another optimizer",
    )
    require(
        args.world_size <= 1,
        f"training needs one process, got {args.world_size} processes; start it without a launcher",
    )
    require(
        args.n_gpu <= 1,
        f"training needs one GPU, but {args.n_gpu} are visible; choose one: CUDA_VISIBLE_DEVICES=0",
    )
    name = _best_metric(args)
    of_task = has_eval_metrics and not name.startswith("objective/")
    require(
        not name or of_task or name in EVALUATED,
        f"`metric_for_best_model` is {args.metric_for_best_model!r}, which the evaluation does not "
        f"measure; choose one of {', '.join(EVALUATED)}"
        + (", or a metric of `eval_metrics`" if has_eval_metrics else ""),
    )


def _check_options(args: PPOConfig, has_optimizer: bool) -> None:
    """Raise ConfigError for options of PPO that do not fit together."""
    require(
        args.value_learning_rate is None or not has_optimizer,
        "`value_learning_rate` has no effect on an optimizer that you pass; remove it, and put the "
        "value's parameters into their own parameter group",
    )
    require(
        not args.fp16 or args.target_kl is None,
        "`target_kl` skips updates, but gradient scaling of fp16 needs every update; use bf16, or remove "
        "`target_kl`",
    )


def check_best_metric(args: Any, metrics: Mapping[str, float]) -> None:
    """Raise ConfigError if an evaluation lacks the metric that chooses the best checkpoint."""
    name = _best_metric(args)
    measured = [key.removeprefix("eval_") for key in metrics]
    require(
        not name or name in measured,
        f"`metric_for_best_model` is {args.metric_for_best_model!r}, which this evaluation did not "
        f"measure; choose one of {', '.join(measured)}",
    )


def _best_metric(args: Any) -> str:
    """The name of the metric without its optional prefix `eval_`; empty if no metric is set."""
    return (args.metric_for_best_model or "").removeprefix("eval_")
