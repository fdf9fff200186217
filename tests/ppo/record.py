"""Record a PPO run: weights, rows, gradients and logs of every step, so that tests can recompute them."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import TrainerCallback

from tests.conftest import randomise
from tests.ppo.setup import make, prompts
from toolkit.models.roles import POLICY, VALUE, Roles
from toolkit.ppo.experience import Experience
from toolkit.ppo.trainer import PPOTrainer

STOPS = list(
    range(0, 512, 6)
)  # many stop tokens, so that completions of the random base differ in length


@dataclass
class Step:
    """One optimizer step: the trainable weights before it, its rows, gradients and logs."""

    experience: Experience
    rows: list[int]
    weights: dict[str, Tensor]
    gradients: dict[str, Tensor]
    logs: dict[str, float]


@dataclass
class Recording:
    """A finished run."""

    trainer: PPOTrainer
    roles: Roles
    steps: list[Step]

    def rewind(self, step: Step) -> None:
        """Restore the weights before a step."""
        parameters = dict(self.roles.model.named_parameters())
        with torch.no_grad():
            for name, weight in step.weights.items():
                parameters[name].copy_(weight)


class _Recorder(TrainerCallback):
    def __init__(self, roles):
        self.roles, self.steps, self.rows = roles, [], []
        self.trainer = None

    def _trainable(self):
        return [(n, p) for n, p in self.roles.model.named_parameters() if p.requires_grad]

    def on_step_begin(self, args, state, control, **kwargs):
        self.weights, self.rows = {n: p.detach().clone() for n, p in self._trainable()}, []

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        gradients = {
            n: p.grad.clone() for n, p in self.roles.model.named_parameters() if p.grad is not None
        }
        self.steps.append(Step(self.trainer.experience, self.rows, self.weights, gradients, {}))

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "train_runtime" not in logs:
            self.steps[-1].logs = dict(logs)


def record(roles, tokenizer, folder, monkeypatch, **changes) -> Recording:
    """Two rollouts of eight completions of different length, four minibatches each; policy ≠ reference."""
    roles.base.generation_config.eos_token_id = STOPS
    randomise(roles, POLICY, seed=11)
    if VALUE in roles.model.peft_config:
        randomise(roles, VALUE, seed=12)
    with torch.no_grad():
        roles.heads[VALUE].weight.normal_(std=0.1, generator=torch.Generator().manual_seed(13))
    trainer = make(roles, tokenizer, prompts(), folder, **changes)
    recorder = _Recorder(roles)
    recorder.trainer = trainer
    cut = Experience.rows

    def rows(self, index, pad_id):
        recorder.rows += index
        return cut(self, index, pad_id)

    monkeypatch.setattr(Experience, "rows", rows)
    trainer.add_callback(recorder)
    torch.manual_seed(0)
    trainer.train()
    return Recording(trainer, roles, recorder.steps)
