"""A run's `metrics.jsonl` while it grows: only what was added since the last look is read."""

import json
import math
import os
from copy import copy
from pathlib import Path
from typing import Any, BinaryIO

from toolkit.app.catalog import printable
from toolkit.runs.integrity import open_inside

AT_ONCE = 16 << 20  # bytes; a longer log is read over several looks, so that none takes long
MOST_POINTS = 4000  # of one metric; beyond it every second one is dropped, again and again
MOST_METRICS = 400
LARGEST = 1e30  # what is larger cannot be drawn beside anything else
SUMMARY = "train_runtime"  # in the row that transformers logs at the end, which is of the whole run
NOT_DRAWN = ("step", "epoch", "total_flos")


class Series:
    """One metric over the steps; `missed` counts values that were not finite."""

    def __init__(self) -> None:
        self.stride, self.missed = 1, 0
        self._points: list[tuple[float, float]] = []
        self._count = 0
        self._latest: tuple[float, float] | None = None

    def add(self, step: float, value: float) -> None:
        """One logged value; NaN where it was not finite."""
        self._latest = (step, value)
        self.missed += math.isnan(value)
        if self._count % self.stride == 0:
            self._points.append(self._latest)
        self._count += 1
        if len(self._points) > MOST_POINTS:
            self._points = self._points[::2]
            self.stride *= 2

    def snapshot(self) -> "Series":
        """The points so far, to which nothing is added."""
        taken = copy(self)
        taken._points = self._points.copy()
        return taken

    @property
    def points(self) -> list[tuple[float, float]]:
        """(step, value), the latest always among them."""
        latest = [] if self._latest in (None, self._points[-1]) else [self._latest]
        return self._points + [point for point in latest if point is not None]


class Log:
    """What a metrics file says so far. A file that is gone, cut short or damaged is no trouble."""

    def __init__(self, file: Path, root: Path) -> None:
        self.file, self.root = file, root
        self._forget()

    def _forget(self) -> None:
        self.series: dict[str, Series] = {}
        self.warnings: dict[str, str] = {}
        self.rows = self.damaged = self.size = self._offset = 0
        self.step: float | None = None
        self.problem: str | None = None
        self._inode: int | None = None
        self._tail = b""  # the bytes before the offset: another file has others there

    @property
    def read_bytes(self) -> int:
        """How far it was read; less than `size` where there is more than one look takes."""
        return self._offset

    def look(self) -> None:
        """Read what was added, `AT_ONCE` bytes at most, or all again where the file is another."""
        try:
            with open_inside(self.file, self.root) as stream:
                now = os.fstat(stream.fileno())
                if not self._goes_on(stream, now):
                    self._forget()
                self._inode, self.size, self.problem = now.st_ino, now.st_size, None
                stream.seek(self._offset)
                data = stream.read(AT_ONCE)
        except OSError as error:
            self._forget()
            missing = isinstance(error, FileNotFoundError)
            self.problem = "nothing was logged yet" if missing else f"unreadable: {error}"
            return
        end = data.rfind(b"\n") + 1
        if end == 0 and len(data) == AT_ONCE:  # no line of ours is that long
            end, self.damaged = len(data), self.damaged + 1
        else:
            for line in data[:end].split(b"\n"):
                self._add(line)
        self._offset += end
        self._tail = (self._tail + data[:end])[-64:]

    def snapshot(self) -> "Log":
        """What it says at this moment; further looks at this log do not change it."""
        taken = copy(self)
        taken.series = {key: series.snapshot() for key, series in self.series.items()}
        taken.warnings = dict(self.warnings)
        return taken

    def _goes_on(self, stream: BinaryIO, now: os.stat_result) -> bool:
        """Whether this is the file that was read so far, with nothing but more at its end."""
        if now.st_ino != self._inode or now.st_size < self._offset:
            return False
        stream.seek(self._offset - len(self._tail))
        return stream.read(len(self._tail)) == self._tail

    def _add(self, line: bytes) -> None:
        if not line.strip():
            return
        try:
            row = json.loads(line)
            step = row.get("step")
        except (ValueError, RecursionError, AttributeError):
            self.damaged += 1
            return
        step = number(step)
        if step is None or math.isnan(step):
            self.damaged += 1
            return
        self.rows, self.step = self.rows + 1, step
        if SUMMARY in row:
            return
        for key, value in row.items():
            if key.startswith("warning/"):
                self._warn(key, value)
            elif key not in NOT_DRAWN and (found := number(value)) is not None:
                self._series(key).add(step, found)

    def _series(self, key: str) -> Series:
        if key not in self.series and len(self.series) >= MOST_METRICS:
            return Series()
        return self.series.setdefault(key, Series())

    def _warn(self, key: str, value: Any) -> None:
        if isinstance(value, str) and len(self.warnings) < 10:
            self.warnings[printable(key)] = printable(value, longest=400)


def number(value: Any) -> float | None:
    """A JSON value as a float; NaN where it stands for one that is not finite, None if it is text."""
    if value is None:
        return math.nan  # what the recipes write for NaN and infinity, which JSON has not
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= LARGEST else math.nan
