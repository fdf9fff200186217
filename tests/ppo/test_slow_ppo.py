"""The tensor functions against plain loops, over ragged rows with garbage in their padding."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ppo import slow_ppo
from toolkit.ppo.experience import gae, kl_estimate, kl_rewards, whiten
from toolkit.ppo.losses import policy_loss, value_loss

CLOSE = {"atol": 1e-9, "rtol": 1e-9}  # float64 on both sides
lengths_of_rows = st.lists(st.integers(0, 6), min_size=1, max_size=4).filter(any)
fractions = st.floats(0, 1)


def ragged(lengths, seed, *, scale=1.0):
    """One number per real token."""
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(n, generator=generator).double() * scale).tolist() for n in lengths]


def padded(rows, garbage=1e3):
    """`(B, T)`, right-padded with a large number that must not matter."""
    width = max(map(len, rows))
    filled = [row + [garbage] * (width - len(row)) for row in rows]
    return torch.tensor(filled, dtype=torch.float64)


def mask_of(rows):
    width = max(map(len, rows))
    return torch.tensor([[t < len(row) for t in range(width)] for row in rows])


def assert_rows(tensor, expected):
    """The real tokens are as expected, the padding is zero."""
    torch.testing.assert_close(tensor, padded(expected, garbage=0.0), **CLOSE)


@settings(max_examples=60, deadline=None)
@given(
    lengths=lengths_of_rows,
    gamma=fractions,
    lam=fractions,
    beta=fractions,
    estimator=st.sampled_from(["k1", "k3"]),
    whiten_rewards=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_from_scores_to_advantages(lengths, gamma, lam, beta, estimator, whiten_rewards, seed):
    logprobs, reference, values = (ragged(lengths, seed + i) for i in range(3))
    scores, mask = ragged([len(lengths)], seed + 3)[0], mask_of(logprobs)
    kl = kl_estimate(padded(logprobs), padded(reference, garbage=-50.0), estimator=estimator)
    rewards = kl_rewards(torch.tensor(scores, dtype=torch.float64), kl, mask, kl_coef=beta)
    if whiten_rewards:
        rewards = whiten(rewards, mask, shift_mean=False)
    raw, returns = gae(rewards, padded(values), mask, gamma=gamma, lam=lam)
    expected = slow_ppo.advantages_and_returns(
        scores,
        logprobs,
        reference,
        values,
        beta=beta,
        estimator=estimator,
        gamma=gamma,
        lam=lam,
        whiten_rewards=whiten_rewards,
    )
    assert_rows(whiten(raw, mask), expected[0])
    assert_rows(returns, expected[1])


@settings(max_examples=60, deadline=None)
@given(
    lengths=lengths_of_rows,
    cliprange=st.floats(0.05, 0.5),
    cliprange_value=st.floats(0.05, 2),
    seed=st.integers(0, 1000),
)
def test_losses_and_statistics(lengths, cliprange, cliprange_value, seed):
    old, advantages, old_values, returns, values = (ragged(lengths, seed + i) for i in range(5))
    no_entropy = [[0.0] * length for length in lengths]  # tested in tests/kernels
    moves = ragged(lengths, seed + 6, scale=0.3)
    new = [[a + b for a, b in zip(*pair, strict=True)] for pair in zip(old, moves, strict=True)]
    mask, count = mask_of(old), sum(lengths)
    columns = (old, advantages, old_values, returns, new, values, no_entropy)
    flat = ([x for row in rows for x in row] for rows in columns)
    tokens = [slow_ppo.Token(*numbers) for numbers in zip(*flat, strict=True)]
    expected = slow_ppo.minibatch(tokens, cliprange=cliprange, cliprange_value=cliprange_value)
    policy = policy_loss(
        padded(new), padded(old, garbage=0.0), padded(advantages), mask, cliprange=cliprange
    )
    value, clipped = value_loss(
        padded(values), padded(old_values), padded(returns), mask, cliprange=cliprange_value
    )
    sums = {
        "policy_loss": policy.loss,
        "value_loss": value,
        "approx_kl": policy.approx_kl,
        "clip_fraction": policy.clipped,
        "value_clip_fraction": clipped,
        "ratio": policy.ratio,
    }
    for name, total in sums.items():
        mean = torch.tensor(getattr(expected, name)).double()
        torch.testing.assert_close((total / count).double(), mean, atol=1e-6, rtol=1e-6)
