"""What one visitor asked for while it is worked on: a column for each checkpoint."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from toolkit.app.answering.answers import Answer
from toolkit.app.answering.request import Request
from toolkit.app.answering.tokens import Tokens
from toolkit.app.catalog import Catalog, Entry
from toolkit.sampling.row_batch import Row

REFRESH_S = 0.05  # between two looks at a text that grows
HEARTBEAT_S = 0.25  # a closed page is noticed at the next one


@dataclass(eq=False)
class Column:
    """One checkpoint's answer in the making. The engine's thread writes, others only read."""

    entry: Entry
    prompt: list[int]
    row: Row | None = None
    adapter: str | None = None  # sha256 of the weights in memory, once they are
    started: float = 0.0  # of time.monotonic(), when its prompt began to be read
    finished: float = 0.0
    answer: Answer | None = None  # once it is whole
    stopped: str = ""  # why it ends before it is done


@dataclass(eq=False)
class Job:
    """A request in the queue or being answered."""

    request: Request
    catalog: Catalog
    columns: list[Column]
    deadline: float = 0.0  # of time.monotonic(), once it has begun
    cancelled: bool = False  # nobody listens any more
    changed: threading.Condition = field(default_factory=threading.Condition)

    @property
    def done(self) -> bool:
        """Whether every column has its answer."""
        return all(column.answer is not None for column in self.columns)

    def tell(self) -> None:
        """Wake whoever listens."""
        with self.changed:
            self.changed.notify_all()


class Comparison:
    """What a visitor holds while answers are made: iterate over what there is so far.

    Each item is the answers of all columns, in the order asked for, whole or in part; the last item
    has all of them whole, unless it was closed, by whoever iterates or by another thread.
    """

    def __init__(self, job: Job, tokens: Tokens, wake: Callable[[], None]) -> None:
        self._job, self._tokens, self._wake = job, tokens, wake
        self.request, self.catalog = job.request, job.catalog

    def __iter__(self) -> Iterator[tuple[Answer, ...]]:
        """Items as there is more to say, and at least every `HEARTBEAT_S`."""
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
        return tuple(self._snapshot(column) for column in self._job.columns)

    def _snapshot(self, column: Column) -> Answer:
        if column.answer is not None:
            return column.answer
        ids = [] if column.row is None else list(column.row.ids)
        entry = column.entry
        text = self._tokens.text(ids, whole=False) if ids else ""
        return Answer(entry.id, entry.name, text, len(ids), done=False)

    def stop(self, checkpoint: str | None = None) -> None:
        """End one column's answer where it is, or all of them; what was said stays and is measured."""
        for column in self._job.columns:
            if checkpoint in (None, column.entry.id) and column.answer is None:
                column.stopped = "stopped"
        self._wake()

    def close(self) -> None:
        """Give up what is not done."""
        if not self._job.done:
            self._job.cancelled = True
            self._wake()


def ended(column: Column, text: str) -> Answer:
    """The answer of a column whose row is done, without its measures."""
    row = column.row
    assert row is not None
    seconds = column.finished - column.started
    answer = Answer(
        column.entry.id,
        column.entry.name,
        text,
        len(row.ids),
        row.ended,
        ids=tuple(row.ids),
        adapter=column.adapter,
        speed=len(row.ids) / seconds if row.ids and seconds > 0 else None,
    )
    return replace(answer, notes=(column.stopped,)) if column.stopped else answer
