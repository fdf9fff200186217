"""Runs found again by what manifests call them, and the SFT run that a lineage began with."""

from collections.abc import Iterable
from pathlib import Path

from toolkit.runs.run import Run

TAIL = 2  # last parts of a path that tell a run apart once the folder of all runs has moved


class Lineage:
    """The runs of one look at the folder, indexed: each of them is asked for by many others."""

    def __init__(self, runs: Iterable[Run]) -> None:
        self._at: dict[Path, Run] = {}
        self._ending: dict[tuple[str, ...], list[Run]] = {}
        self._found: dict[str, Run | None] = {}
        for run in runs:
            place = run.path.resolve()
            self._at.setdefault(place, run)
            for length in range(1, TAIL + 1):
                self._ending.setdefault(place.parts[-length:], []).append(run)

    def find(self, parent: str) -> Run | None:
        """The run that a manifest calls `parent`, also where the folder of all runs has moved.

        Raises: OSError, ValueError or RuntimeError for what can be no path.
        """
        if parent not in self._found:
            wanted = Path(parent)
            alike = self._ending.get(wanted.parts[-TAIL:], [])
            moved = alike[0] if len(alike) == 1 else None
            self._found[parent] = self._at.get(wanted.resolve(), moved)
        return self._found[parent]

    def reference(self, run: Run) -> tuple[Run | None, str]:
        """The first SFT run of a run's lineage, so that KL is measured from one place in all columns.

        Returns: the run, or None for the base where the lineage has no SFT; or None with the reason
            why the lineage cannot be followed.
        Raises: as `find`.
        """
        found, current, seen = None, run, {run.path}
        while True:
            if current.recipe == "sft":
                found = current
            parent = current.parents.get("adapter") if isinstance(current.parents, dict) else None
            if not parent:
                return found, ""
            above = self.find(str(parent))
            if above is None or above.path in seen:
                return found, "" if found else f"its parent {parent} is not among the runs"
            current = above
            seen.add(current.path)
