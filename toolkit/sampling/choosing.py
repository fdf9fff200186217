"""How the next token is drawn for one row: greedy, or at a temperature within top-k and top-p."""

import torch
from torch import Tensor

from toolkit.sampling.settings import Drawing


def choose(logits: Tensor, drawing: Drawing, generator: torch.Generator) -> int:
    """A token id for one row's logits `(V,)`, float32."""
    if drawing.temperature == 0:
        return int(logits.argmax(-1))
    logits = logits / drawing.temperature
    if 0 < drawing.top_k < logits.shape[-1]:
        least = logits.topk(drawing.top_k).values[-1]
        logits = logits.masked_fill(logits < least, -torch.inf)
    probs = logits.softmax(-1)
    if drawing.top_p < 1:
        probs = _nucleus(probs, drawing.top_p)
    return int(torch.multinomial(probs, 1, generator=generator))


def _nucleus(probs: Tensor, top_p: float) -> Tensor:
    """The smallest set of likeliest tokens that holds `top_p`, the others at zero.

    Source: Holtzman et al. 2020, arXiv:1904.09751.
    """
    ordered, order = probs.sort(descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered  # what stands before a token; 0 for the first
    return probs.scatter(-1, order, ordered.masked_fill(before >= top_p, 0.0))
