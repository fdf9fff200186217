"""What a run that goes on must have in common with the one that stopped."""

import dataclasses
import json

import pytest
import torch

from tests.trainers.test_ppo_options import make, prompts
from toolkit.errors import CheckpointError
from toolkit.models.roles import REFERENCE, REWARD
from toolkit.trainers.ppo_checkpoints import SAME_ON_RESUME
from toolkit.trainers.ppo_config import PPOConfig

SAVING = {"save_strategy": "steps", "save_steps": 4, "total_episodes": 16}
OTHER = {"per_device_train_batch_size": 8, "value_role": "zero", "kl_estimator": "k3"} | {
    "reward_aggregation": "min",
    "reward_weights": [0.5],
}


@pytest.fixture
def stopped(make_ppo_roles, tokenizer, tmp_path):
    """The last checkpoint of a run."""
    make(make_ppo_roles(), tokenizer, prompts(), tmp_path, **SAVING).train()
    return max(tmp_path.glob("checkpoint-*"), key=lambda f: int(f.name.split("-")[1]))


def test_resume_with_another_setting_is_refused_and_the_setting_named(
    stopped, make_ppo_roles, tokenizer, tmp_path
):
    """Every one of the list, each changed by itself."""
    trainer = make(make_ppo_roles(), tokenizer, prompts(), tmp_path, **SAVING)
    names = {f.name for f in dataclasses.fields(PPOConfig)}
    for name in SAME_ON_RESUME:
        assert name in names
        kept = getattr(trainer.args, name)
        other = OTHER.get(name, 1.5 if kept is None else not kept if kept is True else None)
        other = kept + 1 if other is None else other
        setattr(trainer.args, name, other)
        vars(trainer).pop("_settings", None)
        with pytest.raises(CheckpointError, match=f"was made with `{name}` {kept}, this run has"):
            trainer._check_fits(stopped)
        setattr(trainer.args, name, kept)
    vars(trainer).pop("_settings", None)
    trainer._check_fits(stopped)


@pytest.mark.parametrize("role", [REFERENCE, REWARD])
def test_resume_beside_another_reference_or_reward_is_refused(
    stopped, make_ppo_roles, tokenizer, tmp_path, role
):
    roles = make_ppo_roles()
    with torch.no_grad():
        name = f".{role}."
        weight = next(p for n, p in roles.model.named_parameters() if name in n)
        weight.flatten()[0] += 1e-4
    trainer = make(roles, tokenizer, prompts(), tmp_path, **SAVING)
    with pytest.raises(CheckpointError, match=f"made with `weights of {role}` "):
        trainer.train(resume_from_checkpoint=str(stopped))
    assert stopped.is_dir()


def test_resume_from_a_checkpoint_that_recorded_less_compares_what_it_has(
    stopped, make_ppo_roles, tokenizer, tmp_path
):
    file = stopped / "ppo_state.json"
    state = json.loads(file.read_text(encoding="utf-8"))
    state["settings"] = {"seed": state["settings"]["seed"]}
    file.write_text(json.dumps(state), encoding="utf-8")
    trainer = make(make_ppo_roles(), tokenizer, prompts(), tmp_path, **SAVING, gamma=0.9)
    trainer._check_fits(stopped)
