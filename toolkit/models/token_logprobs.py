"""Log-probabilities of given tokens from hidden states, without ever holding all logits.

A completion of 256 tokens times a vocabulary of 152k is 156 MB of float32 logits, per row, and a
softmax needs it several times over. Here the head runs over a slice of tokens at a time, and the
backward pass computes each slice again.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from toolkit.models.products import through

SLICE_BYTES = 16 << 20  # of float32 logits at a time


@dataclass(frozen=True)
class VocabularyHead:
    """A causal model's head, and what the model does to its logits afterwards."""

    layer: nn.Module
    size: int
    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, causal: Any) -> "VocabularyHead":
        """The head of a causal language model.

        Gemma squashes its logits by tanh, Cohere multiplies them, Granite divides them.
        """
        layer = causal.get_output_embeddings()
        config = causal.config.get_text_config()
        scale = float(getattr(config, "logit_scale", None) or 1.0)
        scale /= float(getattr(config, "logits_scaling", None) or 1.0)
        softcap = getattr(config, "final_logit_softcapping", None)
        return cls(layer, int(layer.weight.shape[0]), scale, softcap)

    def logits(self, hidden: Tensor) -> Tensor:
        """`(n, d)` to `(n, V)`, float32."""
        found = through(self.layer, hidden).float()
        if self.scale != 1.0:
            found = found * self.scale
        return found if self.softcap is None else self.softcap * torch.tanh(found / self.softcap)


def token_logprobs(
    head: VocabularyHead, hidden: Tensor, tokens: Tensor, *, temperature: float, entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """log π(token) under softmax(logits / temperature), and the entropy if asked for.

    Args:
        head: of the model.
        hidden: `(N, d)`, at the positions before the tokens.
        tokens: `(N,)` ids.
        temperature: above 0.

    Returns: logprobs and entropies in nats, `(N,)` float32; the gradient goes through both.
    """

    def part(hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        logits = head.logits(hidden)
        if temperature != 1.0:
            logits = logits / temperature
        found: tuple[Tensor, Tensor] = _Chosen.apply(logits, tokens, entropy)  # type: ignore[no-untyped-call]
        return found

    size = max(1, SLICE_BYTES // (4 * head.size))
    again = torch.is_grad_enabled() and hidden.shape[0] > size
    parts = [
        checkpoint(part, h, t, use_reentrant=False) if again else part(h, t)
        for h, t in zip(torch.split(hidden, size), torch.split(tokens, size), strict=True)
    ]
    if not parts:
        return hidden.new_zeros(0).float(), hidden.new_zeros(0).float() if entropy else None
    logprobs, entropies = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropies) if entropy else None


class _Chosen(torch.autograd.Function):
    """Log-softmax at one token per row, and the entropy of the row; both from one softmax."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor, entropy: bool) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        logprobs = logits.log_softmax(-1)  # (n, V)
        chosen = logprobs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        probs = logits.softmax(-1)  # PyTorch's exp alone takes longer
        spread = torch.zeros_like(chosen)
        if entropy:
            spread = -logprobs.mul_(probs).sum(-1)
        ctx.save_for_backward(probs, tokens, spread)
        return chosen, spread

    @staticmethod
    def backward(
        ctx: Any, to_chosen: Tensor | None, to_spread: Tensor | None
    ) -> tuple[Tensor | None, None, None]:
        probs, tokens, spread = ctx.saved_tensors
        found: Tensor | None = None
        if to_chosen is not None:  # onehot - p
            found = probs * -to_chosen.unsqueeze(-1)
            found.scatter_add_(-1, tokens.unsqueeze(-1), to_chosen.unsqueeze(-1))
        if to_spread is not None:  # -p·(log p + H)
            slope = -(torch.special.xlogy(probs, probs) + probs * spread.unsqueeze(-1))
            slope = slope * to_spread.unsqueeze(-1)
            found = slope if found is None else found + slope
        return found, None, None
