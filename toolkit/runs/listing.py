"""Lists all runs below a folder, and the directories that look like runs but cannot be used."""

import os
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import CheckpointError
from toolkit.runs.integrity import WITHIN_A_RUN, stray
from toolkit.runs.run import MANIFEST, Run


@dataclass(frozen=True)
class BrokenRun:
    """A directory that looks like a run but cannot be used, with the reason."""

    path: Path
    reason: str


def list_runs(root: str | os.PathLike[str]) -> tuple[list[Run], list[BrokenRun]]:
    """All usable runs at any depth below `root`, sorted by path, and the damaged runs.

    Links to folders are not followed. A run with a file that is a link out of `root`, a pipe or a
    device counts as damaged and is not read; see `stray`.
    """
    runs: list[Run] = []
    broken: list[BrokenRun] = []
    for folder, children, files in os.walk(root, followlinks=False):
        children[:] = sorted(c for c in children if not c.startswith(("checkpoint-", ".")))
        if MANIFEST not in files and "adapter_config.json" not in files:
            continue
        if MANIFEST not in files and Path(folder).name in WITHIN_A_RUN:
            continue
        reason = stray(Path(folder), Path(root))
        if reason is not None:
            broken.append(BrokenRun(Path(folder), reason))
            continue
        try:
            runs.append(Run.load(folder))
        except CheckpointError as error:
            broken.append(BrokenRun(Path(folder), str(error)))
    return runs, broken
