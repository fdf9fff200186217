"""Attention for a packed row that keeps its sequences apart: each attends to its own past, without a mask.

A mask over a packed row costs its whole square, though a sequence sees only itself. Here the tokens of
each sequence are laid beside those of the others for attention alone, and put back into their row
after it; nothing else of a layer is computed on padding.
"""

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

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
    """Whether `slots` reach the attention of each layer of this model, which must be SDPA in all.

    They do where its layers ask transformers' registry for it, which learns here what slots are, and
    where nothing else is done with the mask before. That is tried, once for each model.
    """
    if causal not in _TRIED:
        _TRIED[causal] = _reach_attention(causal)
    return _TRIED[causal]


_TRIED: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


@torch.no_grad()
def _reach_attention(causal: Any) -> bool:
    """Try slots on sequences of two tokens and of one."""
    asks = getattr(causal, "_can_set_attn_implementation", None)
    if asks is None or not asks():
        return False
    attention = _KeepingApart.taught()
    ids = torch.zeros(1, 3, dtype=torch.long, device=causal.get_input_embeddings().weight.device)
    gpus = [ids.device] if ids.device.type == "cuda" else []
    attention.kept = 0
    try:
        with torch.random.fork_rng(gpus):  # dropout's numbers are the run's
            causal.base_model(
                input_ids=ids,
                attention_mask=slots(torch.tensor([2, 1], device=ids.device)),
                position_ids=torch.tensor([[0, 1, 0]], device=ids.device),
                use_cache=False,
            )
    except Exception:  # of a model that reads its mask as one
        return False
    layers: int = causal.config.get_text_config().num_hidden_layers
    return attention.kept == layers


class _KeepingApart:
    """An attention of transformers' registry, and what it does with `slots` for a mask.

    `plain` is what was registered before; `kept` counts the calls with slots.
    """

    def __init__(self, plain: Any) -> None:
        self.plain, self.kept = plain, 0

    @classmethod
    def taught(cls) -> "_KeepingApart":
        """The one that is registered for SDPA, from now on."""
        known = ALL_ATTENTION_FUNCTIONS["sdpa"]
        if not isinstance(known, cls):
            known = cls(known)
            AttentionInterface.register("sdpa", known)
        return known

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """As transformers' SDPA, and with slots `(1, heads, N, d)` to `(1, N, heads, d)`."""
        if attention_mask is None or attention_mask.dtype != torch.int64:
            found: tuple[Tensor, None] = self.plain(
                module, query, key, value, attention_mask, **kwargs
            )
            return found
        if kwargs.get("position_bias") is not None:
            raise ValueError("a bias by position is for one sequence per row")
        self.kept += 1
        sources, places = _layout(attention_mask)

        def spread(states: Tensor) -> Tensor:
            rows = states[0].transpose(0, 1).flatten(1)  # (N, heads · d)
            apart: Tensor = _Spread.apply(rows, sources, places)  # type: ignore[no-untyped-call]
            return apart.view(*attention_mask.shape[2:], states.shape[1], -1).transpose(1, 2)

        states = (spread(query), spread(key), spread(value))
        apart, _ = self.plain(module, *states, None, **kwargs | {"is_causal": True})
        rows: Tensor = _Gather.apply(apart.flatten(2).flatten(0, 1), places)  # type: ignore[no-untyped-call]
        return rows.view(1, len(places), *apart.shape[2:]), None  # apart is (B, L, heads, d)


def _layout(mask: Tensor) -> tuple[Tensor, Tensor]:
    """The token at each place `(B · L,)`, and the place of each token `(N,)`; found once for a mask."""
    known: tuple[Tensor, Tensor] | None = getattr(mask, "spread_out", None)
    if known is None:
        flat = mask.flatten()
        known = (flat.clamp_min(0), (flat >= 0).nonzero().flatten())
        mask.spread_out = known  # type: ignore[attr-defined]
    return known


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
