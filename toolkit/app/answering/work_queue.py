"""Queued requests, requests that are being answered, and calls that run between two tokens."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from toolkit.app.answering.request import Answer, Request
from toolkit.app.answering.tokens import LockedTokenizer
from toolkit.app.catalog import Catalog, Entry
from toolkit.errors import BusyError
from toolkit.sampling.row_batch import Row

MAX_WAITING = 32  # requests, and as many calls
REFRESH_S = 0.05  # between two updates of a growing answer
HEARTBEAT_S = 0.25  # at most this long until a closed page is detected

T = TypeVar("T")


@dataclass(eq=False)
class Column:
    """One checkpoint's answer in progress. Only the engine's thread writes it; other threads read it."""

    entry: Entry
    prompt: list[int]
    row: Row | None = None
    adapter: str | None = None  # sha256 of the loaded weights file
    started: float = 0.0  # time.monotonic() when the prompt is read
    finished: float = 0.0
    answer: Answer | None = None  # the complete answer
    stopped: str = ""  # why it ended early

    def finished_answer(self, text: str) -> Answer:
        """The complete answer, still without score and KL."""
        row = self.row
        assert row is not None
        seconds = self.finished - self.started
        answer = Answer(
            self.entry.id,
            self.entry.name,
            text,
            len(row.ids),
            row.ended,
            ids=tuple(row.ids),
            adapter=self.adapter,
            speed=len(row.ids) / seconds if row.ids and seconds > 0 else None,
        )
        return replace(answer, notes=(self.stopped,)) if self.stopped else answer


@dataclass(eq=False)
class Job:
    """A request that is queued or being answered: one column for each checkpoint."""

    request: Request
    catalog: Catalog
    columns: list[Column]
    deadline: float = 0.0  # time.monotonic(), set when it begins
    cancelled: bool = False
    changed: threading.Condition = field(default_factory=threading.Condition)

    @property
    def done(self) -> bool:
        """Whether every column has its answer."""
        return all(column.answer is not None for column in self.columns)

    def notify(self) -> None:
        """Wake the threads that wait for a change."""
        with self.changed:
            self.changed.notify_all()


class Comparison:
    """The growing answers to a request.

    Each item holds the answers of all columns in the requested order, complete or partial. In the
    last item all are complete, unless the comparison was closed.
    """

    def __init__(self, job: Job, tokens: LockedTokenizer, wake: Callable[[], None]) -> None:
        self._job, self._tokens, self._wake = job, tokens, wake
        self.request, self.catalog = job.request, job.catalog

    def __iter__(self) -> Iterator[tuple[Answer, ...]]:
        """Yield the answers at each change, and at least every `HEARTBEAT_S` seconds."""
        try:
            while True:
                done = self._job.done
                yield self.now()
                if done or self._job.cancelled:
                    return
                time.sleep(REFRESH_S)
                with self._job.changed:
                    self._job.changed.wait(HEARTBEAT_S)
        finally:
            self.close()

    def now(self) -> tuple[Answer, ...]:
        """The answers so far."""
        return tuple(self._answer(column) for column in self._job.columns)

    def _answer(self, column: Column) -> Answer:
        if column.answer is not None:
            return column.answer
        ids = [] if column.row is None else list(column.row.ids)
        entry = column.entry
        text = self._tokens.text(ids, partial=True) if ids else ""
        return Answer(entry.id, entry.name, text, len(ids), done=False)

    def stop(self, checkpoint: str | None = None) -> None:
        """Stop one column, or all columns. The text so far is kept and scored."""
        for column in self._job.columns:
            if checkpoint in (None, column.entry.id) and column.answer is None:
                column.stopped = "stopped"
        self._wake()

    def close(self) -> None:
        """Cancel the answers that are not complete."""
        if not self._job.done:
            self._job.cancelled = True
            self._wake()


class AnswersInOrder(Iterator[Answer]):
    """Yields complete answers one by one. `close` cancels the others, even before the first `next`."""

    def __init__(self, comparison: Comparison) -> None:
        self._comparison = comparison
        self._answers = self.beats()

    def __next__(self) -> Answer:
        return next(answer for answer in self._answers if answer is not None)

    def beats(self) -> Iterator[Answer | None]:
        """Yield the answers and, between them, None several times a second.

        After a page was closed, its event handler can only end when it yields.
        """
        count = 0
        for answers in self._comparison:
            yield None
            while count < len(answers) and answers[count].done:
                yield answers[count]
                count += 1

    def close(self) -> None:
        """Cancel the answers that are not complete."""
        self._comparison.close()


class WorkQueue:
    """Jobs that have not begun, and calls. Any thread adds to the queue; only the engine's thread takes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.jobs: deque[Job] = deque()
        self.calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()

    def __bool__(self) -> bool:
        """Whether anything is queued."""
        return bool(self.jobs or self.calls)

    def add_job(self, job: Job) -> None:
        """Queue a job.

        Raises: BusyError if the queue is full.
        """
        with self._lock:
            if len(self.jobs) >= MAX_WAITING:
                raise BusyError(
                    f"busy: {MAX_WAITING} questions are already waiting; try again in a moment"
                )
            self.jobs.append(job)

    def add_call(self, call: Callable[[], T]) -> "Future[T]":
        """Queue a call.

        Raises: BusyError if the queue is full.
        """
        future: Future[T] = Future()
        with self._lock:
            if len(self.calls) >= MAX_WAITING:
                raise BusyError("busy: too many questions are waiting; try again in a moment")
            self.calls.append((future, call))
        return future

    def run_calls(self) -> None:
        """Run all queued calls. Each result or error goes to the caller's future."""
        while self.calls:
            future, call = self.calls.popleft()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:
                    future.set_exception(error)

    def cancel_calls(self) -> None:
        """Cancel all queued calls."""
        while self.calls:
            self.calls.popleft()[0].cancel()

    def drop_cancelled(self) -> None:
        """Remove cancelled jobs."""
        with self._lock:
            self.jobs = deque(job for job in self.jobs if not job.cancelled)

    def take_job(self, *, max_columns: int) -> Job | None:
        """Remove and return the oldest job, or None if it has more columns than `max_columns`."""
        with self._lock:
            if not self.jobs or len(self.jobs[0].columns) > max_columns:
                return None
            return self.jobs.popleft()
