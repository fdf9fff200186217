"""Roles on a 4-bit base on a CPU: isolation, gradients and scores."""

import pytest
import torch
from trl import ModelConfig

from tests.conftest import fresh_roles, lora, randomise
from toolkit.errors import CheckpointError
from toolkit.models.passes import collate, completion_logprobs, scores, state_values
from toolkit.models.roles import POLICY, REFERENCE, REWARD, VALUE


@pytest.fixture
def quantized(tiny_base):
    return ModelConfig(model_name_or_path=str(tiny_base), load_in_4bit=True, dtype="bfloat16")


@pytest.fixture
def batch():
    return collate([[1, 20, 30, 40], [1, 25]], [[50, 60, 2], [70, 80, 90, 2]], pad_id=0)


def test_only_policy_trains_on_4bit_base(quantized, batch, tmp_path):
    roles = fresh_roles(quantized)
    assert roles.fingerprint["quantization"] == "4bit-nf4"
    roles.create(POLICY, lora())
    randomise(roles, POLICY, seed=1)
    roles.save(POLICY, tmp_path / "sft")
    roles.attach(REFERENCE, tmp_path / "sft")
    with torch.no_grad():
        with roles.using(POLICY) as model:
            policy, _ = completion_logprobs(model, batch, temperature=1.0)
        with roles.using(REFERENCE) as model:
            reference, _ = completion_logprobs(model, batch, temperature=1.0)
        with roles.using(None) as model:
            base, _ = completion_logprobs(model, batch, temperature=1.0)
    assert torch.equal(policy, reference)
    assert (policy - base).abs().max() > 1e-3
    before = {n: p.detach().clone() for n, p in roles.model.named_parameters()}
    with roles.using(POLICY) as model:
        completion_logprobs(model, batch, temperature=1.0)[0].sum().backward()
    trained = [n for n, p in roles.model.named_parameters() if p.grad is not None]
    assert trained
    assert all(f".{POLICY}." in n for n in trained)
    optimizer = torch.optim.SGD([p for p in roles.model.parameters() if p.requires_grad], lr=1.0)
    optimizer.step()
    changed = [n for n, p in roles.model.named_parameters() if not torch.equal(p, before[n])]
    assert changed
    assert all(f".{POLICY}." in n for n in changed)


def test_value_and_reward_work_on_4bit_base(quantized, batch, reward_run):
    roles = fresh_roles(quantized)
    roles.attach(REWARD, reward_run, head=True, any_precision=True)
    roles.attach(VALUE, reward_run, head=True, trainable=True, any_precision=True)
    with roles.using(REWARD) as model, torch.no_grad():
        assert torch.isfinite(scores(model, roles.heads[REWARD], batch)).all()
    with roles.using(VALUE) as model:
        state_values(model, roles.heads[VALUE], batch).sum().backward()
    trained = [n for n, p in roles.model.named_parameters() if p.grad is not None]
    assert all(f".{VALUE}." in n or n.startswith("heads.value") for n in trained)


def test_another_precision_is_rejected_by_default(quantized, reward_run):
    with pytest.raises(CheckpointError, match=r"quantization none.*4bit-nf4"):
        fresh_roles(quantized).attach(REWARD, reward_run, head=True)
