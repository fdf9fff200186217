"""Reads a run's growing `metrics.jsonl`: each call reads only the new lines."""

import json
import math
import os
from copy import copy
from pathlib import Path
from typing import Any, BinaryIO

from toolkit.app.texts import printable
from toolkit.runs.integrity import open_inside

MAX_BYTES_PER_READ = 16 << 20  # a longer log is read in several calls, so that none takes long
MAX_POINTS = 4000  # per metric; beyond it, every second point is dropped
MAX_METRICS = 400
LARGEST = 1e30  # a larger value cannot be drawn beside others
SUMMARY = "train_runtime"  # in the last row that transformers logs, which describes the whole run
NOT_DRAWN = ("step", "epoch", "total_flos")


class Series:
    """One metric over the steps. `missed` counts values that were not finite."""

    def __init__(self) -> None:
        self.stride, self.missed = 1, 0
        self._points: list[tuple[float, float]] = []
        self._count = 0
        self._latest: tuple[float, float] | None = None

    def add(self, step: float, value: float) -> None:
        """Add a logged value; NaN if it was not finite."""
        self._latest = (step, value)
        self.missed += math.isnan(value)
        if self._count % self.stride == 0:
            self._points.append(self._latest)
        self._count += 1
        if len(self._points) > MAX_POINTS:
            self._points = self._points[::2]
            self.stride *= 2

    def snapshot(self) -> "Series":
        """A copy that later values do not change."""
        series = copy(self)
        series._points = self._points.copy()
        return series

    @property
    def points(self) -> list[tuple[float, float]]:
        """(step, value) of every `stride`th value and of the latest value."""
        latest = [] if self._latest in (None, self._points[-1]) else [self._latest]
        return self._points + [point for point in latest if point is not None]


class Log:
    """The content of a metrics file so far. A missing, cut or damaged file raises no error."""

    def __init__(self, file: Path, root: Path) -> None:
        self.file, self.root = file, root
        self._reset()

    def _reset(self) -> None:
        self.series: dict[str, Series] = {}
        self.warnings: dict[str, str] = {}
        self.rows = self.damaged = self.size = self._offset = 0
        self.step: float | None = None
        self.problem: str | None = None
        self._inode: int | None = None
        self._tail = b""  # the bytes before the offset, to detect that the file was replaced

    @property
    def read_bytes(self) -> int:
        """Number of bytes read so far; less than `size` if there is more to read."""
        return self._offset

    def read_new(self) -> None:
        """Read the new lines, at most `MAX_BYTES_PER_READ`; start over if the file was replaced."""
        try:
            with open_inside(self.file, self.root) as stream:
                status = os.fstat(stream.fileno())
                if not self._continues(stream, status):
                    self._reset()
                self._inode, self.size, self.problem = status.st_ino, status.st_size, None
                stream.seek(self._offset)
                data = stream.read(MAX_BYTES_PER_READ)
        except OSError as error:
            self._reset()
            missing = isinstance(error, FileNotFoundError)
            self.problem = "nothing was logged yet" if missing else f"unreadable: {error}"
            return
        end = data.rfind(b"\n") + 1
        if end == 0 and len(data) == MAX_BYTES_PER_READ:  # no valid line is that long
            end, self.damaged = len(data), self.damaged + 1
        else:
            for line in data[:end].split(b"\n"):
                self._add(line)
        self._offset += end
        self._tail = (self._tail + data[:end])[-64:]

    def snapshot(self) -> "Log":
        """A copy that further reads do not change."""
        log = copy(self)
        log.series = {key: series.snapshot() for key, series in self.series.items()}
        log.warnings = dict(self.warnings)
        return log

    def _continues(self, stream: BinaryIO, status: os.stat_result) -> bool:
        """Whether the file still begins with the bytes that were read before."""
        if status.st_ino != self._inode or status.st_size < self._offset:
            return False
        stream.seek(self._offset - len(self._tail))
        return stream.read(len(self._tail)) == self._tail

    def _add(self, line: bytes) -> None:
        if not line.strip():
            return
        try:
            row = json.loads(line)
            step = number(row.get("step"))
        except (ValueError, RecursionError, AttributeError):
            step = None
        if step is None or math.isnan(step):
            self.damaged += 1
            return
        self.rows, self.step = self.rows + 1, step
        if SUMMARY in row:
            return
        for key, value in row.items():
            if key.startswith("warning/"):
                if isinstance(value, str) and len(self.warnings) < 10:
                    self.warnings[printable(key)] = printable(value, longest=400)
            elif key not in NOT_DRAWN and (metric := number(value)) is not None:
                self._series(key).add(step, metric)

    def _series(self, key: str) -> Series:
        if key not in self.series and len(self.series) >= MAX_METRICS:
            return Series()
        return self.series.setdefault(key, Series())


def number(value: Any) -> float | None:
    """A JSON value as a float: NaN for null and for huge numbers, None for any other type."""
    if value is None:
        return math.nan  # JSON has no NaN and no infinity; the recipes write null
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= LARGEST else math.nan
