"""The last layer's feed-forward part, computed only at the tokens whose states are read.

Below the last layer every token's state is needed, since later tokens attend to it. Above its
attention a token's state goes nowhere but to the head, which in PPO reads completions and not
prompts, and in a reward model one token per row.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def last_mlp_only_at(causal: Any, places: Tensor) -> Iterator[None]:
    """Inside the block, other tokens skip the last `mlp`; their final states mean nothing.

    A model whose last layer has no part of that name, or one that takes more than states, runs whole,
    and so does one that will compute its layers again in the backward pass, which comes after the
    block.

    Args:
        causal: a causal language model.
        places: `(n,)`, of the tokens wanted, in the flattened `(R, L)` of the pass.
    """
    mlp = _last_mlp(causal)
    again = torch.is_grad_enabled() and getattr(causal, "is_gradient_checkpointing", False)
    if mlp is None or again:
        yield
        return
    shape: list[torch.Size] = []

    def take(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        shape.append(given[0].shape)
        return (given[0].flatten(0, 1).index_select(0, places).unsqueeze(0), *given[1:])

    def put(_: nn.Module, given: tuple[Tensor, ...], found: Any) -> Any:
        parts = found if isinstance(found, tuple) else (found,)
        states = parts[0].squeeze(0)  # (n, d)
        rows, length, width = shape.pop()
        whole = states.new_zeros(rows * length, width).index_copy(0, places, states)
        whole = whole.view(rows, length, width)
        return (whole, *parts[1:]) if isinstance(found, tuple) else whole

    hooks = [mlp.register_forward_pre_hook(take), mlp.register_forward_hook(put)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _last_mlp(causal: Any) -> nn.Module | None:
    count = causal.config.get_text_config().num_hidden_layers
    for child in causal.base_model.modules():
        if isinstance(child, nn.ModuleList) and len(child) == count:
            found = getattr(child[-1], "mlp", None)
            return found if isinstance(found, nn.Module) and _takes_states_alone(found) else None
    return None


def _takes_states_alone(part: nn.Module) -> bool:
    """Not Bloom's, which is given the residual too, and would add it to fewer tokens."""
    return len(inspect.signature(part.forward).parameters) == 1
