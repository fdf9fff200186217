"""The engine: one thread runs the model; all other threads queue their work and wait.

The answers of all visitors are rows of one batch. Rows join and leave between tokens. An adapter that
cannot share a batch, such as DoRA, has its own batch. The batches take turns with each other and with at
most one beam search.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TypeVar

import torch

from toolkit.app.answering.beams import BeamSearch
from toolkit.app.answering.metrics import AnswerMetrics, out_of_memory
from toolkit.app.answering.request import Answer
from toolkit.app.answering.work_queue import Column, Comparison, Job, WorkQueue
from toolkit.errors import BusyError, CheckpointError
from toolkit.sampling.row_batch import Row, RowBatch

MAX_ROWS = 48  # answers in progress
MAX_SECONDS = 120.0  # for one question, from its first token
STEPS = 16  # tokens per turn of a batch
IDLE_S = 5.0  # after which the thread ends; the next question starts a new one
CALL_S = 60.0  # a call waits at most this long for its result

T = TypeVar("T")


class Engine:
    """Takes questions from any thread, and answers them in its own thread."""

    def __init__(self, metrics: AnswerMetrics) -> None:
        self.metrics = metrics
        self._adapters, self._roles, self._tokens = metrics.adapters, metrics.roles, metrics.tokens
        self._adapters.in_use = self._roles_in_use
        self.queue = WorkQueue()
        self._lock = threading.Lock()  # guards the thread and the event
        self._thread: threading.Thread | None = None
        self._work = threading.Event()
        self._running: list[Job] = []
        self._unread: list[tuple[Job, Column]] = []  # started, not in a batch yet
        self._batches: dict[str | None, RowBatch] = {}  # by role; None is the shared batch
        self._searches: deque[tuple[Job, Column]] = deque()  # the first one is running
        self._search: BeamSearch | None = None
        self._closed = False

    def submit(self, job: Job) -> Comparison:
        """Queue a job.

        Raises: BusyError if the queue is full.
        """
        self.queue.add_job(job)
        self._wake()
        return Comparison(job, self._tokens, self._wake)

    def call(self, function: Callable[[], T], *, timeout: float = CALL_S) -> T:
        """Run a function on the model between two tokens and return its result.

        Raises: BusyError if the queue is full or after `timeout` seconds; any error of `function`.
        """
        future = self.queue.add_call(function)
        self._wake()
        try:
            return future.result(timeout)
        except (FutureTimeout, CancelledError) as error:
            if future.done() and not future.cancelled():
                raise
            future.cancel()
            raise BusyError("busy: this question did not start in time; try again") from error

    def close(self) -> None:
        """End the running answers, which keep their text; queued and later questions get an error."""
        self._closed = True
        self._wake()
        while (thread := self._thread) is not None:
            thread.join()

    def _wake(self) -> None:
        with self._lock:
            self._work.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name="model", daemon=True)
                self._thread.start()

    def _loop(self) -> None:
        torch.set_grad_enabled(False)  # for this thread
        while True:
            self._work.clear()
            try:
                self._turn()
            except Exception as error:  # a bug here must not end the thread
                self._reset(error)
            busy = self._running or self._searches or self.queue
            if busy or self._work.wait(0 if self._closed else IDLE_S):
                continue
            with self._lock:
                if not self._work.is_set():
                    self._thread = None
                    return

    def _turn(self) -> None:
        if self._closed:
            self._stop_all()
        self.queue.run_calls()
        self._remove_stopped()
        self._start_jobs()
        self._join_batches()
        for key, batch in list(self._batches.items()):
            if batch.rows:
                self._advance(key, batch)
        self._advance_search()
        self._running = [job for job in self._running if not job.done]

    def _stop_all(self) -> None:
        self.queue.cancel_calls()
        while (job := self.queue.take_job(max_columns=MAX_ROWS)) is not None:
            self._fail(job, job.columns, BusyError("another base is loading; ask again"))
        for column in (c for job in self._running for c in job.columns):
            column.stopped = column.stopped or "stopped, because another base is loading"

    def _reset(self, error: Exception) -> None:
        """Fail the running jobs; queued jobs stay."""
        self._pause()
        self._batches, self._unread = {}, []
        if self._search is not None:
            self._search.abandon()
        self._search = None
        self._searches.clear()
        for job in self._running:
            self._fail(job, [c for c in job.columns if c.answer is None], error)
        self._running = []

    def _remove_stopped(self) -> None:
        """Remove the rows of cancelled jobs; finish the rows that were stopped or exceed the time limit."""
        self.queue.drop_cancelled()
        # other threads may add more
        cancelled = {id(job) for job in self._running if job.cancelled}
        for job in self._running:
            late = time.monotonic() > job.deadline
            for column in job.columns:
                if column.answer is not None:
                    continue
                if not (id(job) in cancelled or column.stopped or late):
                    continue
                if late and not column.stopped:
                    column.stopped = f"stopped at the limit of {MAX_SECONDS:.0f} s"
                if self._search is not None and self._search.row is column.row:
                    continue  # the search ends at its next token
                for batch in self._batches.values():
                    if column.row in batch.rows:
                        batch.leave([column.row])
                if id(job) not in cancelled:
                    self._finish(job, column)

        def waits(pair: tuple[Job, Column]) -> bool:
            return id(pair[0]) not in cancelled and pair[1].answer is None

        self._unread = [pair for pair in self._unread if waits(pair)]
        self._running = [job for job in self._running if id(job) not in cancelled]
        searches, current = list(self._searches), int(self._search is not None)
        self._searches = deque(searches[:current] + [p for p in searches[current:] if waits(p)])

    def _start_jobs(self) -> None:
        """Start queued jobs in order while there is room for their rows."""
        while (job := self.queue.take_job(max_columns=MAX_ROWS - self._row_count())) is not None:
            job.deadline = time.monotonic() + MAX_SECONDS
            self._running.append(job)
            for column in job.columns:
                try:
                    role = self._adapters.load(column.entry)
                except Exception as error:
                    self._fail(job, [column], error)
                    continue
                column.adapter = self._adapters.sha256_of(role)
                column.row = Row(column.prompt, role, job.request.sampling)
                beams = job.request.sampling.beams > 1
                (self._searches if beams else self._unread).append((job, column))

    def _roles_in_use(self) -> set[str | None]:
        rows = [row for batch in self._batches.values() for row in batch.rows]
        rows += [c.row for job in self._running for c in job.columns if c.row and not c.answer]
        return {row.adapter for row in rows}

    def _row_count(self) -> int:
        in_batches = sum(len(batch.rows) for batch in self._batches.values())
        return len(self._unread) + len(self._searches) + in_batches

    def _join_batches(self) -> None:
        """Add new rows to their batches and prefill the prompts; a row waits until it can join."""
        for key in dict.fromkeys(self._key(c) for _, c in self._unread):
            if key not in self._batches:
                stop, pad_id = self.metrics.stop, self.metrics.pad_id
                self._batches[key] = RowBatch(self._roles, stop=stop, pad_id=pad_id)
            batch = self._batches[key]
            if not batch.joinable:
                continue
            new = [(j, c) for j, c in self._unread if self._key(c) == key]
            self._unread = [pair for pair in self._unread if pair not in new]
            self._pause()
            for _, column in new:
                column.started = column.started or time.monotonic()
            try:
                batch.join([c.row for _, c in new if c.row is not None])
            except Exception as error:
                self._split_batch(key, error, new)

    def _key(self, column: Column) -> str | None:
        assert column.row is not None
        return None if self._roles.can_mix(column.row.adapter) else column.row.adapter

    def _pause(self) -> None:
        for batch in self._batches.values():
            batch.pause()

    def _advance(self, key: str | None, batch: RowBatch) -> None:
        """Decode up to `STEPS` tokens of one batch, fewer if other work arrives."""
        done: list[Row] = []
        try:
            for _ in range(STEPS):
                done = batch.step()
                for job in self._running:
                    job.notify()
                if done or self._work.is_set():
                    break
        except Exception as error:
            self._split_batch(key, error, [])
        self._pause()
        finished = [(j, c) for j in self._running for c in j.columns if c.row in done]
        for _, column in finished:
            column.finished = time.monotonic()
        for job, column in finished:
            if column.answer is None:
                self._finish(job, column)
        if not batch.rows and key is not None:
            self._batches.pop(key, None)

    def _split_batch(
        self, key: str | None, error: Exception, new: list[tuple[Job, Column]]
    ) -> None:
        """After an error in a batch, fail its newest question and restart the other rows."""
        self._pause()
        batch = self._batches.pop(key)
        current = [
            (job, column)
            for job in self._running
            for column in job.columns
            # finished rows have already left the batch
            if column.row and (column.row in batch.rows or column.row.done) and not column.answer
        ]
        newest = next((j for j, c in reversed(new or current) if c.row and not c.row.done), None)
        for job, column in [*current, *new]:
            assert column.row is not None
            if column.row.done:
                self._finish(job, column)
            elif job is newest:
                self._fail(job, [column], error)
            else:
                self._unread.append((job, column))
        if out_of_memory(error) and torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _advance_search(self) -> None:
        """Run the first beam search for up to `STEPS` tokens, fewer if other work arrives."""
        if not self._searches:
            return
        job, column = self._searches[0]
        assert column.row is not None

        def should_stop() -> bool:
            return job.cancelled or bool(column.stopped) or time.monotonic() > job.deadline

        self._pause()
        try:
            if self._search is None:
                column.started = time.monotonic()
                self._search = BeamSearch(
                    self._roles, column.row, metrics=self.metrics, should_stop=should_stop
                )
            for _ in range(STEPS):
                over = self._search.step()
                if over or self._work.is_set():
                    break
        except Exception as error:
            self._fail(job, [column], error)
            over = True
        if over:
            self._search = None
            self._searches.popleft()
            if column.answer is None and not job.cancelled:
                self._finish(job, column)

    def _finish(self, job: Job, column: Column) -> None:
        """Complete a column whose row has all its tokens: text, score and KL."""
        self._pause()
        row = column.row or Row(column.prompt, None, job.request.sampling)
        column.row = row
        if row.diverged:
            problem = CheckpointError(
                "no answer: its logits are not finite; was its training stable?"
            )
            self._fail(job, [column], problem)
            return
        column.finished = column.finished or time.monotonic()
        answer = column.finished_answer(self._tokens.text(row.ids))
        if row.ids:
            answer = self.metrics.add_to(answer, column.prompt, job.request, job.catalog)
        column.answer = answer
        job.notify()

    def _fail(self, job: Job, columns: Sequence[Column], error: Exception) -> None:
        for column in columns:
            entry = column.entry
            column.answer = Answer(entry.id, entry.name, problem=self.metrics.explain(error))
        job.notify()
