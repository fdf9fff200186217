"""The update's gradients equal numerical derivatives of independent losses; which weights may change."""

import hashlib
import math

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from tests.conftest import fresh_roles
from tests.ppo import slow_ppo
from tests.ppo.record import record
from toolkit.models.roles import POLICY, REFERENCE, REWARD, VALUE
from toolkit.ppo.roles import attach_ppo_roles

pytestmark = pytest.mark.slow

SETTINGS = {
    "temperature": 0.8,
    "kl_coef": 0.1,
    "cliprange": 0.15,
    "cliprange_value": 0.3,
    "vf_coef": 0.3,
    "ent_coef": 0.05,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "total_episodes": 8,
    "max_grad_norm": 0.0,
}
EPSILON = 1e-6
CASES = [("adapter", False), ("adapter", True), ("head", False), ("head", True)]


@pytest.fixture
def run(model_config, sft_run, reward_run, tokenizer, tmp_path, monkeypatch):
    """Record PPO with one kind of critic, with or without gradient checkpointing."""

    def go(value, checkpointing=False, **changes):
        roles = fresh_roles(model_config)
        attach_ppo_roles(
            roles, policy=str(sft_run), rewards=[str(reward_run)], model=model_config, value=value
        )
        before = hashes(roles)
        options = SETTINGS | {"gradient_checkpointing": checkpointing} | changes
        return before, record(roles, tokenizer, tmp_path / value, monkeypatch, **options)

    return go


def hashes(roles):
    """SHA-256 of all weights of the base, of the reference and of the reward, buffers included."""
    digests = {}
    tensors = {**dict(roles.model.named_parameters()), **dict(roles.model.named_buffers())}
    for part in ("base", REFERENCE, REWARD):
        digest = hashlib.sha256()
        for name, tensor in sorted(tensors.items()):
            adapter = "lora_" in name or name.startswith("heads.")
            if f".{part}." in f".{name}." or (part == "base" and not adapter):
                digest.update(tensor.detach().contiguous().numpy().tobytes())
        digests[part] = digest.hexdigest()
    assert len(set(digests.values())) == 3
    return digests


def losses(roles, step):
    """Policy loss minus the entropy bonus, and weighted value loss, computed one unpadded row at a time.

    In float64, for derivatives by differences.
    """
    head, experience = roles.heads[VALUE], step.experience
    critic = VALUE if VALUE in roles.model.peft_config else POLICY
    tokens = []
    for row in step.rows:
        prompt, completion = experience.prompts[row], experience.completions[row]
        ids = torch.tensor([prompt + completion])
        start = len(prompt) - 1
        with torch.no_grad():
            with roles.using(POLICY) as model:
                logits = model(input_ids=ids).logits[0, start:-1].tolist()
            with roles.using(critic) as model:
                hidden = model.get_base_model().model(input_ids=ids).last_hidden_state[0, start:-1]
        values = (hidden @ head.weight[0] + head.bias).tolist()
        for t, token in enumerate(completion):
            old = (
                getattr(experience, n)[row, t].item()
                for n in ("logprobs", "advantages", "values", "returns")
            )
            logprob = slow_ppo.log_softmax(logits[t], 0.8)[token]
            tokens.append(
                slow_ppo.Token(*old, logprob, values[t], slow_ppo.entropy(logits[t], 0.8))
            )
    means = slow_ppo.minibatch(tokens, cliprange=0.15, cliprange_value=0.3)
    return means.policy_loss - 0.05 * means.entropy, 0.3 * means.value_loss, means


def derivative(roles, step, parameters, direction):
    """Derivatives of both losses along a direction in some parameters, by central differences."""
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            for parameter, part in zip(parameters, direction, strict=True):
                parameter.add_(sign * EPSILON * part)
            ends.append(losses(roles, step)[:2])
            for parameter, part in zip(parameters, direction, strict=True):
                parameter.sub_(sign * EPSILON * part)
    return [(up - down) / (2 * EPSILON) for up, down in zip(*ends, strict=True)]


def double_norm(self, hidden):
    """RMSNorm without the library's cast to float32, whose rounding exceeds the differences."""
    spread = (hidden.pow(2).mean(-1, keepdim=True) + self.variance_epsilon).rsqrt()
    return self.weight * hidden * spread


