"""PPO's losses as sums over tokens. The caller divides by the minibatch's number of tokens.

With sums, splitting a minibatch into micro-batches of unequal length does not change the gradient.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PolicyLoss:
    """The policy's loss and its statistics, all summed over real tokens."""

    loss: Tensor
    clipped: Tensor  # tokens whose ratio was clipped
    approx_kl: Tensor  # ½(Δ logprob)², new against old policy
    ratio: Tensor


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, *, cliprange: float
) -> PolicyLoss:
    """Clipped surrogate loss, summed over real tokens. All tensors are `(B, T)`.

    Source: Schulman et al. 2017, arXiv:1707.06347, eq. 7.
    """
    log_ratio = (logprobs - old_logprobs).masked_fill(~mask, 0.0)
    ratio = log_ratio.exp()
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1.0 - cliprange, 1.0 + cliprange)
    with torch.no_grad():
        clipped_tokens = ((clipped > plain) & mask).sum()
        approx_kl = (0.5 * log_ratio**2 * mask).sum()
        ratio_sum = (ratio * mask).sum()
    loss = (torch.maximum(plain, clipped) * mask).sum()
    return PolicyLoss(loss, clipped_tokens, approx_kl, ratio_sum)


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, *, cliprange: float
) -> tuple[Tensor, Tensor]:
    """½·max(plain, clipped) squared error, summed over real tokens. All tensors are `(B, T)`.

    Values are clipped to a range around `old_values`, the values at rollout time.

    Returns: the loss, and the number of clipped tokens.
    Source: Stiennon et al. 2020's code base, as described by Huang et al. 2024, arXiv:2403.17031.
    """
    near = old_values + (values - old_values).clamp(-cliprange, cliprange)
    plain, clipped = (values - returns) ** 2, (near - returns) ** 2
    with torch.no_grad():
        clipped_tokens = ((clipped > plain) & mask).sum()
    return 0.5 * (torch.maximum(plain, clipped) * mask).sum(), clipped_tokens
