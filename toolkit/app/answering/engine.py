"""One thread that owns the model; everybody else asks it and waits for a turn.

Answers of all visitors are rows of one batch, which join and leave between tokens. What cannot share
a batch, such as DoRA, has one of its own, and the batches take turns. One beam search at a time takes
its turn among them.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from toolkit.app.answering.answers import Answer
from toolkit.app.answering.beams import Search
from toolkit.app.answering.inbox import Inbox, result_of
from toolkit.app.answering.jobs import Column, Comparison, Job, ended
from toolkit.app.answering.measuring import Measurer, out_of_memory
from toolkit.sampling.row_batch import Row, RowBatch

MAX_ROWS = 48  # answers in the making
MAX_SECONDS = 120.0  # for one question, from its first token on
STEPS = 16  # tokens before the next batch has its turn
IDLE_S = 5.0  # after which the thread ends; the next question starts another
CALL_S = 60.0  # that a call may wait for its result

T = TypeVar("T")


class Engine:
    """Takes questions from any thread, answers them in its own."""

    def __init__(self, measurer: Measurer) -> None:
        self.measurer = measurer
        self._shelf, self._roles, self._tokens = measurer.shelf, measurer.roles, measurer.tokens
        self.inbox = Inbox()
        self._lock = threading.Lock()  # of the next two, which other threads touch
        self._thread: threading.Thread | None = None
        self._work = threading.Event()
        self._running: list[Job] = []
        self._unread: list[tuple[Job, Column]] = []  # admitted, not in a batch yet
        self._batches: dict[str | None, RowBatch] = {}  # None is the mixed one
        self._searches: deque[tuple[Job, Column]] = deque()  # the first one is under way
        self._search: Search | None = None

    def submit(self, job: Job) -> Comparison:
        """Queue a job.

        Raises: BusyError where too many wait.
        """
        self.inbox.put(job)
        self._wake()
        return Comparison(job, self._tokens, self._wake)

    def call(self, work: Callable[[], T], *, timeout: float = CALL_S) -> T:
        """Run something on the model between two tokens, and wait for it.

        Raises: BusyError where too many wait or it takes too long; whatever `work` raises.
        """
        future = self.inbox.ask(work)
        self._wake()
        return result_of(future, timeout=timeout)

    def _wake(self) -> None:
        with self._lock:
            self._work.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._live, name="model", daemon=True)
                self._thread.start()

    def _live(self) -> None:
        torch.set_grad_enabled(False)  # of this thread
        while True:
            self._work.clear()
            try:
                self._turn()
            except Exception as error:  # a bug of ours must not leave the app without its thread
                self._start_over(error)
            busy = self._running or self._searches or self.inbox
            if busy or self._work.wait(IDLE_S):
                continue
            with self._lock:
                if not self._work.is_set():
                    self._thread = None
                    return

    def _turn(self) -> None:
        """Whatever there is to do, once."""
        self.inbox.answer_calls()
        self._drop()
        self._admit()
        self._join()
        for key, batch in list(self._batches.items()):
            if batch.rows:
                self._advance(key, batch)
        self._advance_search()
        self._running = [job for job in self._running if not job.done]

    def _start_over(self, error: Exception) -> None:
        """Fail what is being worked on; what waits is not touched."""
        self._pause()
        self._batches, self._unread = {}, []
        if self._search is not None:
            self._search.abandon()
        self._search = None
        self._searches.clear()
        for job in self._running:
            self._fail(job, [c for c in job.columns if c.answer is None], error)
        self._running = []

    def _drop(self) -> None:
        """Take out the rows that nobody waits for, and end those that were stopped or are late."""
        self.inbox.drop_cancelled()
        gone = {id(job) for job in self._running if job.cancelled}  # it may change meanwhile
        for job in self._running:
            late = time.monotonic() > job.deadline
            for column in job.columns:
                if column.answer is not None or not (id(job) in gone or column.stopped or late):
                    continue
                if late and not column.stopped:
                    column.stopped = f"stopped at the limit of {MAX_SECONDS:.0f} s"
                if self._search is not None and self._search.row is column.row:
                    continue  # its next turn is its last
                for batch in self._batches.values():
                    if column.row in batch.rows:
                        batch.leave([column.row])
                if id(job) not in gone:
                    self._finish(job, column)
        self._unread = [(j, c) for j, c in self._unread if id(j) not in gone and c.answer is None]
        self._running = [job for job in self._running if id(job) not in gone]
        first = list(self._searches)[: self._search is not None]
        later = list(self._searches)[len(first) :]
        later = [(j, c) for j, c in later if id(j) not in gone and c.answer is None]
        self._searches = deque(first + later)

    def _admit(self) -> None:
        """Begin the jobs that there is room for, in order."""
        while (job := self.inbox.take(room=MAX_ROWS - self._busy_rows())) is not None:
            job.deadline = time.monotonic() + MAX_SECONDS
            self._running.append(job)
            for column in job.columns:
                try:
                    role = self._shelf.ready(column.entry, self.in_use())
                except Exception as error:
                    self._fail(job, [column], error)
                    continue
                column.adapter = self._shelf.sha256_of(role)
                column.row = Row(column.prompt, role, job.request.sampling)
                if job.request.sampling.beams > 1:
                    self._searches.append((job, column))
                else:
                    self._unread.append((job, column))

    def _busy_rows(self) -> int:
        return (
            len(self._unread)
            + len(self._searches)
            + sum(len(batch.rows) for batch in self._batches.values())
        )

    def in_use(self) -> set[str | None]:
        """Roles that rows are being decoded with. For calls, which run in the engine's thread."""
        rows = [row for batch in self._batches.values() for row in batch.rows]
        rows += [c.row for job in self._running for c in job.columns if c.row and not c.answer]
        return {row.adapter for row in rows}

    def _join(self) -> None:
        """Read the prompts of rows whose batch can take them."""
        for key in dict.fromkeys(self._key(c) for _, c in self._unread):
            batch = self._batches.setdefault(key, self._new_batch())
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
                self._rescue(key, error, new)

    def _key(self, column: Column) -> str | None:
        assert column.row is not None
        return None if self._roles.can_mix(column.row.adapter) else column.row.adapter

    def _new_batch(self) -> RowBatch:
        return RowBatch(self._roles, stop=self.measurer.stop, pad_id=self.measurer.pad_id)

    def _pause(self) -> None:
        for batch in self._batches.values():
            batch.pause()

    def _advance(self, key: str | None, batch: RowBatch) -> None:
        """Some tokens for one batch, up to where somebody else wants something."""
        done: list[Row] = []
        try:
            for _ in range(STEPS):
                done = batch.step()
                for job in self._running:
                    job.tell()
                if done or self._work.is_set():
                    break
        except Exception as error:
            self._rescue(key, error, [])
        self._pause()
        ready = [(j, c) for j in self._running for c in j.columns if c.row in done]
        for _, column in ready:
            column.finished = time.monotonic()
        for job, column in ready:
            if column.answer is None:
                self._finish(job, column)
        if not batch.rows and key is not None:
            self._batches.pop(key, None)

    def _rescue(self, key: str | None, error: Exception, new: list[tuple[Job, Column]]) -> None:
        """A batch failed: its newest question is given up, the others are read again and go on."""
        self._pause()
        batch = self._batches.pop(key)
        there = [
            (job, column)
            for job in self._running
            for column in job.columns
            # done ones have left a batch whose next step failed
            if column.row and (column.row in batch.rows or column.row.done) and not column.answer
        ]
        blamed = next((j for j, c in reversed(new or there) if c.row and not c.row.done), None)
        for job, column in [*there, *new]:
            assert column.row is not None
            if column.row.done:
                self._finish(job, column)
            elif job is blamed:
                self._fail(job, [column], error)
            else:
                self._unread.append((job, column))
        if out_of_memory(error) and torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _advance_search(self) -> None:
        """Some tokens of the first beam search: as many as a batch, up to where somebody waits."""
        if not self._searches:
            return
        job, column = self._searches[0]
        assert column.row is not None
        self._pause()
        try:
            if self._search is None:
                column.started = time.monotonic()
                self._search = self._new_search(job, column)
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

    def _new_search(self, job: Job, column: Column) -> Search:
        assert column.row is not None

        def give_up() -> bool:
            return job.cancelled or bool(column.stopped) or time.monotonic() > job.deadline

        return Search(self._roles, column.row, measurer=self.measurer, give_up=give_up)

    def _finish(self, job: Job, column: Column) -> None:
        """Text and measures of a column whose row has all its tokens."""
        self._pause()
        row = column.row or Row(column.prompt, None, job.request.sampling)
        column.row = row
        column.finished = column.finished or time.monotonic()
        answer = ended(column, self._tokens.text(row.ids))
        if row.ids:
            answer = self.measurer.measured(
                answer, column.prompt, job.request, job.catalog, self.in_use()
            )
        column.answer = answer
        job.tell()

    def _fail(self, job: Job, columns: Sequence[Column], error: Exception) -> None:
        for column in columns:
            entry = column.entry
            column.answer = Answer(entry.id, entry.name, problem=self.measurer.explain(error))
        job.tell()
