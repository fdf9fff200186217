"""Beam search for one row, by transformers' own generate, a token at a time between other rows' tokens."""

import threading
from collections.abc import Callable
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from toolkit.app.answering.measuring import Measurer
from toolkit.sampling.generation import cut_at_stop
from toolkit.sampling.row_batch import Row


class _Turns(StoppingCriteria):  # type: ignore[misc]
    """Holds a search up after each token until it is told to go on, or ends it."""

    def __init__(self, take_turn: Callable[[], bool]) -> None:
        self.take_turn = take_turn

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self.take_turn(), device=input_ids.device)


class Search:
    """Fills in `row.ids` with the likeliest answer that the row's number of beams finds.

    `generate` cannot be left and entered again, so it has a thread of its own, which runs only while
    `step` waits for it: the model still belongs to one thread at a time.
    """

    def __init__(
        self, roles: Any, row: Row, *, measurer: Measurer, give_up: Callable[[], bool]
    ) -> None:
        """`give_up` is asked before each token; what was found until then is the answer."""
        self.row = row
        self._roles, self._measurer, self._give_up = roles, measurer, give_up
        self._go, self._came_back = threading.Semaphore(0), threading.Semaphore(0)
        self._thread: threading.Thread | None = None
        self._abandoned = self._over = False
        self._error: Exception | None = None

    def step(self) -> bool:
        """One token more of every beam.

        Returns: whether the search is over. Raises: what `generate` raised.
        """
        with self._roles.using(self.row.adapter) as model:
            if self._thread is None:
                self._thread = threading.Thread(target=self._search, args=(model,), daemon=True)
                self._thread.start()
            else:
                self._go.release()
            self._came_back.acquire()
        if self._error is not None:
            raise self._error
        return self._over

    def abandon(self) -> None:
        """End the thread; the row stays as it is."""
        if self._thread is not None and not self._over:
            self._abandoned = True
            self._go.release()
            self._thread.join()

    def _take_turn(self) -> bool:
        self._came_back.release()
        self._go.acquire()
        return self._abandoned or self._give_up()

    def _search(self, model: Any) -> None:
        try:
            found = self._generate(model)
            if not self._abandoned:
                self.row.ids = cut_at_stop(found, self._measurer.stop)
                self.row.ended = bool(self.row.ids) and self.row.ids[-1] in self._measurer.stop
        except Exception as error:  # told by `step`, in the thread that asked
            self._error = error
        finally:
            self._over = True
            self._came_back.release()

    @torch.no_grad()
    def _generate(self, model: Any) -> list[int]:
        ids = torch.tensor([self.row.prompt], device=self._roles.base.device)
        found = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            num_beams=self.row.drawing.beams,
            do_sample=False,
            temperature=None,
            top_k=None,
            top_p=None,
            max_new_tokens=self.row.drawing.max_new_tokens,
            eos_token_id=list(self._measurer.stop),
            pad_token_id=self._measurer.pad_id,
            use_cache=True,
            stopping_criteria=StoppingCriteriaList([_Turns(self._take_turn)]),
        )
        return list(found[0, len(self.row.prompt) :].tolist())
