"""A batch of rows with different adapters; rows join and leave between two tokens.

If eight checkpoints answer a prompt, their rows are one batch: the base's weights are read once per token
for all eight. A row's tokens depend only on its own prompt, adapter, settings and seed.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import DynamicCache

from toolkit.kernels.chunked_logprobs import VocabularyHead
from toolkit.models.roles import Roles
from toolkit.sampling.decoding import (
    GrowingLayer,
    draw,
    growing_cache,
    keep_rows,
    pad_left,
    read,
)
from toolkit.sampling.settings import Drawing


@dataclass(eq=False)
class Row:
    """One answer; each step appends a token to `ids`."""

    prompt: list[int]
    adapter: str | None  # a role of the batch's `Roles`; None is the base
    drawing: Drawing
    ids: list[int] = field(default_factory=list)
    ended: bool = False  # by a stop token
    diverged: bool = False  # logits that are not finite, from which no token can be chosen
    generator: torch.Generator | None = None

    @property
    def done(self) -> bool:
        """Whether the answer has ended, cannot continue, or reached its length limit."""
        return self.ended or self.diverged or len(self.ids) >= self.drawing.max_new_tokens


class RowBatch:
    """Decodes rows; use it in one thread only, because it switches the shared base's adapters.

    The adapters stay active between calls; `pause` restores those that were active before.
    """

    def __init__(self, roles: Roles, *, stop: Sequence[int], pad_id: int) -> None:
        self.rows: list[Row] = []
        self._roles, self._stop, self._pad = roles, frozenset(stop), pad_id
        self._active = ExitStack()  # the adapters, while they are active
        self._head: VocabularyHead | None = None
        self._cache: DynamicCache | None = None
        self._attention = self._hidden = torch.empty(0)  # (B, L) and (B, d)

    @property
    def joinable(self) -> bool:
        """Whether other rows can join the rows in the batch.

        A cache with a sliding window or with virtual tokens at its start cannot be padded.
        """
        if self._cache is None:
            return True
        plain = all(type(layer) is GrowingLayer for layer in self._cache.layers)
        return plain and not any(row.adapter in self._roles.hooked for row in self.rows)

    @torch.no_grad()
    def join(self, rows: Sequence[Row]) -> None:
        """Add rows: prefill their prompts and the tokens that they already have."""
        assert self.joinable
        self.pause()
        base = self._roles.base
        device = base.get_input_embeddings().weight.device
        for row in rows:
            if row.generator is None:
                row.generator = torch.Generator(device).manual_seed(row.drawing.seed)
        cache = growing_cache(base)
        contexts = [(row.adapter, tuple(row.prompt + row.ids)) for row in rows]
        distinct = list(dict.fromkeys(contexts))  # equal contexts are prefilled once
        ids, attention = (
            t.to(device) for t in pad_left([list(ids) for _, ids in distinct], self._pad)
        )
        with self._roles.mixed([adapter for adapter, _ in distinct]):
            hidden = read(base, ids, attention, cache)
        if len(distinct) < len(rows):
            number = {context: i for i, context in enumerate(distinct)}
            index = torch.tensor([number[context] for context in contexts], device=device)
            keep_rows(cache, index)
            hidden, attention = hidden[index], attention[index]
        if self._cache is None:
            self._cache, self._attention, self._hidden = cache, attention, hidden
        else:
            unused = int(self._attention.any(0).int().argmax())  # columns of rows that have left
            self._attention = self._attention[:, unused:]
            length = max(self._attention.shape[1], attention.shape[1])
            for layer, new_layer in zip(self._cache.layers, cache.layers, strict=True):
                layer.drop_first(unused)
                layer.join(new_layer, length)
            both = (_wider(self._attention, length), _wider(attention, length))
            self._attention, self._hidden = torch.cat(both), torch.cat([self._hidden, hidden])
        self.rows = [*self.rows, *rows]

    @torch.no_grad()
    def step(self) -> list[Row]:
        """Append a token to each row. A row without finite logits gets none, and ends.

        Returns: the rows that are done; they have left the batch.
        """
        self._resume()
        assert self._head is not None
        logits = self._head.logits(self._hidden)
        finite = logits.amax(-1).isfinite()  # NaN if any is NaN
        tokens = choose(logits.masked_fill(~finite.unsqueeze(-1), 0.0), self.rows).tolist()
        for row, token, is_finite in zip(self.rows, tokens, finite.tolist(), strict=True):
            if is_finite:
                row.ids.append(token)
                row.ended = token in self._stop
            else:
                row.diverged = True
        done = [row for row in self.rows if row.done]
        remaining = [t for row, t in zip(self.rows, tokens, strict=True) if not row.done]
        self.leave(done)
        if self.rows:
            self._resume()
            token_ids = torch.tensor(remaining, device=self._hidden.device).unsqueeze(1)
            new_column = self._attention.new_ones(len(self.rows), 1)
            self._attention = torch.cat([self._attention, new_column], dim=1)
            assert self._cache is not None
            self._hidden = read(self._roles.base, token_ids, self._attention, self._cache)
        return done

    def leave(self, rows: Sequence[Row]) -> None:
        """Remove rows, whether they are done or not."""
        kept = [i for i, row in enumerate(self.rows) if row not in rows]
        if len(kept) == len(self.rows):
            return
        self.pause()
        self.rows = [self.rows[i] for i in kept]
        if not kept:
            self._cache, self._attention, self._hidden = None, torch.empty(0), torch.empty(0)
            return
        index = torch.tensor(kept, device=self._hidden.device)
        assert self._cache is not None
        keep_rows(self._cache, index)
        self._attention, self._hidden = self._attention[index], self._hidden[index]

    def pause(self) -> None:
        """Restore the adapters that were active before; keep the rows."""
        self._active.close()
        self._head = None

    def _resume(self) -> None:
        if self._head is None:
            self._active.enter_context(self._roles.mixed([r.adapter for r in self.rows]))
            self._head = VocabularyHead.of(self._roles.base)


def _wider(attention: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(attention, (length - attention.shape[1], 0))


def choose(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    """A token id `(B,)` for each row of float32 logits `(B, V)`: greedily or by the row's drawing."""
    greedy = logits.argmax(-1)
    sampled = [i for i, row in enumerate(rows) if row.drawing.temperature > 0]
    if not sampled:
        return greedy
    drawings = [rows[i].drawing for i in sampled]
    temperatures = torch.tensor([[d.temperature] for d in drawings], device=logits.device)
    logits = logits[sampled] / temperatures
    for row_logits, drawing in zip(logits, drawings, strict=True):
        if 0 < drawing.top_k < logits.shape[-1]:
            least = row_logits.topk(drawing.top_k).values[-1]
            row_logits.masked_fill_(row_logits < least, -torch.inf)
    probs = logits.softmax(-1)
    for row_probs, drawing in zip(probs, drawings, strict=True):
        if drawing.top_p < 1:
            row_probs.copy_(_nucleus(row_probs, drawing.top_p))
    numbers = [
        torch.rand(1, generator=rows[i].generator, dtype=torch.float64, device=logits.device)
        for i in sampled
    ]
    greedy[sampled] = draw(probs, torch.stack(numbers))
    return greedy


def _nucleus(probs: Tensor, top_p: float) -> Tensor:
    """Set all probabilities to 0 except for the most likely tokens that together reach `top_p`.

    Source: Holtzman et al. 2020, arXiv:1904.09751.
    """
    ordered, order = probs.sort(descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered  # probability of all more likely tokens
    return probs.scatter(-1, order, ordered.masked_fill(before >= top_p, 0.0))
