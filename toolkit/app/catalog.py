"""The catalog of checkpoints and reward models below the runs folder, and of unusable runs."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from toolkit.app.bases import Base, find_bases
from toolkit.app.lineage import Lineage
from toolkit.app.texts import place_name, printable, tidy
from toolkit.errors import ToolkitError
from toolkit.options.config import is_local_path
from toolkit.recipe import holds, is_online, is_supervised
from toolkit.runs.integrity import HASHED, changed
from toolkit.runs.listing import list_runs
from toolkit.runs.run import MANIFEST, WEIGHTS_FILE, Run
from toolkit.runs.settings import ROWS

BASE_ID = "base"
# Larger weights are hashed only when they are loaded, so that a scan of many runs stays quick.
MAX_BYTES_HASHED_IN_SCAN = 32 << 20
STAMPED = (MANIFEST, "base.json", "chat_template.jinja", "tokenizer_config.json", *HASHED)
Stamp = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Entry:
    """A checkpoint or a reward model.

    `path` is None for the base. `reference` is the id of the checkpoint that KL is measured
    against, or None with the reason in `no_reference`. `is_sft` means trained on demonstrations,
    `is_online` on its own answers, `has_test_rows` that the run recorded a test split.
    `weights` is the sha256 of the adapter that the manifest recorded, or "".
    """

    id: str
    name: str
    recipe: str
    path: Path | None = None
    state: str = "finished"
    reference: str | None = BASE_ID
    no_reference: str = ""
    is_reward: bool = False
    is_sft: bool = False
    is_online: bool = False
    weights: str = ""
    has_test_rows: bool = False

    @property
    def label(self) -> str:
        """The label in lists: name, recipe and, if the run is unfinished, its state."""
        state = "" if self.state == "finished" else f", {self.state}"
        return f"{self.name} ({self.recipe}{state})"


@dataclass(frozen=True)
class Catalog:
    """The result of a scan, by id; `broken` holds (name, reason) of each run that cannot be used.

    `bases` holds the bases to choose from, `base` the label of the loaded one. Both are empty if the user
    named the base.
    """

    checkpoints: dict[str, Entry]
    rewards: dict[str, Entry]
    broken: tuple[tuple[str, str], ...] = ()
    bases: tuple[Base, ...] = ()
    base: str = ""

    @property
    def empty(self) -> bool:
        """Whether the base is the only checkpoint."""
        return len(self.checkpoints) == 1

    @property
    def unusable(self) -> dict[str, str]:
        """The reason for each run that cannot be used, also because it was trained on another base."""
        others = [base for base in self.bases if base.label != self.base]
        elsewhere = {name: f"trained on {base.label}" for base in others for name in base.runs}
        return elsewhere | dict(self.broken)

    @property
    def with_test_rows(self) -> dict[str, Entry]:
        """The runs that recorded a test split."""
        return {id: e for id, e in {**self.checkpoints, **self.rewards}.items() if e.has_test_rows}


def only_base(base_name: str, reference: str = BASE_ID) -> Catalog:
    """A catalog with only the base, whose label is its name or its folder's name."""
    name = Path(base_name).name if is_local_path(base_name) else base_name
    return Catalog({BASE_ID: Entry(BASE_ID, BASE_ID, printable(name), reference=reference)}, {})


def scan(
    root: Path,
    *,
    base_name: str,
    base: Base | None = None,
    problem: Callable[[Run], str | None],
    load_error: Callable[[Path], str | None],
) -> Catalog:
    """Inspect every run below `root`. A damaged run does not affect the others.

    Args:
        root: the runs folder.
        base_name: the base's folder or hub id.
        base: the loaded base, beside which the bases of other runs are offered; None offers none.
        problem: returns why a run cannot be used, or None; it may also raise an error.
        load_error: returns why an earlier attempt to load the run's adapter failed, or None.
    """
    runs, damaged = list_runs(root)
    broken = [
        (place_name(b.path, root), tidy(b.reason.removeprefix(f"{b.path}: "), root))
        for b in damaged
    ]
    bases = () if base is None else find_bases(runs, root)
    if base is not None and base.key not in {b.key for b in bases}:
        bases = (*bases, replace(base, runs=()))
    loaded = next((b.label for b in bases if base is not None and b.key == base.key), "")
    elsewhere = {name for b in bases if b.label != loaded for name in b.runs}
    usable: list[Run] = []
    for run in runs:
        if place_name(run.path, root) in elsewhere:
            continue
        try:
            if holds(run) in ("other", "ensemble") and run.adapter_problem() is not None:
                continue
            reason = load_error(run.path) or problem(run)
        except ToolkitError as error:
            reason = str(error)
        except Exception as error:  # unforeseen damage to a manifest or an adapter
            reason = f"damaged: {error}"
        if reason is None:
            usable.append(run)
        else:
            reason = reason.removeprefix(f"{run.path}: ")
            broken.append((place_name(run.path, root), tidy(reason, root)))
    entries: dict[str, Entry] = {}
    lineage, usable_paths = Lineage(runs), {run.path for run in usable}
    for run in usable:
        try:
            entry = _entry(run, lineage, usable_paths, root)
            entries[entry.id] = entry
        except Exception as error:
            broken.append((place_name(run.path, root), tidy(f"unreadable lineage: {error}", root)))
    first_sft = next((e.id for e in entries.values() if e.is_sft and e.reference == e.id), BASE_ID)
    return Catalog(
        only_base(base_name, reference=first_sft).checkpoints
        | {id: e for id, e in entries.items() if not e.is_reward},
        {id: e for id, e in entries.items() if e.is_reward},
        tuple(sorted(broken)),
        bases,
        loaded,
    )


