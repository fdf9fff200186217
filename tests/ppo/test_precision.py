"""PPO and its gradients on 8-bit, 4-bit and 16-bit bases, with and without autocast."""

import json
import math

import pytest
import torch
from transformers import TrainerCallback
from trl import ModelConfig

from tests.conftest import fresh_roles, trainable_names
from tests.ppo.setup import make, prompts
from toolkit.models.passes import collate, completion_logprobs, scores, state_values
from toolkit.models.roles import POLICY, REFERENCE, REWARD, VALUE, Roles

pytestmark = pytest.mark.slow

BASES = {
    "8bit": {"load_in_8bit": True},
    "4bit-nf4": {"load_in_4bit": True},
    "none": {},
}
BATCH = collate([[1, 20, 30, 40], [1, 25]], [[50, 60, 2], [70, 80, 90, 2]], pad_id=0)


@pytest.fixture
def make_roles(tiny_base, sft_run, reward_run):
    """PPO's roles on the tiny base in bfloat16 or quantized; the adapters were made in float32."""

    def make(quantization) -> Roles:
        kwargs = {"model_name_or_path": str(tiny_base), "dtype": "bfloat16"}
        roles = fresh_roles(ModelConfig(**kwargs, **BASES[quantization]))
        assert roles.fingerprint["quantization"] == quantization
        roles.attach(POLICY, sft_run, trainable=True, any_precision=True)
        roles.attach(REFERENCE, sft_run, any_precision=True)
        roles.attach(REWARD, reward_run, head=True, any_precision=True)
        roles.attach(VALUE, reward_run, head=True, trainable=True, any_precision=True)
        return roles

    return make


@pytest.mark.parametrize("bf16", [False, True], ids=["plain", "autocast"])
@pytest.mark.parametrize("quantization", BASES)
def test_quantized_ppo_trains_only_policy_and_value(
    make_roles, tokenizer, tmp_path, quantization, bf16
):
    roles = make_roles(quantization)
    trainable = set(trainable_names(roles))
    assert all(p.dtype == torch.float32 for p in roles.model.parameters() if p.requires_grad)
    trainer = make(roles, tokenizer, prompts(), tmp_path, bf16=bf16)
    # 4-bit layers (uint8) may be repacked on a CPU; their outputs are compared below
    kept = {n: p for n, p in roles.model.named_parameters() if p.dtype != torch.uint8}
    before = {n: p.detach().clone() for n, p in kept.items()}
    base = bare_logits(roles, bf16)
    trainer.train()
    rows = [json.loads(row) for row in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(None not in row.values() for row in rows)  # what is not finite is written as null
    assert abs(rows[0]["objective/kl"]) < 1e-3
    # 8-bit layers separate outliers per batch, so rounding depends on the batch
    near = 0.05 if "8bit" in str(quantization) else 0.02
    assert rows[0]["val/ratio"] == pytest.approx(1.0, abs=near)
    assert {n for n, p in kept.items() if not torch.equal(before[n], p)} == trainable
    assert torch.equal(bare_logits(roles, bf16), base)


@pytest.mark.parametrize("quantization", BASES)
def test_rollout_does_not_change_update_gradients(make_roles, quantization):
    """Some kernels repack the weights at the first pass without gradients; backward must still work."""
    roles = make_roles(quantization)
    roles.model.train()
    before = gradients(roles)
    roles.model.eval()
    with torch.no_grad():
        for name in (POLICY, VALUE):
            with roles.using(name) as model:
                completion_logprobs(model, BATCH, temperature=1.0)
    roles.model.train()
    after = gradients(roles)
    assert before.keys() == after.keys()
    for name, gradient in before.items():
        assert alike(after[name], gradient) > 0.999, name
        assert math.isclose(after[name].norm(), gradient.norm(), rel_tol=0.02), name


@pytest.mark.parametrize("quantization", ["8bit", "4bit-nf4"])
def test_quantized_gradients_are_close_to_full_precision(make_roles, quantization):
    """Rounding changes the direction only a little."""
    results = [gradients(make_roles(q)) for q in ("none", quantization)]
    angles = [alike(results[1][name], gradient) for name, gradient in results[0].items()]
    assert min(angles) > {"8bit": 0.95, "4bit-nf4": 0.2}[quantization]
    assert sum(angles) / len(angles) > {"8bit": 0.99, "4bit-nf4": 0.7}[quantization]


class Gradients(TrainerCallback):
    """Gradients of the first optimizer step."""

    def __init__(self, roles):
        self.roles, self.gradients = roles, {}

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        named = self.roles.model.named_parameters()
        self.gradients = {n: p.grad.clone() for n, p in named if p.grad is not None}


@pytest.mark.parametrize("bf16", [False, True], ids=["plain", "autocast"])
@pytest.mark.parametrize("quantization", BASES)
def test_gradient_checkpointing_changes_no_gradient(
    make_roles, tokenizer, tmp_path, quantization, bf16
):
    """Equal products are bit-identical."""

    def of_a_step(checkpointing):
        roles = make_roles(quantization)
        options = {"gradient_checkpointing": checkpointing, "bf16": bf16, "max_steps": 1}
        steps = Gradients(roles)
        trainer = make(roles, tokenizer, prompts(), tmp_path, callbacks=[steps], **options)
        torch.manual_seed(0)
        trainer.train()
        return steps.gradients

    checkpointed, whole = of_a_step(True), of_a_step(False)
    assert checkpointed.keys() == whole.keys()
    assert {n.rsplit(".", 2)[-2] for n in whole} >= {POLICY, VALUE}
    for name, gradient in whole.items():
        assert gradient.any(), name
        assert torch.equal(checkpointed[name], gradient), name


def test_scores_and_values_are_float32_under_autocast(make_roles):
    """The heads compute in float32: a score rounded to bfloat16 has two or three digits."""
    roles = make_roles("none")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        with roles.using(REWARD) as model:
            assert scores(model, roles.heads[REWARD], BATCH).dtype == torch.float32
        with roles.using(VALUE) as model:
            assert state_values(model, roles.heads[VALUE], BATCH).dtype == torch.float32


def bare_logits(roles, bf16=False):
    roles.model.eval()
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=bf16)  # as in training
    with autocast, torch.no_grad(), roles.using(None) as model:
        return model(input_ids=BATCH.input_ids).logits


def gradients(roles):
    """Gradients of the policy's logprobs and of the squared values, each under its own role."""
    roles.model.zero_grad()
    with roles.using(POLICY) as model:
        completion_logprobs(model, BATCH, temperature=1.0)[0].sum().backward()
    with roles.using(VALUE) as model:
        state_values(model, roles.heads[VALUE], BATCH).pow(2).sum().backward()
    named = roles.model.named_parameters()
    return {n: p.grad.clone() for n, p in named if p.grad is not None}


def alike(a, b):
    return torch.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()


def test_float32_base_under_autocast_starts_at_ratio_one(make_ppo_roles, tokenizer, tmp_path):
    """With TRL's defaults, sampling in float32 and scoring in bfloat16 would be two distributions."""
    make(make_ppo_roles(), tokenizer, prompts(), tmp_path, bf16=True).train()
    first = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert first["objective/kl"] == pytest.approx(0.0, abs=1e-3)
    assert first["val/ratio"] == pytest.approx(1.0, abs=5e-3)
