"""PPO's checkpoints: adapters as PEFT files, the value in a folder of its own, the open rollout."""

from collections import defaultdict
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from toolkit.errors import CheckpointError
from toolkit.models.roles import POLICY, VALUE, Roles
from toolkit.rl.rollout import Experience
from toolkit.runs import write_json
from toolkit.trainers.checkpoints import WholeCheckpoints, read_state
from toolkit.trainers.ema import LAST, PolicyEMA
from toolkit.trainers.experience import ExperienceMaker
from toolkit.trainers.ppo_config import PPOConfig

EXPERIENCE_FILE, STATE_FILE = "experience.safetensors", "ppo_state.json"
# what decides which rows an update gets, and what they are worth
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
)


class PPOCheckpoints(WholeCheckpoints):
    """What `PPOTrainer` writes into a checkpoint, and how it goes on from one, to the bit on a CPU."""

    roles: Roles
    args: PPOConfig
    processing_class: PreTrainedTokenizerBase
    maker: ExperienceMaker
    ema: PolicyEMA | None
    experience: Experience | None
    state: Any
    _stopped: bool
    _metrics: dict[str, list[float]]

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
                "metrics": dict(self._metrics),
                "settings": {name: getattr(self.args, name) for name in SAME_ON_RESUME},
            }
            write_json(folder / STATE_FILE, state)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        file = folder / EXPERIENCE_FILE
        if not file.is_file():
            raise CheckpointError(
                f"{folder}: {EXPERIENCE_FILE} is missing, so it cannot be resumed"
            )
        state = read_state(folder / STATE_FILE)
        for name, before in state["settings"].items():
            if getattr(self.args, name) != before:
                raise CheckpointError(
                    f"{folder}: it was made with `{name}` {before}, this run has "
                    f"{getattr(self.args, name)}; a run goes on with the settings it began with"
                )
        for name, place in ((POLICY, folder), (VALUE, folder / VALUE)):
            self.roles.load(name, place)
        self.experience = Experience.load(file, self.args.device)
        self.maker.control.coef, self._stopped = float(state["kl_coef"]), bool(state["stopped"])
        self._metrics = defaultdict(list, state["metrics"])
        if self.ema is not None:
            self.ema.load(folder)

    def _averaged(self) -> AbstractContextManager[None]:
        """The policy as its average inside, if there is one."""
        return nullcontext() if self.ema is None else self.ema.in_place()

    def _load_best_model(self) -> None:
        best = Path(str(self.state.best_model_checkpoint))
        self.roles.load(POLICY, best)
        self.roles.load(VALUE, best / VALUE)
        if self.ema is not None:
            self.ema.load(best)
