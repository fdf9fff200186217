"""Beam search for one row, by transformers' own generate."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from toolkit.arena.answering.measuring import Measurer
from toolkit.models.generation import cut_at_stop
from toolkit.models.row_batch import Row


class _GiveUp(StoppingCriteria):  # type: ignore[misc]
    """Ends all rows once somebody says so."""

    def __init__(self, asked: Callable[[], bool]) -> None:
        self.asked = asked

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self.asked(), device=input_ids.device)


@torch.no_grad()
def search(roles: Any, row: Row, *, measurer: Measurer, give_up: Callable[[], bool]) -> None:
    """Fill in `row.ids` with the likeliest answer that its number of beams finds."""
    ids = torch.tensor([row.prompt], device=roles.base.device)
    with roles.using(row.adapter) as model:
        found = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            num_beams=row.drawing.beams,
            do_sample=False,
            temperature=None,
            top_k=None,
            top_p=None,
            max_new_tokens=row.drawing.max_new_tokens,
            eos_token_id=list(measurer.stop),
            pad_token_id=measurer.pad_id,
            use_cache=True,
            stopping_criteria=StoppingCriteriaList([_GiveUp(give_up)]),
        )
    row.ids = cut_at_stop(found[0, len(row.prompt) :].tolist(), measurer.stop)
    row.ended = bool(row.ids) and row.ids[-1] in measurer.stop
