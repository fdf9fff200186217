"""Beam search for one row with transformers' `generate`, paused after each token to let other rows run."""

import threading
from collections.abc import Callable
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from toolkit.app.answering.metrics import AnswerMetrics
from toolkit.sampling.generation import cut_at_stop
from toolkit.sampling.row_batch import Row


class _PauseAfterToken(StoppingCriteria):  # type: ignore[misc]
    """Pauses `generate` after each token; a callback decides whether to stop."""

    def __init__(self, pause: Callable[[], bool]) -> None:
        self.pause = pause

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self.pause(), device=input_ids.device)


class BeamSearch:
    """Fills `row.ids` with the most likely answer that `row.drawing.beams` beams find.

    `generate` cannot pause and return to its caller, so it runs in its own thread. The thread runs only
    while `step` waits for it, so only one thread uses the model at a time.
    """

    def __init__(
        self, roles: Any, row: Row, *, metrics: AnswerMetrics, should_stop: Callable[[], bool]
    ) -> None:
        """`should_stop` is called after each token; if true, the best beam so far is the answer."""
        self.row = row
        self._roles, self._metrics, self._should_stop = roles, metrics, should_stop
        self._resume, self._paused = threading.Semaphore(0), threading.Semaphore(0)
        self._thread: threading.Thread | None = None
        self._abandoned = self._over = False
        self._error: Exception | None = None

    def step(self) -> bool:
        """Extend every beam by one token.

        Returns: whether the search is over. Raises: the error that `generate` raised.
        """
        with self._roles.using(self.row.adapter) as model:
            if self._thread is None:
                self._thread = threading.Thread(target=self._search, args=(model,), daemon=True)
                self._thread.start()
            else:
                self._resume.release()
            self._paused.acquire()
        if self._error is not None:
            raise self._error
        return self._over

    def abandon(self) -> None:
        """End the thread without changing the row."""
        if self._thread is not None and not self._over:
            self._abandoned = True
            self._resume.release()
            self._thread.join()

    def _pause(self) -> bool:
        self._paused.release()
        self._resume.acquire()
        return self._abandoned or self._should_stop()

    def _search(self, model: Any) -> None:
        stop_ids = self._metrics.stop
        try:
            ids = self._generate(model)
            if not self._abandoned:
                self.row.ids = cut_at_stop(ids, stop_ids)
                self.row.ended = bool(self.row.ids) and self.row.ids[-1] in stop_ids
        except Exception as error:  # raised again by `step`, in the engine's thread
            self._error = error
        finally:
            self._over = True
            self._paused.release()

    @torch.no_grad()
    def _generate(self, model: Any) -> list[int]:
        prompt_ids = torch.tensor([self.row.prompt], device=self._roles.base.device)
        output = model.generate(
            input_ids=prompt_ids,
            attention_mask=torch.ones_like(prompt_ids),
            num_beams=self.row.drawing.beams,
            do_sample=False,
            temperature=None,
            top_k=None,
            top_p=None,
            max_new_tokens=self.row.drawing.max_new_tokens,
            eos_token_id=list(self._metrics.stop),
            pad_token_id=self._metrics.pad_id,
            use_cache=True,
            stopping_criteria=StoppingCriteriaList([_PauseAfterToken(self._pause)]),
        )
        return list(output[0, len(self.row.prompt) :].tolist())
