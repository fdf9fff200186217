"""Attention for a packed row that keeps its sequences apart: each attends to its own past, without a mask.

A mask over a packed row costs its whole square, though a sequence sees only itself. Here the tokens of
each sequence are laid beside those of the others for attention alone, and put back into their row
after it; nothing else of a layer is computed on padding.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

PADDING = -1


def slots(lengths: Tensor) -> Tensor:
    """What stands in for a mask: `(1, 1, B, L)` integers, the number of the token at each place.

    A row of N tokens, sequences of `lengths` `(B,)` one after the other, becomes B rows of L places,
    each with its sequence first and `PADDING` after it. Attention masks have four dimensions and
    are True and False or numbers to be added, so nothing else looks like this.
    """
    along = torch.arange(int(lengths.max()), device=lengths.device)
    starts = (lengths.cumsum(0) - lengths).unsqueeze(1)
    return torch.where(along < lengths.unsqueeze(1), starts + along, PADDING)[None, None]


def can_keep_apart(causal: Any) -> bool:
    """Whether `slots` reach the attention of this model, which must be SDPA in all layers.

    They do where its layers ask transformers' registry for it, which learns here what slots are.
    """
    asks = getattr(causal, "_can_set_attn_implementation", None)
    if asks is None or not asks():
        return False
    AttentionInterface.register("sdpa", _attend)
    return True


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """As transformers' SDPA, and with `slots` for a mask: `(1, heads, N, d)` to `(1, N, heads, d)`."""
    if attention_mask is None or attention_mask.dtype != torch.int64:
        found: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **kwargs
        )
        return found
    flat = attention_mask.flatten()
    sources, places = flat.clamp_min(0), (flat >= 0).nonzero().flatten()

    def spread(states: Tensor) -> Tensor:
        rows = states[0].transpose(0, 1).flatten(1)  # (N, heads · d)
        apart: Tensor = _Spread.apply(rows, sources, places)  # type: ignore[no-untyped-call]
        return apart.view(*attention_mask.shape[2:], states.shape[1], -1).transpose(1, 2)

    apart, _ = sdpa_attention_forward(  # (B, L, heads, d)
        module, spread(query), spread(key), spread(value), None, **kwargs
    )
    rows: Tensor = _Gather.apply(apart.flatten(2).flatten(0, 1), places)  # type: ignore[no-untyped-call]
    return rows.view(1, len(places), *apart.shape[2:]), None


class _Spread(torch.autograd.Function):
    """Tokens `(N, f)` to places `(B · L, f)`; padding repeats the first token.

    What is at padding has no gradient: no token attends to what comes after it, and nobody reads
    what padding itself attends to. So a token's gradient is that of its one place.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sources: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        return rows.index_select(0, sources)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        return grad.index_select(0, places), None, None


class _Gather(torch.autograd.Function):
    """The tokens `(N, f)` of places `(B · L, f)`; padding is left out."""

    @staticmethod
    def forward(ctx: Any, apart: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.shape = apart.shape
        return apart.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (places,) = ctx.saved_tensors
        return grad.new_zeros(ctx.shape).index_copy_(0, places, grad), None
