"""What waits for the model's thread: questions that have not begun, and calls between two tokens."""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, TypeVar

from toolkit.app.answering.jobs import Job
from toolkit.errors import BusyError

MAX_WAITING = 32  # questions that have not begun, and as many calls

T = TypeVar("T")


class Inbox:
    """Filled by any thread, emptied by the engine's own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.jobs: deque[Job] = deque()
        self.calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()

    def __bool__(self) -> bool:
        """Whether anything waits."""
        return bool(self.jobs or self.calls)

    def put(self, job: Job) -> None:
        """Queue a job.

        Raises: BusyError where too many wait.
        """
        with self._lock:
            if len(self.jobs) >= MAX_WAITING:
                raise BusyError(
                    f"busy: {MAX_WAITING} questions are waiting already; try again in a moment"
                )
            self.jobs.append(job)

    def ask(self, work: Callable[[], T]) -> "Future[T]":
        """Queue a call.

        Raises: BusyError where too many wait.
        """
        future: Future[T] = Future()
        with self._lock:
            if len(self.calls) >= MAX_WAITING:
                raise BusyError("busy: too many questions are waiting; try again in a moment")
            self.calls.append((future, work))
        return future

    def answer_calls(self) -> None:
        """Do what was asked, each error for whoever asked."""
        while self.calls:
            future, work = self.calls.popleft()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except BaseException as error:
                    future.set_exception(error)

    def drop_cancelled(self) -> None:
        """Forget the jobs that nobody waits for."""
        with self._lock:
            self.jobs = deque(job for job in self.jobs if not job.cancelled)

    def take(self, *, room: int) -> Job | None:
        """The job that has waited longest, if it has no more columns than there is room for."""
        with self._lock:
            if not self.jobs or len(self.jobs[0].columns) > room:
                return None
            return self.jobs.popleft()


def result_of(future: "Future[T]", *, timeout: float) -> T:
    """What a call gave, waited for.

    Raises: BusyError where it takes longer than `timeout` seconds; whatever the call raised.
    """
    try:
        return future.result(timeout)
    except (FutureTimeout, CancelledError) as error:
        if future.done() and not future.cancelled():
            raise
        future.cancel()
        raise BusyError("busy: it was not this question's turn in time; try again") from error
