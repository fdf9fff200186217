"""Finds the parents of runs, and the SFT run that a lineage began with."""

from collections.abc import Iterable
from pathlib import Path

from toolkit.recipe import is_supervised
from toolkit.runs.run import Run

TAIL = 2  # last parts of a path that identify a run after the runs folder was moved


class Lineage:
    """An index of the runs of one scan, since many runs share the same parents."""

    def __init__(self, runs: Iterable[Run]) -> None:
        self._by_path: dict[Path, Run] = {}
        self._by_tail: dict[tuple[str, ...], list[Run]] = {}
        self._parents: dict[str, Run | None] = {}
        for run in runs:
            path = run.path.resolve()
            self._by_path.setdefault(path, run)
            for length in range(1, TAIL + 1):
                self._by_tail.setdefault(path.parts[-length:], []).append(run)

    def find(self, parent: str) -> Run | None:
        """The run at the path `parent` of a manifest, even if the runs folder was moved.

        Raises: OSError, ValueError or RuntimeError if `parent` is not a valid path.
        """
        if parent not in self._parents:
            path = Path(parent)
            candidates = self._by_tail.get(path.parts[-TAIL:], [])
            moved = candidates[0] if len(candidates) == 1 else None
            self._parents[parent] = self._by_path.get(path.resolve(), moved)
        return self._parents[parent]

    def reference(self, run: Run) -> tuple[Run | None, str]:
        """The first SFT run in a run's lineage, so that all columns measure KL against the same model.

        Returns: the run and ""; None and "" (the base) if the lineage has no SFT run; None and the reason
        if a parent is missing.
        Raises: see `find`.
        """
        sft, current, visited = None, run, {run.path}
        while True:
            if is_supervised(current):
                sft = current
            parent = current.parents.get("adapter")
            if not parent:
                return sft, ""
            parent_run = self.find(parent)
            if parent_run is None or parent_run.path in visited:
                return sft, "" if sft else f"its parent {parent} is not in the runs folder"
            current = parent_run
            visited.add(current.path)
