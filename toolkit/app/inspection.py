"""What keeps a run from being asked, as far as can be told without loading its weights."""

import json
from pathlib import Path

from toolkit.runs.integrity import HASHED, changed
from toolkit.runs.run import MANIFEST, WEIGHTS_FILE, Run

# Larger weights are hashed when they are loaded, so that a look at many runs stays quick.
HASHED_AT_A_LOOK = 32 << 20
READ = (MANIFEST, "base.json", *HASHED)
Stamp = tuple[tuple[int, ...], ...]
GONE = (0, 0, 0, 0)


class Inspector:
    """Looks into runs, and not again into one that was fine while its files stay as they were."""

    def __init__(self, fingerprint: dict[str, str]) -> None:
        """`fingerprint` is the base's in memory."""
        self._fingerprint = fingerprint
        self._fine: dict[Path, Stamp] = {}

    def problem(self, run: Run) -> str | None:
        """Why a run cannot be asked, or None.

        Raises: ToolkitError or whatever damaged files make their readers raise.
        """
        before = stamp_of(run.path)
        if self._fine.get(run.path) == before:
            return None
        self._fine.pop(run.path, None)
        reason = _problem(run, self._fingerprint)
        if reason is None:
            self._fine[run.path] = before  # a file written meanwhile has another stamp already
        return reason


def stamp_of(folder: Path) -> Stamp:
    """What changes whenever one of the files does that `problem` reads.

    The time of a file's last change of any kind is among it, which no program can set back.
    """
    found = []
    for name in READ:
        try:
            now = (folder / name).stat()
            found.append((now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns))
        except OSError:
            found.append(GONE)
    return tuple(found)


def _problem(run: Run, fingerprint: dict[str, str]) -> str | None:
    from safetensors import safe_open  # these bring torch, and the page is up before it

    from toolkit.models.base import check_fingerprint
    from toolkit.models.heads import ScalarHead

    missing = run.adapter_problem()
    if missing and run.state == "failed":
        return f"the run failed: {run.error}"
    if missing and run.state == "running":
        return f"it has not finished ({missing})"
    if missing:
        return missing
    json.loads((run.path / "adapter_config.json").read_text(encoding="utf-8"))
    with safe_open(run.path / WEIGHTS_FILE, framework="pt") as file:  # checks header and length
        if not file.keys():
            return f"{WEIGHTS_FILE} holds no weights"
    check_fingerprint(run.path, fingerprint)
    if run.recipe == "reward":
        ScalarHead.load(run.path)
    if (run.path / WEIGHTS_FILE).stat().st_size <= HASHED_AT_A_LOOK:
        return changed(run.path, run.weights)
    return None