@pytest.mark.parametrize(("value", "checkpointing"), CASES)
def test_gradients_equal_numerical_derivatives(run, monkeypatch, value, checkpointing):
    """In the second epoch, where ratios are clipped, with two micro-batches of ragged length."""
    before, recording = run(value, checkpointing, total_episodes=16)
    check_only_policy_and_value_moved(before, recording, value)
    roles, step = recording.roles, recording.steps[3]
    gradients = {n: g.double() for n, g in step.gradients.items()}
    recording.rewind(step)
    monkeypatch.setattr(LlamaRMSNorm, "forward", double_norm)
    roles.model.gradient_checkpointing_disable()
    roles.model.double().eval()
    means = losses(roles, step)[2]
    assert 0 < means.clip_fraction < 1 and 0 < means.value_clip_fraction < 1
    generator = torch.Generator().manual_seed(0)
    parameters = dict(roles.model.named_parameters())
    groups = {
        "policy": [n for n in gradients if f".{POLICY}." in n],
        "head": ["heads.value.weight"],
    }
    if value == "adapter":
        groups["value"] = [n for n in gradients if f".{VALUE}." in n and "lora_" in n]
    for role, names in groups.items():
        # one direction over the whole role, and the steepest entry of one of its tensors
        everywhere = [torch.randn(gradients[n].shape, generator=generator).double() for n in names]
        steepest = torch.zeros_like(gradients[names[0]])
        steepest.view(-1)[gradients[names[0]].abs().argmax()] = 1.0
        for chosen, direction in ((names, everywhere), (names[:1], [steepest])):
            of_policy, of_value = derivative(
                roles, step, [parameters[n] for n in chosen], direction
            )
            computed = math.fsum(
                (gradients[n] * d).sum().item() for n, d in zip(chosen, direction, strict=True)
            )
            expected = of_policy if role == "policy" else of_value
            assert abs(expected) > 1e-3
            assert computed == pytest.approx(expected, rel=2e-4, abs=1e-6), role
            if role != "policy":
                assert of_policy == 0.0  # the policy's loss does not depend on the value's weights
    assert set(gradients) == {n for names in groups.values() for n in names} | {"heads.value.bias"}


def test_base_reference_and_reward_keep_their_hash(run):
    """The other kinds of critic are checked with their gradients, above."""
    before, recording = run("zero", total_episodes=16, max_grad_norm=1.0)
    check_only_policy_and_value_moved(before, recording, "zero")


def check_only_policy_and_value_moved(before, recording, value):
    assert len(recording.steps) == 8
    assert hashes(recording.roles) == before
    moved = {
        name
        for name, parameter in recording.roles.model.named_parameters()
        if name in recording.steps[0].weights
        and not torch.equal(parameter, recording.steps[0].weights[name])
    }
    assert moved == set(recording.steps[0].weights)
    assert moved == set(recording.steps[0].gradients)
    assert {n for n in moved if n.startswith("heads.")} == {
        "heads.value.weight",
        "heads.value.bias",
    }
    assert any(f".{POLICY}." in n for n in moved)
    assert any(f".{VALUE}.weight" in n and "lora_" in n for n in moved) is (value != "head")


@pytest.mark.parametrize("value", ["adapter", "head"])
def test_policy_and_value_losses_have_separate_gradients(run, value):
    """Doubling `vf_coef` keeps the policy's gradient bit-identical; an entropy bonus keeps the value's."""
    plain = run(value)[1].steps[0].gradients
    more_value = run(value, vf_coef=0.6)[1].steps[0].gradients
    more_entropy = run(value, ent_coef=0.5)[1].steps[0].gradients
    for name, gradient in plain.items():
        if f".{POLICY}." in name:
            assert torch.equal(more_value[name], gradient), name
        else:
            torch.testing.assert_close(more_value[name], 2 * gradient, atol=1e-7, rtol=1e-5)
            assert torch.equal(more_entropy[name], gradient), name
    assert any(not torch.equal(more_entropy[n], g) for n, g in plain.items() if f".{POLICY}." in n)
