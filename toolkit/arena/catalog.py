"""Which checkpoints can be asked and which cannot, under ids that never come from the disk."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from toolkit.config import is_local_path
from toolkit.errors import CheckpointError, ToolkitError
from toolkit.integrity import changed, stray
from toolkit.listing import list_runs
from toolkit.runs import ENSEMBLE, MANIFEST, WEIGHTS_FILE, Run

BASE_ID = "base"
# Larger weights are hashed when they are loaded, so that a look at many runs stays quick.
HASHED_AT_A_LOOK = 32 << 20
# These recipes write a run.json and no adapter, so that none is missing.
WITHOUT_ADAPTER = ("label", "merge", "evaluate", ENSEMBLE)


@dataclass(frozen=True)
class Entry:
    """A checkpoint that can be asked, or a reward model that can score.

    `path` is None for the base. `reference` is the id of the checkpoint that KL is measured
    against, or None with the reason in `no_reference`.
    """

    id: str
    name: str
    recipe: str
    path: Path | None = None
    state: str = "finished"
    reference: str | None = BASE_ID
    no_reference: str = ""

    @property
    def label(self) -> str:
        """Name and kind, for a list."""
        unfinished = "" if self.state == "finished" else f", {self.state}"
        return f"{self.name} ({self.recipe}{unfinished})"


@dataclass(frozen=True)
class Catalog:
    """One look at the runs folder; `broken` is (name, reason)."""

    checkpoints: dict[str, Entry]
    rewards: dict[str, Entry]
    broken: tuple[tuple[str, str], ...] = ()

    @property
    def empty(self) -> bool:
        """Whether there is nothing beside the base."""
        return len(self.checkpoints) == 1


def only_base(base_name: str, reference: str = BASE_ID) -> Catalog:
    """Nothing but the base, called by its own name or its folder's."""
    name = Path(base_name).name if is_local_path(base_name) else base_name
    return Catalog({BASE_ID: Entry(BASE_ID, BASE_ID, printable(name), reference=reference)}, {})


def scan(
    root: Path,
    *,
    base_name: str,
    fingerprint: dict[str, str],
    identify: Callable[[Path], str],
    refused: Callable[[Path], str | None],
) -> Catalog:
    """Look at every run below `root`; whatever is wrong with one of them stays its own trouble.

    Args:
        base_name: its folder or its id on the hub.
        fingerprint: the base in memory; runs trained on another one are listed as broken.
        identify: the id of a run's directory, the same at every scan.
        refused: why a run's adapter could not be loaded earlier, where that was tried.
    """
    runs, damaged = list_runs(root)
    broken = [
        (place_name(b.path, root), tidy(b.reason.removeprefix(f"{b.path}: "), root))
        for b in damaged
    ]
    usable: list[Run] = []
    for run in runs:
        try:
            holds_none = run.recipe in WITHOUT_ADAPTER and run.adapter_problem() is not None
            reason = None if holds_none else refused(run.path) or _problem(run, fingerprint)
            reason = reason and reason.removeprefix(f"{run.path}: ")
        except ToolkitError as error:
            holds_none, reason = False, str(error).removeprefix(f"{run.path}: ")
        except Exception as error:  # a manifest or adapter damaged in a way nobody thought of
            holds_none, reason = False, f"damaged: {error}"
        if reason is not None:
            broken.append((place_name(run.path, root), tidy(reason, root)))
        elif not holds_none:
            usable.append(run)
    entries: list[Entry] = []
    for run in usable:
        try:
            entries.append(_entry(run, runs, usable, root, identify))
        except Exception as error:
            broken.append((place_name(run.path, root), tidy(f"unreadable lineage: {error}", root)))
    found = {entry.id: entry for entry in entries}
    first_sft = next((e.id for e in entries if e.recipe == "sft" and e.reference == e.id), BASE_ID)
    base = only_base(base_name, reference=first_sft).checkpoints
    return Catalog(
        base | {k: e for k, e in found.items() if e.recipe != "reward"},
        {k: e for k, e in found.items() if e.recipe == "reward"},
        tuple(sorted(broken)),
    )


def _entry(
    run: Run, runs: list[Run], usable: list[Run], root: Path, identify: Callable[[Path], str]
) -> Entry:
    above, why_not = _reference(run, runs)
    reference: str | None = None if why_not else BASE_ID
    if above is not None:
        reference = identify(above.path) if above in usable else None
        why_not = "" if reference else f"its SFT run {place_name(above.path, root)} is broken"
    name = place_name(run.path, root)
    return Entry(
        identify(run.path),
        f"./{name}" if name == BASE_ID else name,  # --checkpoint base is the base
        printable(run.recipe),
        run.path,
        printable(run.state),
        reference,
        tidy(why_not, root),
    )


def _problem(run: Run, fingerprint: dict[str, str]) -> str | None:
    """Why a run cannot be asked, as far as can be told without loading its weights."""
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


def require_inside(folder: Path, root: Path) -> None:
    """Refuse a run with a file that is none of its folder's, before any of them is read.

    Raises: CheckpointError saying which file.
    """
    reason = stray(folder, root)
    if reason is not None:
        raise CheckpointError(f"{folder}: {reason}")


def require_unchanged(folder: Path) -> None:
    """Refuse a run whose files are not those that it wrote.

    Raises: CheckpointError saying which file.
    """
    if (folder / MANIFEST).is_file():
        reason = changed(folder, Run.load(folder).weights)
        if reason is not None:
            raise CheckpointError(f"{folder}: {reason}")


def _reference(run: Run, runs: list[Run]) -> tuple[Run | None, str]:
    """The first SFT run of a run's lineage, so that KL is measured from one place in all columns.

    Returns: the run, or None for the base where the lineage has no SFT; or None with the reason
        why the lineage cannot be followed.
    """
    found, current, seen = None, run, {run.path}
    while True:
        if current.recipe == "sft":
            found = current
        parent = current.parents.get("adapter") if isinstance(current.parents, dict) else None
        if not parent:
            return found, ""
        above = find_run(str(parent), runs)
        if above is None or above.path in seen:
            return found, "" if found else f"its parent {parent} is not among the runs"
        current = above
        seen.add(current.path)


def find_run(parent: str, runs: list[Run]) -> Run | None:
    """The run that a manifest calls `parent`, also where the folder of all runs has moved."""
    wanted = Path(parent)
    for run in runs:
        if run.path.resolve() == wanted.resolve():
            return run
    tail = wanted.parts[-2:]
    alike = [run for run in runs if run.path.resolve().parts[-len(tail) :] == tail]
    return alike[0] if len(alike) == 1 else None


def place_name(path: Path, root: Path) -> str:
    """A run's name on the page: its place below the runs folder."""
    name = path.relative_to(root).as_posix() if path != root else path.resolve().name
    return printable(name)


def tidy(reason: str, root: Path) -> str:
    """A reason in one line without the runs folder's own path in it."""
    return printable(" ".join(reason.replace(f"{root}/", "").split()), longest=400)


def printable(text: object, *, longest: int = 80) -> str:
    """Text from the disk without control characters, bytes that are no text, or endless length."""
    decoded = str(text).encode("utf-8", "replace").decode("utf-8")
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in decoded)
    return line if len(line) <= longest else f"{line[: longest - 1]}…"
