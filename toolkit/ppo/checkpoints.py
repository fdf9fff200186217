"""PPO's part of a checkpoint: policy and value as PEFT files, open rollout, β, averaged policy."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from toolkit.errors import CheckpointError
from toolkit.models.roles import POLICY, REFERENCE, VALUE, Roles, belongs_to
from toolkit.ppo.config import PPOConfig
from toolkit.ppo.ema import LAST, PolicyEMA, averaged_policy
from toolkit.ppo.experience import Experience, KLController
from toolkit.reward.functions import RewardFunction, name_of
from toolkit.runs.code_files import code_of
from toolkit.runs.run import write_json
from toolkit.trainers.totals import read_state

EXPERIENCE_FILE, STATE_FILE = "experience.safetensors", "ppo_state.json"
STATE = {"kl_coef": float, "stopped": bool, "metrics": dict[str, list[float]]}


@dataclass
class OpenRollout:
    """The rollout in use, whether `target_kl` stopped its updates, and metrics since the last log."""

    experience: Experience | None = None
    stopped: bool = False
    metrics: dict[str, list[Tensor | float]] = field(default_factory=lambda: defaultdict(list))


@dataclass
class PPOCheckpoints:
    """Writes and reads PPO's part of a checkpoint. In float32 on a CPU, resuming is bit-exact.

    `prompts` and `ptx` are token ids of the training prompts and of the pretraining texts.
    """

    roles: Roles
    args: PPOConfig
    tokenizer: PreTrainedTokenizerBase
    open_rollout: OpenRollout
    kl_control: KLController
    ema: PolicyEMA | None
    prompts: Sequence[Sequence[int]]
    ptx: Sequence[Sequence[int]]
    functions: Sequence[RewardFunction]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Settings, besides options, that a resumed run must share with its checkpoint.

        Names of reward functions, and hashes of their code, of prompts, pretraining texts and frozen
        weights.
        """
        return shared_settings(self.roles, self.functions, self.prompts) | {
            "pretraining texts": _hash_rows(self.ptx)
        }

    def save(self, folder: Path) -> None:
        """Save roles and state. With `ema_decay`, a finished run holds the averaged policy instead."""
        finished = not folder.name.startswith("checkpoint-")
        with averaged_policy(self.ema if finished else None):
            self.roles.save(POLICY, folder)
        self.roles.save(VALUE, folder / VALUE)
        self.tokenizer.save_pretrained(folder)
        if self.ema is not None and finished:
            self.roles.save(POLICY, folder / LAST)
            print(f"{folder}: {self.ema}", flush=True)
        elif self.ema is not None:
            self.ema.save(folder)
        rollout = self.open_rollout
        if not finished and rollout.experience is not None:
            rollout.experience.save(folder / EXPERIENCE_FILE)
            state = {
                "kl_coef": self.kl_control.coef,
                "stopped": rollout.stopped,
                "metrics": {n: list(map(float, xs)) for n, xs in rollout.metrics.items()},
            }
            write_json(folder / STATE_FILE, state)

    def check(self, checkpoint: Path) -> None:
        """Raise CheckpointError if a checkpoint contains no rollout."""
        if not (checkpoint / EXPERIENCE_FILE).is_file():
            raise CheckpointError(
                f"{checkpoint}: {EXPERIENCE_FILE} is missing; resume from another checkpoint"
            )

    def old_settings(self, checkpoint: Path) -> dict[str, Any] | None:
        """The settings in a checkpoint of an earlier version, or None."""
        return read_state(checkpoint / STATE_FILE).get("settings")

    def load(self, folder: Path) -> None:
        """Load weights, open rollout, β and averaged policy from a checkpoint."""
        state = read_state(folder / STATE_FILE, STATE)
        self.load_weights(folder)
        try:
            experience = Experience.load(folder / EXPERIENCE_FILE, self.args.device)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{folder / EXPERIENCE_FILE}: cannot be read ({error})"
            ) from error
        self.kl_control.coef = state["kl_coef"]
        self.open_rollout.experience = experience
        self.open_rollout.stopped = state["stopped"]
        self.open_rollout.metrics = defaultdict(list, state["metrics"])

    def load_weights(self, folder: Path) -> None:
        """Load policy, value and averaged policy from a checkpoint."""
        self.roles.load(POLICY, folder)
        self.roles.load(VALUE, folder / VALUE)
        if self.ema is not None:
            self.ema.load(folder)


def shared_settings(
    roles: Roles, functions: Sequence[RewardFunction], prompts: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """Names and code of reward functions, and hashes of the prompts' token ids and of frozen weights."""
    return {
        "reward_funcs": [name_of(f) for f in functions],
        "code of reward_funcs": [code_of(f) for f in functions],
        "prompts": _hash_rows(prompts),
    } | {f"weights of {n}": _hash_role(roles, n) for n in (REFERENCE, *roles.rewards)}


def _hash_role(roles: Roles, role: str) -> str | None:
    """A hash of a role's adapter and head; None if the role has no weights."""
    assert roles.model is not None
    named = roles.model.named_parameters()
    weights = [p.detach().cpu().contiguous() for n, p in named if belongs_to(n, role)]
    digest = hashlib.sha256()
    for weight in weights:
        digest.update(weight.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:12] if weights else None


def _hash_rows(rows: Sequence[Sequence[int]]) -> str:
    """The number of rows of token ids, and a hash of them."""
    digest = hashlib.sha256()
    for ids in rows:
        digest.update(repr(list(ids)).encode())
    return f"{len(rows)} ({digest.hexdigest()[:12]})"
