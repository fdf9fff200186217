"""The sampling loop: prompts prefilled once each, rows that leave the batch as they end.

`generate` keeps every row until the longest is done, prefills a prompt as often as it is answered,
and copies the whole cache at every token. Completions of a policy differ much in length, so most of
its work would be on rows that have ended.
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

LEAVE_AT = 0.125  # rows leave when this share of the batch has ended: each leaving copies the cache
# tokens between two looks at which rows have ended, and whether states are finite: on a card a look
# waits until all that was asked of it is done
LOOK_EVERY, GPU_LOOK_EVERY = 1, 8
GROW_BY = 16  # tokens of room that a full cache is given


@dataclass(frozen=True)
class Decoded:
    """Completions of a batch; the tensors are `(B, T)`, padded on the right with zeros.

    `logprobs` are those that the tokens were drawn with, in nats, None where nothing was drawn;
    `values` are what a head said of the state each token was chosen in, None without a head.
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
) -> Decoded:
    """Completion ids for each prompt's ids, up to and with the first stop token.

    Draws from softmax(logits / temperature) with torch's global generator; 0 is greedy. No top-k
    and no top-p: what is sampled from must be what is scored. Equal prompts are read once.

    Args:
        value_head: of a value that lives on this model's trunk.

    Raises: DivergedError where the model's states are not finite.
    """
    causal: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    head, device = VocabularyHead.of(causal), next(model.parameters()).device
    distinct = list(dict.fromkeys(map(tuple, prompts)))
    number = {prompt: i for i, prompt in enumerate(distinct)}
    of_row = torch.tensor([number[tuple(p)] for p in prompts], device=device)
    cache = growing_cache(causal)
    ids, attention = (t.to(device) for t in pad_left([list(p) for p in distinct], pad_id))
    hidden = read(causal, ids, attention, cache)
    if len(distinct) < len(prompts):
        keep_rows(cache, of_row)
    hidden, attention = hidden[of_row], attention[of_row]
    shape, rows = (len(prompts), max_new_tokens), torch.arange(len(prompts), device=device)
    tokens = torch.full(shape, pad_id, device=device)
    logprobs, values = torch.zeros(shape, device=device), torch.zeros(shape, device=device)
    stops = torch.tensor(stop, device=device, dtype=torch.long)
    going = torch.ones(len(prompts), dtype=torch.bool, device=device)
    lengths = torch.zeros(len(prompts), dtype=torch.long, device=device)
    every = GPU_LOOK_EVERY if is_on_gpu(hidden) else LOOK_EVERY
    broken = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    for step in range(max_new_tokens):
        finite = torch.isfinite(hidden).all(-1)
        broken[rows] |= ~finite & going
        # on a card drawing from NaN would end the process
        hidden = hidden.masked_fill(~finite.unsqueeze(-1), 0)
        token, logprob = _choose(head, hidden, temperature)  # (B,)
        tokens[rows, step] = torch.where(going, token, pad_id)
        logprobs[rows, step] = torch.where(going, logprob, 0.0)
        if value_head is not None:
            values[rows, step] = torch.where(going, value_head(hidden), 0.0)
        lengths[rows] += going
        going = going & ~torch.isin(token, stops)
        last = step + 1 == max_new_tokens
        if last or (step + 1) % every == 0:
            _require_finite(broken, len(going))
            left = int(going.sum())
            if left == 0 or last:
                break
            if left <= (1 - LEAVE_AT) * len(going):
                stay = going.nonzero().flatten()
                keep_rows(cache, stay)
                rows, token, attention, going = (
                    rows[stay],
                    token[stay],
                    attention[stay],
                    going[stay],
                )
        attention = torch.cat([attention, attention.new_ones(len(rows), 1)], dim=1)
        hidden = read(causal, token.unsqueeze(1), attention, cache)
    width = max(1, int(lengths.max()))
    found = [row[:n] for row, n in zip(tokens.tolist(), lengths.tolist(), strict=True)]
    return Decoded(
        found,
        logprobs[:, :width] if temperature > 0 else None,
        values[:, :width] if value_head is not None else None,
    )


def read(causal: Any, ids: Tensor, attention: Tensor, cache: DynamicCache) -> Tensor:
    """Feed tokens; the trunk's last hidden state, `(B, d)`."""
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


def _require_finite(broken: Tensor, asked: int) -> None:
    bad = int(broken.sum())
    if bad:
        raise DivergedError(
            f"sampling: the hidden states of {bad} of {asked} answers are not finite, so no "
            "token can be drawn. Training has diverged: start again with a lower learning_rate, or "
            "continue from an earlier checkpoint with a lower max_grad_norm"
        )


def _choose(head: VocabularyHead, hidden: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """A token per row and its log-probability at that temperature, 0 where it is greedy."""
    if temperature == 0:
        token = head.logits(hidden).argmax(-1)
        return token, torch.zeros_like(token, dtype=torch.float32)
    logprobs = head.logits(hidden, temperature=temperature).log_softmax(-1)
    token = draw(logprobs.exp())
    return token, logprobs.gather(-1, token.unsqueeze(-1)).squeeze(-1)


def draw(probs: Tensor) -> Tensor:
    """A token of each row `(B, V)` by its probability, `(B,)`.

    `multinomial` draws a number for every word of the vocabulary, which on a CPU was a quarter of
    sampling; one per row is enough, looked up in the row's cumulated probabilities.
    """
    if probs.device.type != "cpu":
        return torch.multinomial(probs, 1).squeeze(-1)
    at = torch.rand(len(probs), 1, dtype=torch.float64)
    size = max(1, SLICE_BYTES // (8 * probs.shape[1]))
    found = []
    for some, where in zip(torch.split(probs, size), torch.split(at, size), strict=True):
        summed = some.cumsum(-1, dtype=torch.float64)
        # the first whose sum is above: a word of probability 0 never is
        found.append(torch.searchsorted(summed, where * summed[:, -1:], right=True))
    return torch.cat(found).squeeze(-1)


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """A cache layer with room to spare: a token is written in place, not appended to a copy."""

    keys: Tensor
    values: Tensor
    _room: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """As the parent's: store new states `(B, heads, n, d)`, return all."""
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
        """Keep some rows, in this order; a row may be kept twice."""
        if self._room is None:
            super().batch_select_indices(indices)
            return
        end = self.get_seq_length()
        self._room = (self._room[0][indices], self._room[1][indices])
        self.keys, self.values = (room[:, :, :end] for room in self._room)

    def join(self, other: "GrowingLayer", length: int) -> None:
        """Put another's rows after these; both are padded on the left to `length` tokens."""
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
    """`(B, heads, n, d)` to `(B, heads, length, d)`, zeros before."""
    return nn.functional.pad(states, (0, 0, length - states.shape[-2], 0))


def growing_cache(causal: Any) -> DynamicCache:
    """A cache whose layers have room to spare, where they keep the whole sequence."""
    cache = DynamicCache(config=causal.config.get_text_config())
    cache.layers = [GrowingLayer() if type(c) is DynamicLayer else c for c in cache.layers]
    return cache


def keep_rows(cache: DynamicCache, rows: Tensor) -> None:
    """Keep some rows of a cache, in this order; a row may be kept twice.

    The library selects rows of keys and values alone: the states of linear attention it can reorder,
    which comes to the same.
    """
    for layer in cache.layers:
        if isinstance(layer, LinearAttentionLayer):
            layer.reorder_cache(rows)
        else:
            layer.batch_select_indices(rows)


def pad_left(prompts: list[list[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Ids and attention, `(B, P)`."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (width - len(p)) + p for p in prompts])
    attention = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    return ids, attention
