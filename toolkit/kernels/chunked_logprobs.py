"""Log-probabilities and entropies of tokens from hidden states; the logits exist slice by slice.

The float32 logits of one completion of 256 tokens take 156 MB with a vocabulary of 152k, and a softmax
needs several copies. Here the head runs over a slice of tokens at a time, and only tensors of the hidden
size are kept for the backward pass. The plain version, `_log_softmax`, runs over all tokens at once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from toolkit.kernels import kernels_enabled

# Float32 logits per slice. On a CPU a slice should stay in the cache, and matrix products do not get
# faster with more tokens. On a GPU each slice reads the whole head again, so slices are larger.
SLICE_BYTES, SLICE_TOKENS = 16 << 20, 128
GPU_SLICE_BYTES = 256 << 20


@dataclass(frozen=True)
class VocabularyHead:
    """A causal model's head, and how the model changes the head's logits."""

    layer: nn.Module
    size: int
    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, causal: Any) -> "VocabularyHead":
        """The head of a causal language model.

        Gemma caps its logits with tanh, Cohere, Falcon-H1 and HyperCLOVA X multiply them, Granite
        divides them. `toolkit.sampling.compatibility` checks that this covers the model.
        """
        layer = causal.get_output_embeddings()
        config = causal.config.get_text_config()
        scaling = float(getattr(config, "logits_scaling", None) or 1.0)
        scale = scaling if config.model_type == "hyperclovax" else 1 / scaling
        scale *= float(getattr(config, "lm_head_multiplier", None) or 1.0)
        if config.model_type != "mpt":  # MPT has a `logit_scale` and ignores it
            scale *= float(getattr(config, "logit_scale", None) or 1.0)
        softcap = getattr(config, "final_logit_softcapping", None)
        softcap = getattr(config, "logits_soft_cap", None) if softcap is None else softcap
        return cls(layer, int(layer.weight.shape[0]), scale, softcap)

    def logits(self, hidden: Tensor, *, temperature: float = 1.0) -> Tensor:
        """`(n, V)` float32 for hidden states `(n, d)`, divided by the temperature."""
        logits: Tensor = self.layer(hidden).float()
        if self.softcap is not None:
            logits = torch.tanh(logits * (self.scale / self.softcap))
        factor = (self.scale if self.softcap is None else self.softcap) / temperature
        return logits if factor == 1.0 and self.softcap is None else logits * factor


def token_logprobs(
    head: VocabularyHead,
    hidden: Tensor,
    tokens: Tensor,
    *,
    temperature: float,
    entropy: bool,
    entropy_gradient: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """log π(token) under softmax(logits / temperature), and the entropy of the distribution.

    Args:
        head: the model's vocabulary head.
        hidden: `(N, d)`, at the positions before the tokens.
        tokens: `(N,)` ids.
        temperature: above 0.
        entropy: also compute entropies.
        entropy_gradient: also compute the entropies' gradient, which costs one more product with the head.

    Returns: log-probabilities in nats, `(N,)` float32, and entropies (None if not requested).
    """
    if not len(tokens):
        return hidden.new_zeros(0).float(), hidden.new_zeros(0).float() if entropy else None
    rest = (head, temperature, entropy, entropy_gradient)
    if not kernels_enabled():
        logprobs, entropies = _log_softmax(hidden, tokens, *rest)
    elif torch.is_grad_enabled() and any(p.requires_grad for p in head.layer.parameters()):
        # recomputed in the backward pass, so that the head's own adapter gets its gradient
        parts = [
            checkpoint(_log_softmax, *slices, *rest, use_reentrant=False)
            for slices in _slices(head, hidden, tokens)
        ]
        logprobs, entropies = (torch.cat(part) for part in zip(*parts, strict=True))
    else:
        logprobs, entropies = _ChunkedLogprobs.apply(hidden, tokens, *rest)  # type: ignore[no-untyped-call]
    return logprobs, entropies if entropy else None


def _log_softmax(
    hidden: Tensor,
    tokens: Tensor,
    head: VocabularyHead,
    temperature: float,
    entropy: bool,
    entropy_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """The plain version: log-softmax over the logits `(N, V)` of all tokens."""
    distribution = head.logits(hidden, temperature=temperature).log_softmax(-1)
    logprobs = distribution.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    if not entropy:
        return logprobs, torch.zeros_like(logprobs)
    entropies = -(distribution.exp() * distribution).sum(-1)
    return logprobs, entropies if entropy_gradient else entropies.detach()


class _ChunkedLogprobs(torch.autograd.Function):
    """`_log_softmax` in slices, for a frozen head.

    The forward pass computes the gradient of each slice while its softmax exists. It keeps `(N, d)`
    instead of `(N, V)`, and the backward pass computes no slice again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        tokens: Tensor,
        head: VocabularyHead,
        temperature: float,
        entropy: bool,
        entropy_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        needs_grad: bool = ctx.needs_input_grad[0]
        outputs: list[tuple[Tensor, Tensor]] = []
        # d logprob / d hidden, d entropy / d hidden
        gradients: list[tuple[Tensor, Tensor | None]] = []
        for states, targets in _slices(head, hidden, tokens):
            with torch.set_grad_enabled(needs_grad):
                states = states.detach().requires_grad_(needs_grad)
                logits = head.logits(states, temperature=temperature)
            targets = targets.unsqueeze(-1)
            centred = logits.detach()  # (n, V); the largest becomes 0, as in any softmax
            centred.sub_(centred.amax(-1, keepdim=True))
            probs = centred.softmax(-1)
            log_sum = -probs.amax(-1, keepdim=True).log()  # log Σ exp(centred)
            logprobs = (centred.gather(-1, targets) - log_sum).squeeze(-1)
            entropies, entropy_grad = torch.zeros_like(logprobs), None
            if entropy:
                entropies = log_sum.squeeze(-1) - torch.linalg.vecdot(probs, centred)
                if needs_grad and entropy_gradient:  # dH / d logits = -p · (log p + H)
                    slope = (log_sum - entropies.unsqueeze(-1) - centred).mul_(probs)
                    (entropy_grad,) = torch.autograd.grad(logits, states, slope, retain_graph=True)
            outputs.append((logprobs, entropies))
            if needs_grad:  # d logprob / d logits = onehot - p
                slope = probs.neg_().scatter_add_(-1, targets, torch.ones_like(probs[:, :1]))
                (logprob_grad,) = torch.autograd.grad(logits, states, slope)
                gradients.append((logprob_grad, entropy_grad))
        ctx.gradients = [
            torch.cat(parts) if None not in parts else None
            for parts in zip(*gradients, strict=True)
        ]
        logprobs, entropies = (torch.cat(parts) for parts in zip(*outputs, strict=True))
        if not entropy_gradient:
            ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *output_grads: Tensor | None) -> tuple[Tensor | None, ...]:
        total: Tensor | None = None
        for output_grad, gradient in zip(output_grads, ctx.gradients, strict=True):
            if output_grad is not None and gradient is not None:
                part = gradient * output_grad.unsqueeze(-1).to(gradient.dtype)
                total = part if total is None else total + part
        return total, None, None, None, None, None


def _slices(
    head: VocabularyHead, hidden: Tensor, tokens: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    size = slice_tokens(head.size, on_gpu=is_on_gpu(hidden))
    return zip(torch.split(hidden, size), torch.split(tokens, size), strict=True)


def slice_tokens(vocabulary: int, *, on_gpu: bool) -> int:
    """Tokens per slice of logits."""
    if on_gpu:
        return max(1, GPU_SLICE_BYTES // (4 * vocabulary))
    return min(SLICE_TOKENS, max(1, SLICE_BYTES // (4 * vocabulary)))


def is_on_gpu(states: Tensor) -> bool:
    """Whether a tensor is on an accelerator. A memory prediction on a CPU replaces this function."""
    return states.device.type != "cpu"
