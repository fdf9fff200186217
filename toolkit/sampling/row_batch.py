"""Rows of several adapters decoded together, which join and leave between tokens.

Eight checkpoints that answer one prompt are one batch: the base's weights are read once per token
for all of them. A row's tokens depend on nothing but its own prompt, adapter, drawing and seed.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import DynamicCache

from toolkit.kernels.chunked_logprobs import VocabularyHead
from toolkit.models.roles import Roles
from toolkit.sampling.choosing import choose
from toolkit.sampling.decoding import GrowingLayer, growing_cache, keep_rows, pad_left, read
from toolkit.sampling.settings import Drawing


@dataclass(eq=False)
class Row:
    """One answer in the making: `ids` grows by a token at each step."""

    prompt: list[int]
    adapter: str | None  # a role of the batch's `Roles`; None is the base
    drawing: Drawing
    ids: list[int] = field(default_factory=list)
    ended: bool = False  # by a stop token
    generator: torch.Generator | None = None

    @property
    def done(self) -> bool:
        """Whether no token follows."""
        return self.ended or len(self.ids) >= self.drawing.max_new_tokens


class RowBatch:
    """Decodes rows. One thread only: adapters are switched in the one base.

    Between `join` and `step` the adapters stay switched; `pause` gives the base back.
    """

    def __init__(self, roles: Roles, *, stop: Sequence[int], pad_id: int) -> None:
        self.rows: list[Row] = []
        self._roles, self._stop, self._pad = roles, frozenset(stop), pad_id
        self._open = ExitStack()
        self._head: VocabularyHead | None = None
        self._cache: DynamicCache | None = None
        self._attention = self._hidden = torch.empty(0)  # (B, L) and (B, d)

    @property
    def joinable(self) -> bool:
        """Whether rows may join those that are already there.

        A cache that keeps only a window, or that begins with virtual tokens, cannot be padded.
        """
        if self._cache is None:
            return True
        plain = all(type(layer) is GrowingLayer for layer in self._cache.layers)
        return plain and not any(row.adapter in self._roles.inserted for row in self.rows)

    @torch.no_grad()
    def join(self, rows: Sequence[Row]) -> None:
        """Read new rows' prompts, and what they have said already."""
        assert self.joinable
        self.pause()
        base = self._roles.base
        device = base.get_input_embeddings().weight.device
        for row in rows:
            if row.generator is None:
                row.generator = torch.Generator(device).manual_seed(row.drawing.seed)
        cache = growing_cache(base)
        ids, attention = (
            t.to(device) for t in pad_left([r.prompt + r.ids for r in rows], self._pad)
        )
        with self._roles.mixed([r.adapter for r in rows]):
            hidden = read(base, ids, attention, cache)
        if self._cache is None:
            self._cache, self._attention, self._hidden = cache, attention, hidden
        else:
            length = max(self._attention.shape[1], attention.shape[1])
            for ours, theirs in zip(self._cache.layers, cache.layers, strict=True):
                ours.join(theirs, length)
            both = (_wider(self._attention, length), _wider(attention, length))
            self._attention, self._hidden = torch.cat(both), torch.cat([self._hidden, hidden])
        self.rows = [*self.rows, *rows]

    @torch.no_grad()
    def step(self) -> list[Row]:
        """Give each row its next token.

        Returns: the rows that are done and have left.
        """
        self._resume()
        assert self._head is not None
        tokens = []
        for row, logits in zip(self.rows, self._head.logits(self._hidden), strict=True):
            assert row.generator is not None
            token = choose(logits, row.drawing, row.generator)
            row.ids.append(token)
            row.ended = token in self._stop
            tokens.append(token)
        done = [row for row in self.rows if row.done]
        going = [t for row, t in zip(self.rows, tokens, strict=True) if not row.done]
        self.leave(done)
        if self.rows:
            self._resume()
            token_ids = torch.tensor(going, device=self._hidden.device).unsqueeze(1)
            seen = self._attention.new_ones(len(self.rows), 1)
            self._attention = torch.cat([self._attention, seen], dim=1)
            assert self._cache is not None
            self._hidden = read(self._roles.base, token_ids, self._attention, self._cache)
        return done

    def leave(self, rows: Sequence[Row]) -> None:
        """Take rows out, done or not."""
        stay = [i for i, row in enumerate(self.rows) if row not in rows]
        if len(stay) == len(self.rows):
            return
        self.pause()
        self.rows = [self.rows[i] for i in stay]
        if not stay:
            self._cache, self._attention, self._hidden = None, torch.empty(0), torch.empty(0)
            return
        kept = torch.tensor(stay, device=self._hidden.device)
        assert self._cache is not None
        keep_rows(self._cache, kept)
        self._attention, self._hidden = self._attention[kept], self._hidden[kept]

    def pause(self) -> None:
        """Give the base back, with whatever was active before; the rows stay."""
        self._open.close()
        self._head = None

    def _resume(self) -> None:
        if self._head is None:
            self._open.enter_context(self._roles.mixed([r.adapter for r in self.rows]))
            self._head = VocabularyHead.of(self._roles.base)


def _wider(attention: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(attention, (length - attention.shape[1], 0))
