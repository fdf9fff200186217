"""The sampling loop: prefills each distinct prompt once, and removes rows from the batch at their end.

transformers' `generate` keeps every row until the longest ends, prefills a prompt once per completion, and
copies the whole cache at every token. Completions of a policy differ much in length, so `generate` would
mostly work on rows that have ended.
"""

from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, LinearAttentionLayer

from toolkit.errors import DivergedError
from toolkit.kernels.chunked_logprobs import SLICE_BYTES, VocabularyHead, is_on_gpu
from toolkit.models.heads import ScalarHead

LEAVE_AT = 0.125  # ended rows leave when they are this share of the batch; leaving copies the cache
# Tokens between two checks for ended rows and finite states. On a GPU a check waits for all queued work.
CHECK_EVERY, GPU_CHECK_EVERY = 1, 8
GROW_BY = 16  # tokens by which a full cache grows


@dataclass(frozen=True)
class Decoded:
    """Completions of a batch; tensors are `(B, T)`, padded on the right with zeros.

    `logprobs` are the log-probabilities of the sampled tokens, in nats; None for greedy decoding.
    `values` are the value head's outputs for the state before each token; None without a head.
    """

    completions: list[list[int]]
    logprobs: Tensor | None = None
    values: Tensor | None = None


@torch.no_grad()
def decode(
    model: nn.Module,
    prompts: list[list[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    stop: list[int],
    pad_id: int,
    value_head: ScalarHead | None = None,
    numbers: Tensor | None = None,
) -> Decoded:
    """Sample a completion for each prompt's ids, up to and including the first stop token.

    Tokens are drawn from softmax(logits / temperature); temperature 0 is
    greedy. There is no top-k or top-p, because PPO computes log-probabilities under the full distribution.

    Args:
        model: a causal model, or the PeftModel around it.
        prompts: token ids; equal prompts are prefilled once.
        max_new_tokens: length limit of a completion.
        temperature: 0 or more.
        stop: ids that end a completion.
        pad_id: the padding on the left of shorter prompts.
        value_head: a value head on this model's trunk.
        numbers: random numbers below 1 that choose the tokens, `(B, max_new_tokens)`, float64; default:
            from torch's global generator.

    Raises: DivergedError if hidden states are not finite.
    """
    causal: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    head, device = VocabularyHead.of(causal), next(model.parameters()).device
    hidden, attention, cache = _prefill(causal, prompts, pad_id, device)
    shape, rows = (len(prompts), max_new_tokens), torch.arange(len(prompts), device=device)
    tokens = torch.full(shape, pad_id, device=device)
    logprobs, values = torch.zeros(shape, device=device), torch.zeros(shape, device=device)
    stops = torch.tensor(stop, device=device, dtype=torch.long)
    active = torch.ones(len(prompts), dtype=torch.bool, device=device)
    lengths = torch.zeros(len(prompts), dtype=torch.long, device=device)
    numbers = None if numbers is None else numbers.to(device)
    check_every = GPU_CHECK_EVERY if is_on_gpu(hidden) else CHECK_EVERY
    not_finite = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    for step in range(max_new_tokens):
        finite = torch.isfinite(hidden).all(-1)
        not_finite[rows] |= ~finite & active
        # sampling from NaN on a GPU ends the process
        hidden = hidden.masked_fill(~finite.unsqueeze(-1), 0)
        number = None if numbers is None else numbers[rows, step].unsqueeze(1)
        token, logprob = next_token(head, hidden, temperature, number)  # (B,)
        tokens[rows, step] = torch.where(active, token, pad_id)
        logprobs[rows, step] = torch.where(active, logprob, 0.0)
        if value_head is not None:
            values[rows, step] = torch.where(active, value_head(hidden), 0.0)
        lengths[rows] += active
        active = active & ~torch.isin(token, stops)
        last = step + 1 == max_new_tokens
        if last or (step + 1) % check_every == 0:
            _require_finite(not_finite, len(active))
            remaining = int(active.sum())
            if remaining == 0 or last:
                break
            if remaining <= (1 - LEAVE_AT) * len(active):
                kept = active.nonzero().flatten()
                keep_rows(cache, kept)
                rows, token, attention, active = (t[kept] for t in (rows, token, attention, active))
        attention = torch.cat([attention, attention.new_ones(len(rows), 1)], dim=1)
        hidden = read(causal, token.unsqueeze(1), attention, cache)
    width = max(1, int(lengths.max()))
    return Decoded(
        [row[:n] for row, n in zip(tokens.tolist(), lengths.tolist(), strict=True)],
        logprobs[:, :width] if temperature > 0 else None,
        values[:, :width] if value_head is not None else None,
    )


def _prefill(
    causal: Any, prompts: list[list[int]], pad_id: int, device: torch.device
) -> tuple[Tensor, Tensor, DynamicCache]:
    """Last hidden states `(B, d)`, attention `(B, P)` and cache of all prompts."""
    distinct = list(dict.fromkeys(map(tuple, prompts)))
    number = {prompt: i for i, prompt in enumerate(distinct)}
    of_row = torch.tensor([number[tuple(p)] for p in prompts], device=device)
    cache = growing_cache(causal)
    ids, attention = (t.to(device) for t in pad_left([list(p) for p in distinct], pad_id))
    hidden = read(causal, ids, attention, cache)
    if len(distinct) < len(prompts):
        keep_rows(cache, of_row)
    return hidden[of_row], attention[of_row], cache


def read(causal: Any, ids: Tensor, attention: Tensor, cache: DynamicCache) -> Tensor:
    """Run the trunk on new tokens `(B, n)` and extend the cache; the last hidden states, `(B, d)`."""
    positions = (attention.cumsum(-1) - 1).clamp_min(0)[:, -ids.shape[1] :]
    out = causal.base_model(
        input_ids=ids,
        attention_mask=attention,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
    )
    last: Tensor = out.last_hidden_state[:, -1]
    return last


def _require_finite(not_finite: Tensor, batch: int) -> None:
    count = int(not_finite.sum())
    if count:
        raise DivergedError(
            f"sampling: the hidden states of {count} of {batch} answers are not finite, so no "
            "token can be sampled. Training has diverged: start again with a lower learning_rate, or "
            "continue from an earlier checkpoint with a lower max_grad_norm"
        )


def next_token(
    head: VocabularyHead, hidden: Tensor, temperature: float, numbers: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Choose a token per row; also return its log-probability, which is 0 for greedy decoding.

    Args:
        numbers: see `draw`.
    """
    if temperature == 0:
        token = head.logits(hidden).argmax(-1)
        return token, torch.zeros_like(token, dtype=torch.float32)
    logprobs = head.logits(hidden, temperature=temperature).log_softmax(-1)
    token = draw(logprobs.exp(), numbers)
    return token, logprobs.gather(-1, token.unsqueeze(-1)).squeeze(-1)


def draw(probs: Tensor, numbers: Tensor | None = None) -> Tensor:
    """A token `(B,)` for each row of probabilities `(B, V)`.

    `multinomial` draws a random number for every token of the vocabulary, which on a CPU takes a quarter of
    the sampling time. Here one number per row is looked up in the row's cumulative probabilities.

    Args:
        numbers: a random number below 1 for each row, `(B, 1)`, float64; default: from torch's generator.
    """
    if numbers is None and probs.device.type != "cpu":
        return torch.multinomial(probs, 1).squeeze(-1)
    if numbers is None:
        numbers = torch.rand(len(probs), 1, dtype=torch.float64)
    size = max(1, SLICE_BYTES // (8 * probs.shape[1]))
    tokens = []
    for part, number in zip(torch.split(probs, size), torch.split(numbers, size), strict=True):
        cumulative = part.cumsum(-1, dtype=torch.float64)
        # the first word whose sum is above the number, so never a word of probability 0
        tokens.append(torch.searchsorted(cumulative, number * cumulative[:, -1:], right=True))
    return torch.cat(tokens).squeeze(-1)


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """A cache layer with spare room, in which a token is written in place instead of into a copy."""

    keys: Tensor
    values: Tensor
    _room: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store new states `(B, heads, n, d)` and return all states."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if self._room is None or self._room[0].shape[-2] < end:
            self._room = (
                self._grown(self.keys, key_states),
                self._grown(self.values, value_states),
            )
        for room, new in zip(self._room, (key_states, value_states), strict=True):
            room[:, :, start:end] = new
        self.keys, self.values = (room[:, :, :end] for room in self._room)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the given rows, in this order; a row may be repeated."""
        if self._room is None:
            super().batch_select_indices(indices)
            return
        end = self.get_seq_length()
        self._room = (self._room[0][indices], self._room[1][indices])
        self.keys, self.values = (room[:, :, :end] for room in self._room)

    def drop_first(self, count: int) -> None:
        """Remove the first `count` tokens of all rows."""
        if self.is_initialized:
            self.keys, self.values = (s[:, :, count:] for s in (self.keys, self.values))
            self._room = None

    def join(self, other: "GrowingLayer", length: int) -> None:
        """Append the rows of another layer; both are padded on the left to `length` tokens."""
        if self.is_initialized:
            pairs = ((self.keys, other.keys), (self.values, other.values))
            self.keys, self.values = (
                torch.cat([_padded(states, length) for states in pair]) for pair in pairs
            )
            self._room = None

    @staticmethod
    def _grown(old: Tensor, new: Tensor) -> Tensor:
        start = old.shape[-2] if old.dim() == new.dim() else 0
        batch, heads, length, size = new.shape
        room = new.new_empty(batch, heads, start + length + GROW_BY, size)
        if start:
            room[:, :, :start] = old
        return room


def _padded(states: Tensor, length: int) -> Tensor:
    """States `(B, heads, n, d)` padded with zeros on the left to `(B, heads, length, d)`."""
    return nn.functional.pad(states, (0, 0, length - states.shape[-2], 0))


def growing_cache(causal: Any) -> DynamicCache:
    """An empty cache that uses `GrowingLayer` for the layers that keep the whole sequence."""
    cache = DynamicCache(config=causal.config.get_text_config())
    cache.layers = [GrowingLayer() if type(c) is DynamicLayer else c for c in cache.layers]
    return cache


def keep_rows(cache: DynamicCache, rows: Tensor) -> None:
    """Keep the given rows of a cache, in this order; a row may be repeated.

    transformers cannot select rows of linear attention states; reordering them has the same effect.
    """
    for layer in cache.layers:
        if isinstance(layer, LinearAttentionLayer):
            layer.reorder_cache(rows)
        else:
            layer.batch_select_indices(rows)


def pad_left(prompts: list[list[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Ids and attention, `(B, P)`, padded on the left."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (width - len(p)) + p for p in prompts])
    attention = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    return ids, attention