def run_id(path: Path) -> str:
    """A run's id on the page, the same after every scan, change of the base and restart."""
    return f"run_{hashlib.sha256(str(path).encode('utf-8', 'surrogateescape')).hexdigest()[:12]}"


def _entry(run: Run, lineage: Lineage, usable: set[Path], root: Path) -> Entry:
    ancestor, no_reference = lineage.reference(run)
    reference: str | None = None if no_reference else BASE_ID
    if ancestor is not None:
        reference = run_id(ancestor.path) if ancestor.path in usable else None
        ancestor_name = place_name(ancestor.path, root)
        no_reference = "" if reference else f"its SFT run {ancestor_name} cannot be used"
    name = place_name(run.path, root)
    return Entry(
        run_id(run.path),
        f"./{name}" if name == BASE_ID else name,  # `--checkpoint base` is the base itself
        printable(run.recipe),
        run.path,
        printable(run.state),
        reference,
        tidy(no_reference, root),
        holds(run) == "reward model",
        is_supervised(run),
        is_online(run),
        run.weights.get(WEIGHTS_FILE, ""),
        ROWS["test"] in run.inputs,
    )


class Inspector:
    """Checks runs without loading weights. A usable run is checked again only if its files change."""

    def __init__(self, fingerprint: dict[str, str]) -> None:
        """`fingerprint` is that of the base in memory."""
        self._fingerprint = fingerprint
        self._sound: dict[Path, Stamp] = {}

    def problem(self, run: Run) -> str | None:
        """Why a run cannot be used, or None.

        Raises: ToolkitError, or any error of the functions that read damaged files.
        """
        stamp = file_stamp(run.path)  # taken first: a file written meanwhile has another stamp
        if self._sound.get(run.path) == stamp:
            return None
        self._sound.pop(run.path, None)
        reason = _problem(run, self._fingerprint)
        if reason is None:
            self._sound[run.path] = stamp
        return reason


def file_stamp(folder: Path) -> Stamp:
    """A value that changes whenever one of the files changes that answers depend on.

    It holds each file's inode, size, mtime and ctime. No program can set ctime back.
    """
    stamp = []
    for name in STAMPED:
        try:
            status = (folder / name).stat()
            stamp.append((status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
        except OSError:
            stamp.append((0, 0, 0, 0))
    return tuple(stamp)


def _problem(run: Run, fingerprint: dict[str, str]) -> str | None:
    from safetensors import safe_open  # imports torch, and the page is served before that

    from toolkit.models.adapter_config import read_config
    from toolkit.models.base import check_fingerprint
    from toolkit.models.heads import ScalarHead

    missing = run.adapter_problem()
    if missing and run.state == "failed":
        return f"the run failed: {run.error}"
    if missing and run.state == "running":
        return f"it has not finished ({missing})"
    if missing:
        return missing
    read_config(run.path)
    with safe_open(run.path / WEIGHTS_FILE, framework="pt") as file:  # checks header and length
        if not file.keys():
            return f"{WEIGHTS_FILE} holds no weights"
    check_fingerprint(run.path, fingerprint)
    if holds(run) == "reward model":
        ScalarHead.load(run.path)
    files = (run.path / name for name in HASHED)
    if sum(f.stat().st_size for f in files if f.is_file()) <= MAX_BYTES_HASHED_IN_SCAN:
        return changed(run.path, run.weights)
    return None
