"""Load the roles: policy and reference from an SFT run, reward and value from reward models."""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

from toolkit.errors import ConfigError
from toolkit.models.peft_methods import build_peft_config
from toolkit.models.roles import POLICY, REFERENCE, VALUE, Roles
from toolkit.trainers.load_policy import load_roles

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from trl import ModelConfig


def load_ppo_roles(
    model: "ModelConfig",
    *,
    policy: str | None = None,
    rewards: Sequence[str] = (),
    value: str | None = "adapter",
    trust_remote_code: bool = False,
) -> "tuple[Roles, PreTrainedTokenizerBase]":
    """Load the tokenizer and one base with all roles that `PPOTrainer` needs.

    Args:
        model: the base and its precision.
        policy, rewards, value: see `attach_ppo_roles`.
        trust_remote_code: run Python code that comes with the model.

    Raises: the errors of `load_roles`; CheckpointError if an adapter belongs to another base.
    """
    parent = policy or next(iter(rewards), None)
    roles, tokenizer = load_roles(model, parent=parent, trust_remote_code=trust_remote_code)
    attach_ppo_roles(roles, policy=policy, rewards=rewards, model=model, value=value)
    return roles, tokenizer


def attach_ppo_roles(
    roles: Roles,
    *,
    policy: str | None,
    rewards: Sequence[str],
    model: "ModelConfig",
    value: str | None = "adapter",
) -> None:
    """Attach policy, frozen reference, value and rewards.

    Args:
        policy: the SFT run that policy and reference start from. With None, the policy is a new
            adapter and the reference is the bare base; this is printed.
        rewards: reward runs; several runs form an ensemble.
        model: TRL's ModelConfig, with the options of a new adapter.
        value: "adapter": adapter and head start from the first reward model. "zero": a new adapter and a
            head of zeros. "head": only a head of zeros, which reads the policy's hidden states. None, for
            RLOO and GRPO: neither a value nor a reference, which TRL's trainers copy from the policy.
    """
    if policy is not None:
        roles.attach(POLICY, policy, trainable=True)
        if value is not None:
            roles.attach(REFERENCE, policy)
    else:
        config = build_peft_config(model, roles.base)
        if config is None:
            raise ConfigError("a policy without a parent needs a new adapter; set `use_peft: true`")
        print("no parent: the reference is the bare base, and the policy starts as a new adapter")
        roles.create(POLICY, config)
    roles.attach_rewards(rewards)
    if value == "adapter":
        if not rewards:
            raise ConfigError(
                "`value_role` adapter needs a reward model to start from; set it to zero or head"
            )
        roles.attach(VALUE, rewards[0], head=True, trainable=True)
        return
    if value is None:
        return
    roles.add_value_head()
    if value == "zero":
        assert roles.model is not None
        roles.create(VALUE, copy.deepcopy(roles.model.peft_config[POLICY]))
