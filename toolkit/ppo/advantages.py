"""From scores and log-probabilities to rewards, advantages, returns: `(B, T)`, right-padded."""

import torch
from torch import Tensor


def kl_rewards(scores: Tensor, kl: Tensor, mask: Tensor, *, kl_coef: float) -> Tensor:
    """Per-token rewards: −β·kl everywhere, the score added at the last real token.

    Args:
        scores: `(B,)`, reward-model units.
        kl: `(B, T)`, per-token estimates in nats.
        mask: `(B, T)` bool, True on completion tokens.
        kl_coef: β, reward units per nat.

    Returns: `(B, T)`, zero on padding. A row without any real token gets no score.
    Raises: ValueError if shapes differ or a mask row has a gap.
    Source: Ziegler et al. 2019, arXiv:1909.08593, eq. 2.
    """
    check_mask(mask, kl)
    rewards = (-kl_coef * kl).masked_fill(~mask, 0.0)
    lengths = mask.sum(-1)
    rows = torch.arange(len(mask), device=mask.device)[lengths > 0]
    rewards[rows, lengths[rows] - 1] += scores[rows]
    return rewards


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, *, estimator: str) -> Tensor:
    """Per-token estimate of KL(policy ‖ reference) from samples of the policy, in nats.

    `k1` is unbiased and may be negative; `k3` is unbiased, never negative, of lower variance.
    Source: Schulman 2020, http://joschu.net/blog/kl-approx.html.
    """
    log_ratio = logprobs - ref_logprobs
    if estimator == "k1":
        return log_ratio
    if estimator == "k3":
        return torch.expm1(-log_ratio) + log_ratio
    raise ValueError(f"kl estimator must be k1 or k3, got {estimator!r}")


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimates over right-padded completions.

    Args:
        rewards: `(B, T)`, reward-model score units per token.
        values: `(B, T)`, V(s_t) before the update, same units.
        mask: `(B, T)` bool, True on completion tokens.
        gamma: per-token discount in [0, 1].
        lam: 1 is Monte Carlo, 0 is one-step TD.

    Returns: advantages and returns, `(B, T)`, zero on padding, not whitened.
    Raises: ValueError if shapes differ or a mask row has a gap.
    Source: Schulman et al. 2016, arXiv:1506.02438, eq. 16.
    """
    check_mask(mask, rewards, values)
    rewards, values = rewards.masked_fill(~mask, 0.0), values.masked_fill(~mask, 0.0)
    running = torch.zeros_like(rewards[:, 0])
    columns = []
    for t in reversed(range(rewards.shape[1])):
        following = values[:, t + 1] if t + 1 < rewards.shape[1] else torch.zeros_like(running)
        delta = rewards[:, t] + gamma * following - values[:, t]
        running = (delta + gamma * lam * running) * mask[:, t]
        columns.append(running)
    advantages = torch.stack(columns[::-1], dim=1)
    return advantages, advantages + values


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over True positions; 0 where there are none."""
    return (x * mask).sum() / mask.sum().clamp_min(1)


def whiten(x: Tensor, mask: Tensor, *, shift_mean: bool = True) -> Tensor:
    """Scale to variance 1 (unbiased), and to mean 0, over all True positions together.

    Args:
        shift_mean: False keeps the mean, as is usual for rewards.

    Returns: same shape as `x`, zero on padding.
    """
    mean = masked_mean(x, mask)
    count = mask.sum()
    variance = masked_mean((x - mean) ** 2, mask) * count / (count - 1).clamp_min(1)
    whitened = (x - mean) * torch.rsqrt(variance + 1e-8)
    if not shift_mean:
        whitened = whitened + mean
    return whitened.masked_fill(~mask, 0.0)


def check_mask(mask: Tensor, *others: Tensor) -> None:
    """Raise ValueError unless all shapes agree and no mask row has a gap."""
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool, got {mask.dtype}")
    for other in others:
        if other.shape != mask.shape:
            raise ValueError(
                f"expected shape {tuple(mask.shape)} like mask, got {tuple(other.shape)}"
            )
    if bool((mask[:, 1:] & ~mask[:, :-1]).any()):
        raise ValueError("a mask row has a gap: completions must be padded on the right only")
