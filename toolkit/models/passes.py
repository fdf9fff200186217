"""Forward passes over prompt + completion: log-probabilities and scalars at completion tokens only."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from toolkit.kernels import kernels_enabled
from toolkit.kernels.chunked_logprobs import VocabularyHead, token_logprobs
from toolkit.kernels.packing import pack, padded, supports_shared_rows
from toolkit.models.heads import ScalarHead


@dataclass(frozen=True)
class Batch:
    """Prompts padded on the left, completions padded on the right, concatenated along time.

    `input_ids` and `attention` are `(B, P + T)`; `mask` is `(B, T)` bool, True on real completion
    tokens. Padding follows from lengths and never from `ids != pad`, so pad may equal EOS.
    """

    input_ids: Tensor
    attention: Tensor
    mask: Tensor

    @property
    def completion_ids(self) -> Tensor:
        """Token ids of the completions, `(B, T)`."""
        return self.input_ids[:, -self.mask.shape[1] :]


def collate(
    prompts: list[list[int]], completions: list[list[int]], pad_id: int, device: Any = None
) -> Batch:
    """Make a `Batch` from the token ids of prompts and completions. Prompts must not be empty."""
    width_p = max(map(len, prompts))
    width_t = max(1, max(map(len, completions)))
    ids = torch.full((len(prompts), width_p + width_t), pad_id)
    attention = torch.zeros(ids.shape, dtype=torch.bool)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        start, end = width_p - len(prompt), width_p + len(completion)
        ids[row, start:end] = torch.tensor([*prompt, *completion])
        attention[row, start:end] = True
    batch = Batch(ids, attention, attention[:, width_p:])
    return Batch(*(t.to(device) for t in (batch.input_ids, batch.attention, batch.mask)))


def by_length(
    prompts: list[list[int]], completions: list[list[int]], size: int
) -> Iterator[list[int]]:
    """Group row numbers by similar length, with at most `size` rows per group."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]) + len(completions[i]))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def by_tokens(
    prompts: list[list[int]], completions: list[list[int]], most_tokens: int
) -> Iterator[list[int]]:
    """Group row numbers, with at most `most_tokens` per group; a longer row is its own group."""
    sizes = [len(p) + len(c) for p, c in zip(prompts, completions, strict=True)]
    group: list[int] = []
    for row in sorted(range(len(sizes)), key=sizes.__getitem__):
        if group and (len(group) + 1) * sizes[row] > most_tokens:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


@dataclass(frozen=True)
class PolicyPass:
    """Result of one forward pass of the policy.

    `logprobs` and `entropy` (None unless requested) are `(B, T)`, in nats, zero where masked. `states`
    is `(n, d)`: the hidden states that predict the n real completion tokens, row by row.
    """

    logprobs: Tensor
    entropy: Tensor | None
    states: Tensor


def policy_pass(
    model: nn.Module,
    batch: Batch,
    *,
    temperature: float,
    entropy: bool = False,
    entropy_gradient: bool = True,
) -> PolicyPass:
    """log π(token) at every completion position under softmax(logits / temperature).

    Args:
        model: the policy.
        batch: prompts and completions.
        temperature: above 0.
        entropy: also compute entropies.
        entropy_gradient: also compute the entropies' gradient, which costs one more product with the head.
    """
    states = _states(model, batch, _before_tokens(batch))
    logprobs, entropies = token_logprobs(
        VocabularyHead.of(_causal(model)),
        states,
        batch.completion_ids[batch.mask],
        temperature=temperature,
        entropy=entropy,
        entropy_gradient=entropy_gradient,
    )
    return PolicyPass(
        spread(batch.mask, logprobs),
        None if entropies is None else spread(batch.mask, entropies),
        states,
    )


def completion_logprobs(
    model: nn.Module, batch: Batch, *, temperature: float, entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """`policy_pass` without hidden states: log-probabilities `(B, T)`, and entropies if requested."""
    result = policy_pass(model, batch, temperature=temperature, entropy=entropy)
    return result.logprobs, result.entropy


def state_values(model: nn.Module, head: ScalarHead, batch: Batch) -> Tensor:
    """V(s_t), `(B, T)`: the head's output at the position before token t."""
    return spread(batch.mask, head(_states(model, batch, _before_tokens(batch))))


def scores(model: nn.Module, head: ScalarHead, batch: Batch) -> Tensor:
    """The head's output at each row's last real token, `(B,)`, which may belong to the prompt."""
    columns = torch.arange(batch.attention.shape[1], device=batch.attention.device)
    last = (batch.attention * columns).amax(-1, keepdim=True)
    values: Tensor = head(_states(model, batch, columns == last))
    return values


def spread(mask: Tensor, values: Tensor) -> Tensor:
    """Put n values at the True places of a mask `(B, T)`, row by row; zero elsewhere."""
    return torch.zeros(mask.shape, device=values.device).masked_scatter(mask, values)


def _before_tokens(batch: Batch) -> Tensor:
    """The positions before the real completion tokens, `(B, P + T)` bool."""
    before = torch.zeros_like(batch.attention)
    before[:, -batch.mask.shape[1] - 1 : -1] = batch.mask
    return before


def _states(model: nn.Module, batch: Batch, selected: Tensor) -> Tensor:
    """The trunk's last hidden states at selected real tokens `(B, P + T)`, as `(n, d)`, row by row."""
    causal = _causal(model)
    if kernels_enabled():
        share_rows = supports_shared_rows(causal)
        rows = pack(batch.input_ids, batch.attention, share_rows=share_rows)
    else:
        rows = padded(batch.input_ids, batch.attention)
    hidden: Tensor = causal.base_model(
        input_ids=rows.input_ids,
        attention_mask=rows.mask,
        position_ids=rows.positions,
        use_cache=False,
    ).last_hidden_state  # (R, L, d)
    return hidden.flatten(0, 1).index_select(0, rows.places[selected[batch.attention]])


def _causal(model: nn.Module) -> Any:
    return model.get_base_model() if isinstance(model, PeftModel) else model
