"""Log-probabilities of given tokens from hidden states, without ever holding all logits.

A completion of 256 tokens times a vocabulary of 152k is 156 MB of float32 logits, per row, and a
softmax needs it several times over. Here the head runs over a slice of tokens at a time, and what is
kept of it is as wide as the model.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# of float32 logits at a time. On a CPU a slice shall stay in the cache, and more tokens make no
# product faster; on a card every slice reads the whole head anew, and fewer tokens than these are
# done before it is read
SLICE_BYTES, SLICE_TOKENS = 16 << 20, 128
GPU_SLICE_BYTES = 256 << 20


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

        Gemma squashes its logits by tanh, Cohere, Falcon-H1 and HyperCLOVA X multiply them, Granite
        divides them. Whether that is all a model does, `toolkit.sampling.compatibility` tries.
        """
        layer = causal.get_output_embeddings()
        config = causal.config.get_text_config()
        scaling = float(getattr(config, "logits_scaling", None) or 1.0)
        scale = scaling if config.model_type == "hyperclovax" else 1 / scaling
        scale *= float(getattr(config, "lm_head_multiplier", None) or 1.0)
        if config.model_type != "mpt":  # which has a `logit_scale`, and does not use it
            scale *= float(getattr(config, "logit_scale", None) or 1.0)
        softcap = getattr(config, "final_logit_softcapping", None)
        softcap = getattr(config, "logits_soft_cap", None) if softcap is None else softcap
        return cls(layer, int(layer.weight.shape[0]), scale, softcap)

    def logits(self, hidden: Tensor, *, temperature: float = 1.0) -> Tensor:
        """`(n, d)` to `(n, V)`, float32, divided by the temperature."""
        found: Tensor = self.layer(hidden).float()
        if self.softcap is not None:
            found = torch.tanh(found * (self.scale / self.softcap))
        factor = (self.scale if self.softcap is None else self.softcap) / temperature
        return found if factor == 1.0 and self.softcap is None else found * factor


def token_logprobs(
    head: VocabularyHead,
    hidden: Tensor,
    tokens: Tensor,
    *,
    temperature: float,
    entropy: bool,
    through_entropy: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """log π(token) under softmax(logits / temperature), and the entropy if asked for.

    Args:
        head: of the model.
        hidden: `(N, d)`, at the positions before the tokens.
        tokens: `(N,)` ids.
        temperature: above 0.
        through_entropy: the entropy has a gradient, which costs a product with the head.

    Returns: logprobs and entropies in nats, `(N,)` float32; the gradient goes through both.
    """
    if not len(tokens):
        return hidden.new_zeros(0).float(), hidden.new_zeros(0).float() if entropy else None
    learns = any(p.requires_grad for p in head.layer.parameters())
    way = _with_learning_head if learns and torch.is_grad_enabled() else _Chosen.apply
    chosen, spread = way(hidden, tokens, head, temperature, entropy, through_entropy)
    return chosen, spread if entropy else None


class _Chosen(torch.autograd.Function):
    """Log-softmax at one token per row, and the entropy of the row.

    The gradient is made in the forward pass, where the softmax is at hand: what is kept is `(N, d)`
    and not `(N, V)`, and no slice is computed again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        tokens: Tensor,
        head: VocabularyHead,
        temperature: float,
        entropy: bool,
        through_entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        learns: bool = ctx.needs_input_grad[0]
        found: list[tuple[Tensor, Tensor]] = []
        slopes: list[tuple[Tensor, Tensor | None]] = []
        for states, taken in _slices(head, hidden, tokens):
            with torch.set_grad_enabled(learns):
                states = states.detach().requires_grad_(learns)
                logits = head.logits(states, temperature=temperature)
            places = taken.unsqueeze(-1)
            plain = logits.detach()  # (n, V), of which 0 becomes the largest, as in any softmax
            plain.sub_(plain.amax(-1, keepdim=True))
            probs = plain.softmax(-1)
            total = -probs.amax(-1, keepdim=True).log()  # log Σ exp(plain)
            chosen = (plain.gather(-1, places) - total).squeeze(-1)
            spread, to_spread = torch.zeros_like(chosen), None
            if entropy:
                spread = total.squeeze(-1) - torch.linalg.vecdot(probs, plain)
                if learns and through_entropy:  # -p·(log p + H)
                    slope = (total - spread.unsqueeze(-1) - plain).mul_(probs)
                    (to_spread,) = torch.autograd.grad(logits, states, slope, retain_graph=True)
            found.append((chosen, spread))
            if learns:  # onehot - p
                slope = probs.neg_().scatter_add_(-1, places, torch.ones_like(probs[:, :1]))
                (to_chosen,) = torch.autograd.grad(logits, states, slope)
                slopes.append((to_chosen, to_spread))
        ctx.slopes = [torch.cat(s) if None not in s else None for s in zip(*slopes, strict=True)]
        chosen, spread = (torch.cat(parts) for parts in zip(*found, strict=True))
        if not through_entropy:
            ctx.mark_non_differentiable(spread)
        return chosen, spread

    @staticmethod
    def backward(
        ctx: Any, to_chosen: Tensor | None, to_spread: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        found: Tensor | None = None
        for grad, slope in zip((to_chosen, to_spread), ctx.slopes, strict=True):
            if grad is not None and slope is not None:
                part = slope * grad.unsqueeze(-1).to(slope.dtype)
                found = part if found is None else found + part
        return found, None, None, None, None, None


def _with_learning_head(
    hidden: Tensor,
    tokens: Tensor,
    head: VocabularyHead,
    temperature: float,
    entropy: bool,
    through_entropy: bool,
) -> tuple[Tensor, Tensor]:
    """As `_Chosen`, the gradient going to the head's own adapter too: slices are computed again."""

    def part(states: Tensor, taken: Tensor) -> tuple[Tensor, Tensor]:
        logprobs = head.logits(states, temperature=temperature).log_softmax(-1)
        chosen = logprobs.gather(-1, taken.unsqueeze(-1)).squeeze(-1)
        spread = -(logprobs.exp() * logprobs).sum(-1) if entropy else torch.zeros_like(chosen)
        return chosen, spread if through_entropy else spread.detach()

    parts = [checkpoint(part, *s, use_reentrant=False) for s in _slices(head, hidden, tokens)]
    chosen, spread = (torch.cat(each) for each in zip(*parts, strict=True))
    return chosen, spread


def _slices(
    head: VocabularyHead, hidden: Tensor, tokens: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    size = slice_tokens(head.size, on_gpu=is_on_gpu(hidden))
    return zip(torch.split(hidden, size), torch.split(tokens, size), strict=True)


def slice_tokens(vocabulary: int, *, on_gpu: bool) -> int:
    """How many tokens' logits are there at a time."""
    if on_gpu:
        return max(1, GPU_SLICE_BYTES // (4 * vocabulary))
    return min(SLICE_TOKENS, max(1, SLICE_BYTES // (4 * vocabulary)))


def is_on_gpu(states: Tensor) -> bool:
    """Whether they are on an accelerator; a prediction of memory answers in its place."""
    return states.device.type != "cpu"
