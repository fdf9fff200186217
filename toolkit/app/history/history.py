"""Every run below the runs folder: state, duration and lineage."""

import itertools
import math
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from toolkit.app.catalog import run_id
from toolkit.app.history.logs import Log
from toolkit.app.lineage import Lineage
from toolkit.app.texts import place_name, printable, tidy
from toolkit.runs.listing import list_runs
from toolkit.runs.run import Run

STALLED_AFTER_S = 30 * 60  # without a write to the run's folder
SCAN_INTERVAL_S = 2.0  # visitors in between get the last scan
MAX_GENERATIONS = 12  # longest lineage that is shown
# A few runs that name each other as parents have millions of lineages.
MAX_LINES = 200  # of a lineage
RELATIONS = {"adapter": "starts from", "reward": "rewarded by"}


@dataclass(frozen=True)
class Record:
    """One run. `state` is finished, running, stalled, failed or broken; `detail` is the reason.

    `started` is in seconds since 1970, `seconds` is the duration; both are None if unknown. `run` is
    None if the manifest cannot be read.
    """

    id: str
    name: str
    path: Path
    recipe: str
    state: str
    detail: str = ""
    started: float | None = None
    seconds: float | None = None
    made_from: str = ""
    run: Run | None = None

    @property
    def label(self) -> str:
        """The label in lists: name, recipe and, if the run is unfinished, its state."""
        state = "" if self.state == "finished" else f", {self.state}"
        return f"{self.name} ({self.recipe}{state})"


class History:
    """The runs below a folder, scanned at most every `SCAN_INTERVAL_S`. Thread-safe."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = threading.Lock()
        self._logs: dict[Path, Log] = {}
        self._lineage = Lineage([])
        self._records: dict[str, Record] = {}
        self._scanned = -math.inf

    def records(self, unusable: Mapping[str, str] | None = None) -> dict[str, Record]:
        """The runs by id, the latest first. Ids contain no paths and never change.

        Args:
            unusable: name -> reason, for finished runs that the app cannot load.
        """
        with self._lock:
            if time.monotonic() - self._scanned >= SCAN_INTERVAL_S:
                self._records = self._scan(unusable or {})
                self._scanned = time.monotonic()
            return self._records

    def log(self, record: Record) -> Log:
        """A copy of the run's metrics, after reading its new lines."""
        with self._lock:
            log = self._logs.setdefault(record.path, Log(record.path / "metrics.jsonl", self.root))
            log.read_new()
            return log.snapshot()  # other threads keep reading the original

    def lineage(self, record: Record) -> str:
        """The run and its ancestors as indented text."""
        with self._lock:
            if record.run is None:
                return record.name
            lines = list(
                itertools.islice(self._ancestors(record.run, "", frozenset()), MAX_LINES + 1)
            )
            return "\n".join([*lines[:MAX_LINES], "…"] if len(lines) > MAX_LINES else lines)

    def _scan(self, unusable: Mapping[str, str]) -> dict[str, Record]:
        runs, damaged = list_runs(self.root)
        self._lineage = Lineage(runs)
        records = []
        for run in runs:
            try:
                records.append(self._record(run, unusable))
            except Exception as error:  # unforeseen damage to a manifest
                records.append(self._broken(run.path, f"damaged manifest: {error}"))
        records += [self._broken(b.path, b.reason.removeprefix(f"{b.path}: ")) for b in damaged]
        paths = {record.path for record in records}
        self._logs = {path: log for path, log in self._logs.items() if path in paths}
        records.sort(key=lambda r: (-(r.started or 0.0), r.name))
        return {record.id: record for record in records}

    def _record(self, run: Run, unusable: Mapping[str, str]) -> Record:
        name = place_name(run.path, self.root)
        state, detail = state_of(run, time.time())
        if state == "finished" and name in unusable:
            state, detail = "broken", unusable[name]
        return Record(
            run_id(run.path),
            name,
            run.path,
            printable(run.recipe),
            printable(state),
            tidy(detail, self.root),
            run.started or None,
            run.seconds,
            self._made_from(run),
            run,
        )

    def _broken(self, path: Path, reason: str) -> Record:
        name = place_name(path, self.root)
        return Record(run_id(path), name, path, "unknown", "broken", tidy(reason, self.root))

    def _made_from(self, run: Run) -> str:
        """The names of the parents, or of the base, in one line."""
        parents = [self._parent(value)[0] for value in run.parents.values()]
        return ", ".join(dict.fromkeys(parents)) or base_name(run)

    def _parent(self, value: str) -> tuple[str, Run | None]:
        """A parent's name, and the parent's run if it is in the runs folder."""
        try:
            parent = self._lineage.find(value)
        except (OSError, ValueError, RuntimeError):
            parent = None
        if parent is None:
            return f"{printable(value)} (not in the runs folder)", None
        return place_name(parent.path, self.root), parent

    def _ancestors(self, run: Run, indent: str, visited: frozenset[Path]) -> Iterator[str]:
        """The lines of a lineage, made one by one, because there may be very many."""
        first = f"{place_name(run.path, self.root)} ({printable(run.recipe)})"
        if run.path in visited:
            yield f"{first} … (circular)"
            return
        if len(visited) >= MAX_GENERATIONS:
            yield f"{first} …"
            return
        yield first
        if "adapter" not in run.parents and base_name(run):
            yield f"{indent}  trained on the base {base_name(run)}"
        for kind, value in list(run.parents.items())[:MAX_GENERATIONS]:
            name, parent = self._parent(value)
            above = iter([name])
            if parent is not None:
                above = self._ancestors(parent, f"{indent}  ", visited | {run.path})
            unnumbered = kind.rstrip("0123456789").rstrip("_")
            relation = RELATIONS.get(unnumbered, f"{printable(kind)}:")
            yield f"{indent}  {relation} {next(above)}"
            yield from above


def state_of(run: Run, now: float) -> tuple[str, str]:
    """A run's state and its reason, or "". `now` is in seconds since 1970."""
    if run.state == "failed":
        return "failed", str(run.error or "no reason was recorded")
    if run.state != "running":
        return str(run.state), ""
    silent = now - _last_write(run.path)
    if silent <= STALLED_AFTER_S:
        return "running", ""
    minutes = duration(silent // 60 * 60)  # whole minutes, so that the page rarely changes
    return (
        "stalled",
        f"nothing was written for {minutes}; if the process has ended, start the recipe again with "
        "--resume_from_checkpoint true",
    )


def _last_write(folder: Path) -> float:
    """When a file of the run's folder was last written, in seconds since 1970."""
    try:
        return max(
            (e.stat(follow_symlinks=False).st_mtime for e in os.scandir(folder)), default=0.0
        )
    except OSError:
        return 0.0


def base_name(run: Run) -> str:
    """The base's id, or "" if the manifest has none."""
    id = run.base.get("id")
    return printable(id) if id else ""


def duration(seconds: float | None) -> str:
    """ "1 h 5 min", "2 min 3 s" or "4 s"; "" for None."""
    if seconds is None:
        return ""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    hours = whole // 3600
    return f"{hours} h {whole % 3600 // 60} min" if hours < 48 else f"{hours // 24} days"


def moment(seconds: float | None) -> str:
    """The local date and time to the minute; "" for None."""
    if seconds is None:
        return ""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
