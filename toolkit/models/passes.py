"""Forward passes over prompt + completion: log-probabilities and scalars at completion tokens only."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from toolkit.models.heads import ScalarHead
from toolkit.models.token_logprobs import VocabularyHead, token_logprobs


@dataclass(frozen=True)
class Batch:
    """Prompts padded on the left, completions on the right, joined along time.

    `input_ids` and `attention` are `(B, P + T)`; `mask` is `(B, T)` bool, True on real completion
    tokens. Padding is known by lengths and never by `ids != pad`, so pad may equal EOS.
    """

    input_ids: Tensor
    attention: Tensor
    mask: Tensor

    @property
    def completion_ids(self) -> Tensor:
        """`(B, T)`"""
        return self.input_ids[:, -self.mask.shape[1] :]

    @property
    def positions(self) -> Tensor:
        """`(B, P + T)`, counted from the first real token, so that left pads change nothing."""
        return (self.attention.long().cumsum(-1) - 1).clamp_min(0)


def collate(
    prompts: list[list[int]], completions: list[list[int]], pad_id: int, device: Any = None
) -> Batch:
    """Join token ids of prompts and completions into a `Batch`. Prompts must not be empty."""
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
    """Row numbers in groups of at most `size`, rows of similar length together."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]) + len(completions[i]))
    for start in range(0, len(order), size):
        yield order[start : start + size]


@dataclass(frozen=True)
class PolicyPass:
    """What one pass of a policy's trunk gives: all `(B, T)`, zero where masked.

    `logprobs` and `entropy` (None unless asked for) in nats; `hidden` is `(B, T, d)`, the states
    from which each token was chosen.
    """

    logprobs: Tensor
    entropy: Tensor | None
    hidden: Tensor


def policy_pass(
    model: nn.Module, batch: Batch, *, temperature: float, entropy: bool = False
) -> PolicyPass:
    """log π(token) at every completion position under softmax(logits / temperature).

    Logits are computed at real completion tokens only, a slice at a time.
    """
    hidden = _hidden(model, batch)[:, -batch.mask.shape[1] - 1 : -1]  # (B, T, d)
    taken, uncertain = token_logprobs(
        VocabularyHead.of(_causal(model)),
        hidden[batch.mask],
        batch.completion_ids[batch.mask],
        temperature=temperature,
        entropy=entropy,
    )

    def spread(found: Tensor) -> Tensor:
        empty = torch.zeros(batch.mask.shape, device=found.device)
        return empty.masked_scatter(batch.mask, found)

    return PolicyPass(spread(taken), None if uncertain is None else spread(uncertain), hidden)


def completion_logprobs(
    model: nn.Module, batch: Batch, *, temperature: float, entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """`policy_pass` without the hidden states: logprobs `(B, T)`, and entropies if asked for."""
    found = policy_pass(model, batch, temperature=temperature, entropy=entropy)
    return found.logprobs, found.entropy


def state_values(model: nn.Module, head: ScalarHead, batch: Batch) -> Tensor:
    """V(s_t), `(B, T)`: the head read one token earlier, before token t is chosen."""
    hidden = _hidden(model, batch)[:, -batch.mask.shape[1] - 1 : -1]
    values: Tensor = head(hidden)
    return values.masked_fill(~batch.mask, 0.0)


def scores(model: nn.Module, head: ScalarHead, batch: Batch) -> Tensor:
    """The head at each row's last real token, `(B,)`; without completion that is the prompt's."""
    hidden = _hidden(model, batch)
    last = (
        batch.attention.long() * torch.arange(batch.attention.shape[1], device=hidden.device)
    ).amax(-1)
    found: Tensor = head(hidden[torch.arange(len(last), device=hidden.device), last])
    return found


def _hidden(model: nn.Module, batch: Batch) -> Tensor:
    """The trunk's last hidden states, `(B, P + T, d)`."""
    hidden: Tensor = (
        _causal(model)
        .base_model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention.long(),
            position_ids=batch.positions,
            use_cache=False,
        )
        .last_hidden_state
    )
    return hidden


def _causal(model: nn.Module) -> Any:
    return model.get_base_model() if isinstance(model, PeftModel) else model
