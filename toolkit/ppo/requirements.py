"""Whether roles, data and settings of a PPO run fit together, before anything is computed."""

from collections.abc import Mapping, Sequence

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from toolkit.errors import ConfigError
from toolkit.models.roles import POLICY, VALUE, Roles
from toolkit.ppo.config import EVALUATED, PPOConfig
from toolkit.ppo.prompts import require_prompts
from toolkit.reward.rewards import RewardFunction


def check_ppo(
    roles: Roles,
    args: PPOConfig,
    tokenizer: PreTrainedTokenizerBase,
    train_dataset: Dataset,
    reward_funcs: Sequence[RewardFunction],
    ptx_texts: Sequence[str],
    *,
    more_metrics: bool,
    own_optimizer: bool,
) -> None:
    """Raises: ConfigError for roles, data or settings that do not fit together.

    With `more_metrics` evaluations have numbers of the task's own, whose names show only then; with
    `own_optimizer` the caller brings one.
    """
    if roles.model is None or POLICY not in roles.model.peft_config or VALUE not in roles.heads:
        raise ConfigError(
            f"PPO needs the roles {POLICY!r} and {VALUE!r} attached; see toolkit.models.roles"
        )
    if tokenizer.eos_token is None:
        raise ConfigError("the tokenizer has no EOS token, so no completion could end")
    require_prompts(train_dataset)
    if args.total_episodes is None and args.max_steps <= 0 and args.num_train_epochs <= 0:
        raise ConfigError(
            f"`num_train_epochs` is {args.num_train_epochs}, so there is nothing to train: it must be "
            "above 0, or give `total_episodes` or `max_steps`"
        )
    silent = [f for f in reward_funcs if not callable(f)]
    if silent:
        raise ConfigError(f"`reward_funcs` must be functions, got {silent[0]!r}")
    if not roles.rewards and not reward_funcs:
        raise ConfigError("PPO needs a reward: a reward role attached, or `reward_funcs`")
    if args.reward_weights is not None and len(args.reward_weights) != len(reward_funcs):
        raise ConfigError(
            f"`reward_weights` has {len(args.reward_weights)} weights for {len(reward_funcs)} "
            "reward functions"
        )
    taken = sorted({"prompts", "completions", "completion_ids"} & set(train_dataset.column_names))
    if reward_funcs and taken:
        raise ConfigError(
            f"the dataset has a column `{taken[0]}`, which is what a reward function gets by that "
            "name from the rollout: rename the column"
        )
    if args.neftune_noise_alpha:
        raise ConfigError(
            f"`neftune_noise_alpha` is {args.neftune_noise_alpha}: updates would read noisy embeddings "
            "and rollouts clean ones, so that the ratio is never 1; leave it out"
        )
    _refuse_without_effect(args)
    if args.value_learning_rate is not None and own_optimizer:
        raise ConfigError(
            "`value_learning_rate` is for the optimizer that the options describe; in yours give the "
            "value's parameters a group"
        )
    if args.fp16 and args.target_kl is not None:
        raise ConfigError(
            "`target_kl` skips updates, and fp16's scaling of gradients needs every one: use bf16, "
            "or leave `target_kl` out"
        )
    if len(train_dataset) == 0:
        raise ConfigError("PPO needs at least one prompt, the training split is empty")
    if args.ptx_coef != 0 and not ptx_texts:
        raise ConfigError(f"`ptx_coef` is {args.ptx_coef}, but there are no pretraining texts")
    _check_best(args, more_metrics)
    if args.world_size > 1:
        raise ConfigError(
            f"PPO runs in one process, on one GPU; started with {args.world_size} processes"
        )
    if args.n_gpu > 1:
        raise ConfigError(
            f"PPO runs on one GPU; {args.n_gpu} are visible: choose one by CUDA_VISIBLE_DEVICES=0"
        )


def _refuse_without_effect(args: PPOConfig) -> None:
    """What the library does in a step of its own, for which PPO has others."""
    reasons = {
        "optim": "averages weights of its own, which rollouts would not use",
        "auto_find_batch_size": "a minibatch's size decides what PPO computes; try recipes/check.py",
        "torch_compile": "roles take turns on the model, which is never called as a whole",
        "torch_empty_cache_steps": "memory is given back between rollout and updates, not by steps",
    }
    given = {name: getattr(args, name) for name in reasons}
    if "schedule_free" not in str(getattr(args.optim, "value", args.optim)):
        given.pop("optim")
    for name, value in given.items():
        if value:
            shown = getattr(value, "value", value)
            raise ConfigError(f"`{name}` {shown} is not for PPO: {reasons[name]}; leave it out")


def _check_best(args: PPOConfig, more_metrics: bool) -> None:
    """A name that no evaluation has would end the run at the first one."""
    name = _best_by(args)
    own = name.startswith("objective/") or not more_metrics
    if name and own and name not in EVALUATED:
        raise ConfigError(
            f"`metric_for_best_model` is {args.metric_for_best_model!r}, which PPO's evaluation does "
            f"not measure; it measures {', '.join(EVALUATED)}"
            + (", and what `eval_metrics` adds" if more_metrics else "")
        )


def require_best(args: PPOConfig, metrics: Mapping[str, float]) -> None:
    """Raises: ConfigError where an evaluation lacks the number by which checkpoints are chosen."""
    name = _best_by(args)
    if name and f"eval_{name}" not in metrics:
        measured = ", ".join(key.removeprefix("eval_") for key in metrics)
        raise ConfigError(
            f"`metric_for_best_model` is {args.metric_for_best_model!r}, which this evaluation did not "
            f"measure; it measured {measured}"
        )


def _best_by(args: PPOConfig) -> str:
    """The name without the prefix that may stand before it; empty where none is asked for."""
    return (args.metric_for_best_model or "").removeprefix("eval_")
