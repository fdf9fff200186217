"""Forward passes over prompt + completion: log-probabilities and scalars at completion tokens only."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from toolkit.kernels.chunked_logprobs import VocabularyHead, token_logprobs
from toolkit.kernels.packing import may_join, pack
from toolkit.models.heads import ScalarHead


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


def by_tokens(
    prompts: list[list[int]], completions: list[list[int]], most_tokens: int
) -> Iterator[list[int]]:
    """Row numbers in groups of at most `most_tokens`, padding counted, rows of similar length together.

    A row that is longer is a group of its own.
    """
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
    """What one pass of a policy's trunk gives.

    `logprobs` and `entropy` (None unless asked for) are `(B, T)`, in nats, zero where masked;
    `states` is `(n, d)`, the hidden states from which the n real tokens were chosen, row by row.
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
    through_entropy: bool = True,
) -> PolicyPass:
    """log π(token) at every completion position under softmax(logits / temperature).

    Logits are computed at real completion tokens only, a slice at a time; with `through_entropy` the
    entropy has a gradient.
    """
    states = _states(model, batch, _before_tokens(batch))
    taken, uncertain = token_logprobs(
        VocabularyHead.of(_causal(model)),
        states,
        batch.completion_ids[batch.mask],
        temperature=temperature,
        entropy=entropy,
        through_entropy=through_entropy,
    )
    spread_out = None if uncertain is None else spread(batch.mask, uncertain)
    return PolicyPass(spread(batch.mask, taken), spread_out, states)


def completion_logprobs(
    model: nn.Module, batch: Batch, *, temperature: float, entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """`policy_pass` without the hidden states: logprobs `(B, T)`, and entropies if asked for."""
    found = policy_pass(model, batch, temperature=temperature, entropy=entropy)
    return found.logprobs, found.entropy


def state_values(model: nn.Module, head: ScalarHead, batch: Batch) -> Tensor:
    """V(s_t), `(B, T)`: the head read one token earlier, before token t is chosen."""
    return spread(batch.mask, head(_states(model, batch, _before_tokens(batch))))


def scores(model: nn.Module, head: ScalarHead, batch: Batch) -> Tensor:
    """The head at each row's last real token, `(B,)`; without completion that is the prompt's."""
    places = torch.arange(batch.attention.shape[1], device=batch.attention.device)
    last = (batch.attention * places).amax(-1, keepdim=True)
    found: Tensor = head(_states(model, batch, places == last))
    return found


def spread(mask: Tensor, found: Tensor) -> Tensor:
    """n numbers at the True places of a mask `(B, T)`, row by row; zero elsewhere."""
    return torch.zeros(mask.shape, device=found.device).masked_scatter(mask, found)


def _before_tokens(batch: Batch) -> Tensor:
    """The places whose states choose the real completion tokens: one earlier, `(B, P + T)` bool."""
    wanted = torch.zeros_like(batch.attention)
    wanted[:, -batch.mask.shape[1] - 1 : -1] = batch.mask
    return wanted


def _states(model: nn.Module, batch: Batch, wanted: Tensor) -> Tensor:
    """The trunk's last hidden states at some real tokens, `(n, d)`, row by row."""
    causal = _causal(model)
    packed = pack(batch.input_ids, batch.attention, join=may_join(causal))
    hidden: Tensor = causal.base_model(
        input_ids=packed.input_ids,
        attention_mask=packed.mask,
        position_ids=packed.positions,
        use_cache=False,
    ).last_hidden_state  # (R, L, d)
    return hidden.flatten(0, 1).index_select(0, packed.places[wanted[batch.attention]])


def _causal(model: nn.Module) -> Any:
    return model.get_base_model() if isinstance(model, PeftModel) else model
