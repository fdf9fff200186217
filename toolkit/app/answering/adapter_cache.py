"""The adapters in memory: read when first asked for, again when their files change, put away when many."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch

from toolkit.app.catalog import Entry, require_inside, require_unchanged
from toolkit.errors import CheckpointError, ToolkitError
from toolkit.models.heads import HEAD_FILE
from toolkit.models.roles import Roles
from toolkit.runs.integrity import sha256
from toolkit.runs.run import ADAPTER_FILES, MANIFEST, WEIGHTS_FILE

ATTACHED_AT_MOST = 12  # adapters kept in memory; the one unused for longest makes room
Stamp = tuple[float, ...]


@dataclass(frozen=True)
class Attached:
    """An adapter in memory: its role, what its files were then, and the sha256 of its weights."""

    role: str
    stamp: Stamp
    sha256: str


class Shelf:
    """Attaches runs below `runs` to the base. Used by the engine's thread only, but for `refusal`."""

    def __init__(self, roles: Roles, runs: Path) -> None:
        self.roles = roles
        self.runs = runs
        self._attached: dict[Path, Attached] = {}  # the oldest use first
        self._refused: dict[Path, tuple[Stamp, str]] = {}
        self._outdated: list[str] = []  # roles whose files have changed, still in use then
        self._count = 0

    def ready(self, entry: Entry, in_use: Collection[str | None] = ()) -> str | None:
        """The role that an entry's adapter is attached as, None for the base.

        Args:
            in_use: roles that must stay as they are, since rows are being decoded with them.
        """
        if entry.path is None:
            return None
        return self.ready_folder(entry.path, head=entry.recipe == "reward", in_use=in_use)

    def ready_folder(self, folder: Path, *, head: bool, in_use: Collection[str | None] = ()) -> str:
        """As `ready`, of any folder with an adapter, and a head if `head`."""
        stamp = stamp_of(folder)
        found = self._attached.pop(folder, None)
        if found is not None and found.stamp != stamp:
            self._outdated.append(found.role)
            found = None
        if found is None:
            self._make_room(in_use)
            # of one length, so that no adapter's name is the beginning of another's
            role = f"run_{self._count:06d}"
            self._count += 1
            try:
                found = Attached(role, stamp, self._load(role, folder, stamp, head=head))
            except BaseException as error:
                self.roles.detach(role)
                if isinstance(error, ToolkitError):
                    self._refused[folder] = (stamp, str(error))
                raise
        self._attached[folder] = found
        return found.role

    def sha256_of(self, role: str | None) -> str | None:
        """The hash of the weights that a role was read from, whatever its file is meanwhile."""
        return next((a.sha256 for a in self._attached.values() if a.role == role), None)

    def _load(self, role: str, folder: Path, stamp: Stamp, *, head: bool) -> str:
        """Read an adapter; the sha256 of its weights file."""
        # PEFT draws a new adapter's weights before they are filled: nobody else's chance shall move
        with torch.random.fork_rng():
            require_inside(_run_of(folder), self.runs)
            self.roles.attach(role, folder, head=head)
            require_unchanged(_run_of(folder))
            read = sha256(folder / WEIGHTS_FILE)
            if stamp_of(folder) != stamp:  # the hash may be of other weights than those in memory
                raise CheckpointError(f"{folder}: it was written anew while it was read; ask again")
        # an adapter's dropout arrives in train mode
        (self.roles.model or self.roles.base).eval()
        return read

    def refusal(self, folder: Path) -> str | None:
        """Why a run could not be loaded, as long as its files are the same."""
        stamp, reason = self._refused.get(folder, (None, None))
        return reason if stamp == stamp_of(folder) else None

    def _make_room(self, in_use: Collection[str | None]) -> None:
        for role in [r for r in self._outdated if r not in in_use]:
            self.roles.detach(role)
            self._outdated.remove(role)
        idle = [f for f, a in self._attached.items() if a.role not in in_use]
        for folder in idle[: max(0, len(self._attached) + 1 - ATTACHED_AT_MOST)]:
            self.roles.detach(self._attached.pop(folder).role)


def stamp_of(folder: Path) -> Stamp:
    """What changes when a run is trained again in the same place."""
    files = [folder / name for name in (*ADAPTER_FILES, HEAD_FILE)]
    files.append(_run_of(folder) / MANIFEST)
    return tuple(f.stat().st_mtime_ns if f.is_file() else 0 for f in files)


def _run_of(folder: Path) -> Path:
    """The run that a folder is, or whose value it is."""
    return folder if (folder / MANIFEST).is_file() else folder.parent
