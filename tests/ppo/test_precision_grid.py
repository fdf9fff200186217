"""DoRA and rsLoRA on bases of every precision: checkpointing changes no gradient, the ratio starts at 1.

Bases of lower precision run under autocast, TRL's default.
"""

import json

import pytest
import torch
from trl import ModelConfig

from tests.conftest import fresh_roles, lora, randomise, trainable_names
from tests.ppo.setup import make, prompts
from tests.ppo.test_precision import Gradients
from toolkit.models.roles import POLICY, REFERENCE, REWARD, VALUE

pytestmark = pytest.mark.slow

KINDS = ("use_dora", "use_rslora")
BASES = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "8bit": {"dtype": "bfloat16", "load_in_8bit": True},
    "4bit": {"dtype": "bfloat16", "load_in_4bit": True},
}
# sampling and scoring round differently: in the first epoch, how far the mean ratio may be
# from 1, and half the mean square of its logarithm from 0
NEAR = {
    "float32": (1e-4, 1e-6),
    "bfloat16": (2e-3, 1e-4),
    "8bit": (5e-3, 5e-3),  # outliers are separated per batch, so rounding depends on the batch
    "4bit": (2e-3, 1e-4),
}
# relative difference between the gradients with and without checkpointing
ROUNDS = {"float32": 1e-5, "bfloat16": 2**-8, "8bit": 2**-8, "4bit": 2**-8}
# with DoRA, PEFT loses the scales of 8-bit weights on a CPU
GRID = [(k, b) for k in KINDS for b in BASES if (k, b) != ("use_dora", "8bit")]


@pytest.fixture
def make_roles(model_config, tiny_base, reward_run, tmp_path):
    """PPO's roles with policy and reference of that kind, created in float32."""

    def make(kind, precision):
        start = fresh_roles(model_config)
        start.create(POLICY, lora(**{kind: True}))
        length = {n: p.clone() for n, p in start.model.named_parameters() if "magnitude" in n}
        randomise(start, POLICY, seed=1)
        with torch.no_grad():  # DoRA's magnitudes, which are norms, not noise around zero
            for name, parameter in start.model.named_parameters():
                if name in length:
                    parameter.copy_(1.1 * length[name])
        start.save(POLICY, tmp_path / kind)
        roles = fresh_roles(ModelConfig(model_name_or_path=str(tiny_base), **BASES[precision]))
        roles.attach(POLICY, tmp_path / kind, trainable=True, any_precision=True)
        roles.attach(REFERENCE, tmp_path / kind, any_precision=True)
        roles.attach(REWARD, reward_run, head=True, any_precision=True)
        roles.attach(VALUE, reward_run, head=True, trainable=True, any_precision=True)
        return roles

    return make


def first_epoch(roles, tokenizer, folder, *, checkpointing, autocast):
    """Gradients and log of a single step, which is the first epoch."""
    steps = Gradients(roles)
    torch.manual_seed(0)
    make(
        roles,
        tokenizer,
        prompts(),
        folder,
        callbacks=[steps],
        gradient_checkpointing=checkpointing,
        bf16=autocast,
        per_device_train_batch_size=8,
        num_mini_batches=1,
        max_steps=1,
    ).train()
    return steps.gradients, json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])


@pytest.mark.parametrize(("kind", "precision"), GRID)
def test_dora_and_rslora_start_at_ratio_one(make_roles, tokenizer, tmp_path, kind, precision):
    gradients = {}
    for checkpointing in (False, True):
        roles = make_roles(kind, precision)
        assert getattr(roles.model.peft_config[POLICY], kind)
        folder = tmp_path / str(checkpointing)
        options = {"checkpointing": checkpointing, "autocast": precision != "float32"}
        gradients[checkpointing], first = first_epoch(roles, tokenizer, folder, **options)
        assert roles.base.is_gradient_checkpointing is checkpointing
        mean, square = NEAR[precision]
        assert first["val/ratio"] == pytest.approx(1.0, abs=mean)
        assert first["policy/approxkl_avg"] == pytest.approx(0.0, abs=square)
        assert first["objective/kl"] == pytest.approx(0.0, abs=1e-3)
    plain, checkpointed = gradients[False], gradients[True]
    assert plain.keys() == checkpointed.keys() == set(trainable_names(roles))
    of_policy = [n for n in plain if f".{POLICY}." in n]
    assert any("magnitude" in n for n in of_policy) is (kind == "use_dora")
    assert len(plain) > len(of_policy) > 0
    for name, gradient in plain.items():
        assert gradient.any(), name
        difference = (checkpointed[name] - gradient).norm()
        assert difference <= ROUNDS[precision] * gradient.norm(), name
