"""Rewards, GAE and whitening against hand arithmetic and plain loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.ppo.experience import gae, kl_estimate, kl_rewards, masked_mean, whiten


def slow_gae(rewards, values, length, gamma, lam):
    """One row, by the definition: Σ (γλ)^k δ_{t+k}."""
    deltas = []
    for t in range(length):
        following = values[t + 1] if t + 1 < length else 0.0
        deltas.append(rewards[t] + gamma * following - values[t])
    return [
        sum((gamma * lam) ** k * deltas[t + k] for k in range(length - t)) for t in range(length)
    ]


def mask_of(lengths, width):
    return torch.tensor([[t < n for t in range(width)] for n in lengths])


def test_gae_by_hand():
    # δ = [0 + .5·2 − 1, 3 + 0 − 2] = [0, 1]; A = [0 + .25·1, 1]
    advantages, returns = gae(
        torch.tensor([[0.0, 3.0, 9.0]]),
        torch.tensor([[1.0, 2.0, 9.0]]),
        torch.tensor([[True, True, False]]),
        gamma=0.5,
        lam=0.5,
    )
    assert advantages.tolist() == [[0.25, 1.0, 0.0]]
    assert returns.tolist() == [[1.25, 3.0, 0.0]]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=4),
    gamma=st.floats(0, 1),
    lam=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_gae_equals_plain_loops(lengths, gamma, lam, seed):
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, len(lengths), 6, generator=generator, dtype=torch.float64)
    advantages, returns = gae(rewards, values, mask_of(lengths, 6), gamma=gamma, lam=lam)
    for row, length in enumerate(lengths):
        expected = slow_gae(rewards[row].tolist(), values[row].tolist(), length, gamma, lam)
        assert advantages[row, :length].tolist() == pytest.approx(expected, abs=1e-9)
        assert advantages[row, length:].abs().sum() == 0
        assert returns[row, length:].abs().sum() == 0


def test_values_at_pads_do_not_leak():
    rewards, values = torch.randn(2, 3, 5)
    mask = mask_of([2, 5, 1], 5)
    before = gae(rewards, values, mask, gamma=0.9, lam=0.9)
    after = gae(rewards, values + ~mask * 100.0, mask, gamma=0.9, lam=0.9)
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])


def test_mask_with_gap_is_rejected():
    x = torch.zeros(1, 3)
    with pytest.raises(ValueError, match="gap"):
        gae(x, x, torch.tensor([[True, False, True]]), gamma=1.0, lam=1.0)


def test_rewards_sum_to_score_minus_kl():
    kl = torch.tensor([[0.1, 0.2, 0.3, 7.0], [0.5, 7.0, 7.0, 7.0], [7.0, 7.0, 7.0, 7.0]])
    mask = mask_of([3, 1, 0], 4)
    rewards = kl_rewards(torch.tensor([2.0, -1.0, 5.0]), kl, mask, kl_coef=0.1)
    # at the last real token: 2 − .1·.3, −1 − .1·.5; an empty row gets nothing
    assert rewards.tolist() == [
        pytest.approx([-0.01, -0.02, 1.97, 0.0]),
        pytest.approx([-1.05, 0.0, 0.0, 0.0]),
        pytest.approx([0.0, 0.0, 0.0, 0.0]),
    ]


def test_kl_estimators_by_hand():
    policy, reference = torch.tensor([math.log(0.5)]), torch.tensor([math.log(0.25)])
    assert kl_estimate(policy, reference, estimator="k1").item() == pytest.approx(math.log(2))
    # q/p − 1 − log(q/p) with q/p = ½
    expected = 0.5 - 1 + math.log(2)
    assert kl_estimate(policy, reference, estimator="k3").item() == pytest.approx(expected)


def test_kl_estimators_are_unbiased():
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.3, 0.3, 0.4])
    exact = (p * (p / q).log()).sum().item()
    for estimator in ("k1", "k3"):
        mean = (p * kl_estimate(p.log(), q.log(), estimator=estimator)).sum().item()
        assert mean == pytest.approx(exact, abs=1e-6)


def test_whitening_is_masked_and_over_the_whole_batch():
    x = torch.tensor([[1.0, 3.0, 99.0], [5.0, 99.0, 99.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    # mean 3, unbiased variance (4 + 0 + 4) / 2
    sd = 2.0
    assert whiten(x, mask).tolist() == [
        pytest.approx([-2 / sd, 0.0, 0.0], abs=1e-6),
        pytest.approx([2 / sd, 0.0, 0.0], abs=1e-6),
    ]
    kept = whiten(x, mask, shift_mean=False)
    assert masked_mean(kept, mask).item() == pytest.approx(3.0, abs=1e-5)


def test_whitening_one_or_no_token_gives_zero():
    one = whiten(torch.tensor([[2.0]]), torch.tensor([[True]]))
    none = whiten(torch.tensor([[2.0]]), torch.tensor([[False]]))
    assert one.item() == 0.0
    assert none.item() == 0.0
