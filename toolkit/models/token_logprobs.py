"""Log-probabilities of given tokens from hidden states, without ever holding all logits.

A completion of 256 tokens times a vocabulary of 152k is 156 MB of float32 logits, per row, and a
softmax needs it several times over. Here the head runs over a slice of tokens at a time, and the
backward pass computes each slice again.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

SLICE_BYTES = 64 << 20  # of float32 logits at a time


def token_logprobs(
    head: nn.Module, hidden: Tensor, tokens: Tensor, *, temperature: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """log π(token) and entropy under softmax(logits / temperature).

    Args:
        head: hidden states `(n, d)` to logits `(n, V)`.
        hidden: `(N, d)`, at the positions before the tokens.
        tokens: `(N,)` ids.
        temperature: above 0.
        softcap: logits are squashed to ±softcap by tanh first, where the model does so.

    Returns: logprobs and entropies in nats, `(N,)` float32; the gradient goes through both.
    """

    def slice_of(hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        logits = head(hidden).float()
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        logits = logits / temperature
        normaliser = logits.logsumexp(-1)
        taken = logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        # H = log Z - Σ p·logit: exact, one probability tensor and no log-softmax beside it
        entropy = normaliser - (torch.exp(logits - normaliser.unsqueeze(-1)) * logits).sum(-1)
        return taken - normaliser, entropy

    size = max(1, SLICE_BYTES // (4 * _vocabulary(head)))
    parts = []
    for h, t in zip(hidden.split(size), tokens.split(size), strict=True):
        if torch.is_grad_enabled() and hidden.shape[0] > size:
            parts.append(checkpoint(slice_of, h, t, use_reentrant=False))
        else:
            parts.append(slice_of(h, t))
    logprobs, entropies = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


def _vocabulary(head: Any) -> int:
    return int(head.weight.shape[0])
