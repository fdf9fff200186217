"""An adaptive β: it follows each rollout's KL, and rewards and log use the same β."""

import itertools

import pytest
import torch

from tests.ppo.record import record
from tests.ppo.separate_models import kls_of
from toolkit.ppo import experience

pytestmark = pytest.mark.slow

TEMPERATURE = 0.8
HORIZON = 16
EPISODES = 8  # per rollout


def spy_on_rewards(monkeypatch):
    """β, scores, rewards and mask of every rollout."""
    calls, plain = [], experience.kl_rewards

    def spying(scores, kl, mask, *, kl_coef):
        rewards = plain(scores, kl, mask, kl_coef=kl_coef)
        calls.append((kl_coef, scores, rewards.clone(), mask))
        return rewards

    monkeypatch.setattr(experience, "kl_rewards", spying)
    return calls


@pytest.fixture
def run(ppo_roles, tokenizer, tmp_path, monkeypatch):
    """Four rollouts of one optimizer step each, with β, scores and rewards of all runs so far."""
    calls = spy_on_rewards(monkeypatch)

    def go(**changes):
        options = {
            "temperature": TEMPERATURE,
            "kl_coef": 0.3,
            "per_device_train_batch_size": EPISODES,
            "num_mini_batches": 1,
            "num_ppo_epochs": 1,
            "total_episodes": 4 * EPISODES,
        }
        return record(ppo_roles, tokenizer, tmp_path, monkeypatch, **options | changes), calls

    return go


@pytest.mark.parametrize("error", [0.1, 2.0, -0.6])
def test_kl_coefficient_follows_earlier_rollouts(run, error):
    """β·(1 + clip(kl/target − 1, ±0.2)·episodes/horizon), error inside the clip or beyond it.

    With two completions per prompt, the episodes are completions.
    """
    recording, _ = run(total_episodes=EPISODES, num_generations=2)
    target = recording.steps[0].logs["objective/kl"] / (1 + error)
    assert target > 0.1  # nats; the first rollout does not depend on later β
    recording, calls = run(kl_target=target, kl_horizon=HORIZON, num_generations=2)
    assert len(recording.steps) == 4
    beta, errors = 0.3, []
    for step, (used_beta, *_) in zip(recording.steps, calls[1:], strict=True):
        assert used_beta == pytest.approx(beta, rel=1e-6)
        assert step.logs["objective/kl_coef"] == pytest.approx(beta, rel=1e-6)
        errors.append(step.logs["objective/kl"] / target - 1)
        beta *= 1 + max(-0.2, min(0.2, errors[-1])) * EPISODES / HORIZON
    assert recording.trainer.kl_control.coef == pytest.approx(beta, rel=1e-6)
    assert errors[0] == pytest.approx(error, abs=1e-4)


@pytest.mark.parametrize("target", [None, 3.0])
def test_log_and_rewards_use_the_same_beta_and_kl(run, target):
    """Expected KL: whole completions, one row at a time, with the weights of the step."""
    recording, calls = run(kl_target=target, kl_horizon=HORIZON)
    for step, (beta, scores, rewards, mask) in zip(recording.steps, calls, strict=True):
        recording.rewind(step)
        kls = kls_of(recording.roles, step.experience, TEMPERATURE)
        assert kls.mean().abs() > 0.1
        assert step.logs["objective/kl"] == pytest.approx(kls.mean().item(), abs=1e-4)
        penalty = -beta * kls.mean().item()
        assert step.logs["objective/non_score_reward"] == pytest.approx(penalty, abs=1e-4)
        total = penalty + scores.mean().item()
        assert step.logs["objective/rlhf_reward"] == pytest.approx(total, abs=1e-4)
        torch.testing.assert_close(rewards.sum(1), scores - beta * kls, atol=1e-4, rtol=1e-5)
        assert bool((rewards[~mask] == 0).all())
    betas = [beta for beta, *_ in calls]
    if target is None:
        assert betas == [0.3] * 4
    else:
        assert all(a != b for a, b in itertools.pairwise(betas))
