"""Every run below the runs folder as the Runs tab tells of it: state, time, lineage."""

import math
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from toolkit.app.catalog import place_name, printable, tidy
from toolkit.app.history.logs import Log, number
from toolkit.app.lineage import Lineage
from toolkit.runs.listing import list_runs
from toolkit.runs.run import Run

DEAD_AFTER = 30 * 60  # seconds without a sign of life
LOOKS_APART = 2.0  # seconds; visitors in between are told what the last look found
DEEPEST = 12  # generations of a lineage
RELATIONS = {"adapter": "starts from", "reward": "rewards from"}


@dataclass(frozen=True)
class Record:
    """One run. `state` is finished, running, looks dead, failed or broken; `detail` says why.

    `started` is in seconds since 1970 and `seconds` how long it took, where that is known. `run` is
    None where its manifest cannot be read.
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
        """Name and kind, for a list."""
        state = "" if self.state == "finished" else f", {self.state}"
        return f"{self.name} ({self.recipe}{state})"


class History:
    """Looks at the runs folder at most every `LOOKS_APART` seconds. Safe to use from threads."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = threading.Lock()
        self._ids: dict[Path, str] = {}
        self._logs: dict[Path, Log] = {}
        self._lineage = Lineage([])
        self._records: dict[str, Record] = {}
        self._looked = -math.inf

    def look(self, unusable: Mapping[str, str] | None = None) -> dict[str, Record]:
        """id -> run, the one that started last first. Ids never come from the disk, and stay.

        Args:
            unusable: name -> reason, of runs that the app cannot ask though they finished.
        """
        with self._lock:
            if time.monotonic() - self._looked >= LOOKS_APART:
                self._records = self._scan(unusable or {})
                self._looked = time.monotonic()
            return self._records

    def log(self, record: Record) -> Log:
        """The run's metrics, read on from where the last look ended, as they stay for the caller."""
        with self._lock:
            log = self._logs.setdefault(record.path, Log(record.path / "metrics.jsonl", self.root))
            log.look()
            return log.snapshot()  # the next look, of another thread, must not change it

    def lineage(self, record: Record) -> str:
        """The run, what it came from, and what that came from, as an indented text."""
        with self._lock:
            if record.run is None:
                return record.name
            return "\n".join(self._ancestors(record.run, "", frozenset()))

    def _scan(self, unusable: Mapping[str, str]) -> dict[str, Record]:
        runs, damaged = list_runs(self.root)
        self._lineage = Lineage(runs)
        found = []
        for run in runs:
            try:
                found.append(self._record(run, unusable))
            except Exception as error:  # a manifest damaged in a way nobody thought of
                found.append(self._broken(run.path, f"damaged manifest: {error}"))
        found += [self._broken(b.path, b.reason.removeprefix(f"{b.path}: ")) for b in damaged]
        there = {record.path for record in found}
        self._logs = {path: log for path, log in self._logs.items() if path in there}
        newest = sorted(found, key=lambda r: (-(r.started or 0.0), r.name))
        return {record.id: record for record in newest}

    def _record(self, run: Run, unusable: Mapping[str, str]) -> Record:
        name = place_name(run.path, self.root)
        state, detail = state_of(run, time.time())
        if state == "finished" and name in unusable:
            state, detail = "broken", unusable[name]
        return Record(
            self._id(run.path),
            name,
            run.path,
            printable(run.recipe),
            printable(state),
            tidy(detail, self.root),
            positive(run.started),
            positive(run.seconds),
            self._made_from(run),
            run,
        )

    def _broken(self, path: Path, reason: str) -> Record:
        name = place_name(path, self.root)
        return Record(self._id(path), name, path, "unknown", "broken", tidy(reason, self.root))

    def _id(self, path: Path) -> str:
        return self._ids.setdefault(path, f"run_{len(self._ids):06d}")

    def _made_from(self, run: Run) -> str:
        """Its parents in one line."""
        parents = [self._parent(value)[0] for value in parents_of(run).values()]
        return ", ".join(dict.fromkeys(parents)) or base_of(run)

    def _parent(self, value: str) -> tuple[str, Run | None]:
        """A parent's name, and the run where it is among these."""
        try:
            above = self._lineage.find(value)
        except (OSError, ValueError, RuntimeError):
            above = None
        if above is None:
            return f"{printable(value)} (not among these runs)", None
        return place_name(above.path, self.root), above

    def _ancestors(self, run: Run, indent: str, seen: frozenset[Path]) -> list[str]:
        lines = [f"{place_name(run.path, self.root)} ({printable(run.recipe)})"]
        if run.path in seen or len(seen) >= DEEPEST:
            return [f"{lines[0]} … and so on in a circle" if run.path in seen else f"{lines[0]} …"]
        parents = parents_of(run)
        if "adapter" not in parents and base_of(run):
            lines.append(f"{indent}  trained on the base {base_of(run)}")
        for what, value in list(parents.items())[:DEEPEST]:
            name, above = self._parent(value)
            below = (
                [name]
                if above is None
                else self._ancestors(above, f"{indent}  ", seen | {run.path})
            )
            lines += [f"{indent}  {_relation(what)} {below[0]}", *below[1:]]
        return lines


def state_of(run: Run, now: float) -> tuple[str, str]:
    """What became of a run, and why where that needs a word. `now` in seconds since 1970."""
    if run.state == "failed":
        return "failed", str(run.error or "no reason was written down")
    if run.state != "running":
        return str(run.state), ""
    silent = now - last_sign(run.path)
    if silent <= DEAD_AFTER:
        return "running", ""
    whole = duration(silent // 60 * 60)  # in minutes, so that the page does not change all the time
    return (
        "looks dead",
        f"nothing written for {whole}; if its process is gone, start the recipe again "
        "with --resume_from_checkpoint true",
    )


def last_sign(folder: Path) -> float:
    """When anything in a run's folder was last written, in seconds since 1970."""
    try:
        return max(
            (e.stat(follow_symlinks=False).st_mtime for e in os.scandir(folder)), default=0.0
        )
    except OSError:
        return 0.0


def parents_of(run: Run) -> dict[str, str]:
    """What a manifest says of parents, whatever else it says."""
    parents = run.parents if isinstance(run.parents, dict) else {}
    return {str(k): v for k, v in parents.items() if isinstance(v, str)}


def base_of(run: Run) -> str:
    """The base's name, or nothing where the manifest has none."""
    found = run.base.get("id") if isinstance(run.base, dict) else None
    return printable(found) if found else ""


def positive(value: object) -> float | None:
    """A number that can be a time, or None."""
    found = number(value)
    return found if found is not None and 0 < found < 1e11 else None


def duration(seconds: float | None) -> str:
    """ "1 h 5 min", "2 min 3 s", "4 s"; nothing for None."""
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
    """A local time to the minute; nothing for None."""
    if seconds is None:
        return ""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _relation(what: str) -> str:
    known = RELATIONS.get(what.rstrip("0123456789").rstrip("_"))
    return known or f"{printable(what)}:"
