"""What a resumed run must have in common with the stopped run."""

import json
import re

import pytest
import torch

from tests.ppo.test_ppo_options import make, prompts
from toolkit.errors import CheckpointError
from toolkit.models.roles import REFERENCE, REWARD
from toolkit.ppo.config import OnlineOptions, PPOConfig
from toolkit.reward.functions import load_reward_functions
from toolkit.runs.settings import DATA, FREE, LENGTH, SETTINGS_FILE

pytestmark = pytest.mark.slow

SAVING = {"save_strategy": "steps", "save_steps": 4, "total_episodes": 16}
SAVING |= {"lr_scheduler_type": "constant"}
OTHER = {"per_device_train_batch_size": 8, "value_role": "zero", "kl_estimator": "k3"} | {
    "reward_aggregation": "min",
    "reward_weights": [0.5],
    "lr_scheduler_type": "cosine",
    "lr_scheduler_kwargs": {"num_cycles": 2},
    "optim": "sgd",
}


@pytest.fixture
def stopped(make_ppo_roles, tokenizer, tmp_path):
    """The last checkpoint of a run."""
    make(make_ppo_roles(), tokenizer, prompts(), tmp_path, **SAVING).train()
    return max(tmp_path.glob("checkpoint-*"), key=lambda f: int(f.name.split("-")[1]))


def test_resume_rejects_each_changed_setting(stopped, make_ppo_roles, tokenizer, tmp_path):
    """Each option of PPO and of the optimizer that may not change, changed alone."""
    trainer = make(make_ppo_roles(), tokenizer, prompts(), tmp_path, **SAVING)
    free = {*" ".join(FREE.values()).split(), *DATA, *LENGTH}
    own = (*PPOConfig.__annotations__, *OnlineOptions.__annotations__)
    names = {name for name in own if name not in free}
    names |= {"per_device_train_batch_size", "lr_scheduler_type", "optim", "weight_decay", "seed"}
    assert len(names) > 35
    for name in sorted(names):
        kept = getattr(trainer.args, name)
        other = OTHER.get(name, 1.5 if kept is None else not kept if kept is True else None)
        other = kept + 1 if other is None else other
        setattr(trainer.args, name, other)
        was = re.escape(f"written with `{name}` {getattr(kept, 'value', kept)}, but this run has")
        with pytest.raises(CheckpointError, match=was):
            trainer._check_fits(stopped)
        setattr(trainer.args, name, kept)
    trainer._check_fits(stopped)


def test_resume_rejects_changed_code_of_reward_function(make_ppo_roles, tokenizer, tmp_path):
    file = tmp_path / "own_rewards.py"

    def trainer(reward):
        file.write_text(
            f"def reward(completions, **_):\n    return [{reward} for _ in completions]\n"
        )
        function = load_reward_functions([f"{file}:reward"])
        folder = tmp_path / "run"
        return make(make_ppo_roles(), tokenizer, prompts(), folder, reward_funcs=function, **SAVING)

    trainer("1.0").train()
    checkpoint = tmp_path / "run" / "checkpoint-4"
    trainer("1.0")._check_fits(checkpoint)
    with pytest.raises(CheckpointError, match="written with `code of reward_funcs`"):
        trainer("5.0")._check_fits(checkpoint)


@pytest.mark.parametrize("role", [REFERENCE, REWARD])
def test_resume_rejects_changed_reference_or_reward_model(
    stopped, make_ppo_roles, tokenizer, tmp_path, role
):
    roles = make_ppo_roles()
    with torch.no_grad():
        name = f".{role}."
        weight = next(p for n, p in roles.model.named_parameters() if name in n)
        weight.flatten()[0] += 1e-4
    trainer = make(roles, tokenizer, prompts(), tmp_path, **SAVING)
    with pytest.raises(CheckpointError, match=f"written with `weights of {role}` "):
        trainer.train(resume_from_checkpoint=str(stopped))
    assert stopped.is_dir()


def test_resume_compares_only_recorded_settings(stopped, make_ppo_roles, tokenizer, tmp_path):
    """An earlier version recorded fewer settings, in another file."""
    settings, file = stopped / SETTINGS_FILE, stopped / "ppo_state.json"
    recorded = {"seed": json.loads(settings.read_text(encoding="utf-8"))["seed"]}
    settings.unlink()
    state = json.loads(file.read_text(encoding="utf-8")) | {"settings": recorded}
    file.write_text(json.dumps(state), encoding="utf-8")
    trainer = make(make_ppo_roles(), tokenizer, prompts(), tmp_path, **SAVING, gamma=0.9)
    trainer._check_fits(stopped)
    trainer.args.seed += 1
    with pytest.raises(CheckpointError, match="written with `seed` "):
        trainer._check_fits(stopped)


def praise(completions, **_):
    return [1.0] * len(completions)


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"reward_funcs": [praise]}, r"`reward_funcs` \[\], but this run has \['praise'\]"),
        ({"ptx_texts": ["Rain falls.", "Snow falls."]}, r"`pretraining texts` 0 \(.*has 2 \("),
    ],
)
def test_resume_rejects_changed_functions_and_texts(
    stopped, make_ppo_roles, tokenizer, tmp_path, more, named
):
    coefficient = {"ptx_coef": 0.1} if "ptx_texts" in more else {}
    trainer = make(
        make_ppo_roles(), tokenizer, prompts(), tmp_path, **SAVING, **more, **coefficient
    )
    if coefficient:  # the other coefficient would be reported first
        trainer.args.ptx_coef = 0.0
    with pytest.raises(CheckpointError, match=named):
        trainer._check_fits(stopped)


def test_resume_accepts_more_episodes_and_other_grad_norm(
    stopped, make_ppo_roles, tokenizer, tmp_path
):
    settings = SAVING | {"total_episodes": 24, "max_grad_norm": 0.5}
    trainer = make(make_ppo_roles(), tokenizer, prompts(), tmp_path, **settings)
    trainer.train(resume_from_checkpoint=str(stopped))
    assert trainer.state.global_step == 12
