"""Which checkpoints can be asked and which cannot, under ids that never come from the disk."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from toolkit.app.lineage import Lineage
from toolkit.errors import CheckpointError, ToolkitError
from toolkit.options.config import is_local_path
from toolkit.runs.integrity import changed, stray
from toolkit.runs.listing import list_runs
from toolkit.runs.run import ENSEMBLE, MANIFEST, Run

BASE_ID = "base"
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
    problem: Callable[[Run], str | None],
    identify: Callable[[Path], str],
    refused: Callable[[Path], str | None],
) -> Catalog:
    """Look at every run below `root`; whatever is wrong with one of them stays its own trouble.

    Args:
        base_name: its folder or its id on the hub.
        problem: why a run cannot be asked; it may raise, which is a reason too.
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
            reason = None if holds_none else refused(run.path) or problem(run)
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
    lineage, places = Lineage(runs), {run.path for run in usable}
    for run in usable:
        try:
            entries.append(_entry(run, lineage, places, root, identify))
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
    run: Run, lineage: Lineage, usable: set[Path], root: Path, identify: Callable[[Path], str]
) -> Entry:
    above, why_not = lineage.reference(run)
    reference: str | None = None if why_not else BASE_ID
    if above is not None:
        reference = identify(above.path) if above.path in usable else None
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
