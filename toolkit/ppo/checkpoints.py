"""PPO's checkpoints: adapters as PEFT files, the value in a folder of its own, the open rollout."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from toolkit.errors import CheckpointError
from toolkit.models.roles import POLICY, REFERENCE, VALUE, Roles, belongs_to
from toolkit.ppo.config import PPOConfig
from toolkit.ppo.ema import LAST, PolicyEMA
from toolkit.ppo.experience import ExperienceMaker
from toolkit.ppo.rollout import Experience
from toolkit.ppo.updates import Updater
from toolkit.reward.rewards import name_of
from toolkit.runs.run import write_json
from toolkit.trainers.checkpoints import WholeCheckpoints, read_state

EXPERIENCE_FILE, STATE_FILE = "experience.safetensors", "ppo_state.json"
# what decides which rows an update gets, what they are worth, and how far it goes
SAME_ON_RESUME = (
    "seed",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_mini_batches",
    "num_ppo_epochs",
    "num_generations",
    "response_length",
    "temperature",
    "value_role",
    "kl_coef",
    "kl_estimator",
    "kl_target",
    "kl_horizon",
    "target_kl",
    "gamma",
    "lam",
    "whiten_rewards",
    "reward_clip",
    "reward_weights",
    "reward_aggregation",
    "reward_std_coef",
    "missing_eos_penalty",
    "length_penalty",
    "cliprange",
    "cliprange_value",
    "vf_coef",
    "ent_coef",
    "ptx_coef",
    "ptx_batch_size",
    "ptx_max_length",
    "learning_rate",
    "value_learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "optim",
    "optim_args",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "weight_decay",
)


class PPOCheckpoints(WholeCheckpoints):
    """What `PPOTrainer` writes into a checkpoint, and how it goes on from one, to the bit on a CPU."""

    roles: Roles
    args: PPOConfig
    processing_class: PreTrainedTokenizerBase
    train_dataset: Dataset
    maker: ExperienceMaker
    updater: Updater
    ema: PolicyEMA | None
    experience: Experience | None
    state: Any
    _stopped: bool
    _metrics: dict[str, list[Tensor | float]]

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """A checkpoint holds the policy as it is, to go on from; a finished run what to use."""
        folder = Path(output_dir or self.args.output_dir)
        finished = not folder.name.startswith("checkpoint-")
        with self._averaged() if finished else nullcontext():
            self.roles.save(POLICY, folder)
        self.roles.save(VALUE, folder / VALUE)
        self.processing_class.save_pretrained(folder)
        if self.ema is not None and finished:
            self.roles.save(POLICY, folder / LAST)
            print(f"{folder}: {self.ema}", flush=True)
        elif self.ema is not None:
            self.ema.save(folder)
        if not finished and self.experience is not None:
            self.experience.save(folder / EXPERIENCE_FILE)
            state = {
                "kl_coef": self.maker.control.coef,
                "stopped": self._stopped,
                "metrics": {name: list(map(float, seen)) for name, seen in self._metrics.items()},
                "settings": self._settings,
            }
            write_json(folder / STATE_FILE, state)

    def _check_fits(self, checkpoint: Path) -> None:
        if not (checkpoint / EXPERIENCE_FILE).is_file():
            raise CheckpointError(
                f"{checkpoint}: {EXPERIENCE_FILE} is missing, so it cannot be resumed"
            )
        for name, before in read_state(checkpoint / STATE_FILE)["settings"].items():
            now = self._settings.get(name)
            if now != before:
                raise CheckpointError(
                    f"{checkpoint}: it was made with `{name}` {before}, this run has {now}; a run goes on "
                    "with the settings and data it began with"
                )
        super()._check_fits(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        state = read_state(folder / STATE_FILE)
        for name, place in ((POLICY, folder), (VALUE, folder / VALUE)):
            self.roles.load(name, place)
        try:
            self.experience = Experience.load(folder / EXPERIENCE_FILE, self.args.device)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{folder / EXPERIENCE_FILE}: cannot be read ({error})"
            ) from error
        self.maker.control.coef, self._stopped = float(state["kl_coef"]), bool(state["stopped"])
        self._metrics = defaultdict(list, state["metrics"])
        if self.ema is not None:
            self.ema.load(folder)

    @cached_property
    def _settings(self) -> dict[str, Any]:
        """What must be the same in a run that goes on: options, the names of reward functions, and by
        hashes the prompts, the pretraining texts, and the weights compared with and rewarded by."""
        options = {name: getattr(self.args, name) for name in SAME_ON_RESUME}
        options = {name: getattr(value, "value", value) for name, value in options.items()}
        frozen = {f"weights of {n}": self._hash(n) for n in (REFERENCE, *self.roles.rewards)}
        return (
            options
            | {"reward_funcs": [name_of(f) for f in self.maker.functions]}
            | {"prompts": _digest(self.train_dataset["prompt_ids"])}
            | {"pretraining texts": _digest(self.updater.ptx)}
            | frozen
        )

    def _hash(self, role: str) -> str | None:
        """Of a role's weights, adapter and head; None where it has none."""
        digest, found = hashlib.sha256(), False
        for name, parameter in self.roles.model.named_parameters():  # type: ignore[union-attr]
            if belongs_to(name, role):
                found = True
                digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()[:12] if found else None

    def _averaged(self) -> AbstractContextManager[None]:
        """The policy as its average inside, if there is one."""
        return nullcontext() if self.ema is None else self.ema.in_place()

    def _load_best_model(self) -> None:
        best = Path(str(self.state.best_model_checkpoint))
        self.roles.load(POLICY, best)
        self.roles.load(VALUE, best / VALUE)
        if self.ema is not None:
            self.ema.load(best)


def _digest(rows: Sequence[Sequence[int]]) -> str:
    """How many rows of token ids there are, and a hash of them."""
    digest = hashlib.sha256()
    for ids in rows:
        digest.update(repr(list(ids)).encode())
    return f"{len(rows)} ({digest.hexdigest()[:12]})"
