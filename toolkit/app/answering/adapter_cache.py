"""The adapters in memory: loaded on first use, reloaded when files change, removed if too many."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import torch

from toolkit.app.catalog import Entry, Stamp, file_stamp
from toolkit.errors import CheckpointError, ToolkitError
from toolkit.models.roles import Roles
from toolkit.runs.integrity import sha256, stray
from toolkit.runs.run import MANIFEST, WEIGHTS_FILE

MAX_ADAPTERS = 12  # kept in memory; the least recently used one is dropped first


@dataclass(frozen=True)
class CachedAdapter:
    """An adapter in memory: its role, the stamp of its files and the sha256 of its weights file."""

    role: str
    stamp: Stamp
    sha256: str


class AdapterCache:
    """Attaches runs below `runs` to the base. Except for `load_error`, only the engine's thread may use it.

    `in_use` returns the roles that must stay attached, because rows are being decoded with them.
    """

    def __init__(self, roles: Roles, runs: Path) -> None:
        self.roles = roles
        self.runs = runs
        self.in_use: Callable[[], Collection[str | None]] = tuple  # set by the engine
        self._adapters: dict[Path, CachedAdapter] = {}  # least recently used first
        self._errors: dict[Path, tuple[Stamp, str]] = {}
        self._outdated: list[str] = []  # roles whose files changed while rows used them
        self._count = 0

    def load(self, entry: Entry) -> str | None:
        """Load an entry's adapter unless it is in memory.

        Returns: the adapter's role, or None for the base.
        Raises: ToolkitError if the adapter cannot be loaded.
        """
        if entry.path is None:
            return None
        return self.load_folder(entry.path, head=entry.is_reward)

    def load_folder(self, folder: Path, *, head: bool) -> str:
        """Load the adapter in a folder and, if `head` is set, its scalar head. See `load`."""
        stamp = file_stamp(_run_folder(folder))
        cached = self._adapters.pop(folder, None)
        if cached is not None and cached.stamp != stamp:
            self._outdated.append(cached.role)
            cached = None
        if cached is None:
            self._make_room()
            # a fixed length, so that no adapter's name is a prefix of another's
            role = f"run_{self._count:06d}"
            self._count += 1
            try:
                cached = CachedAdapter(role, stamp, self._attach(role, folder, stamp, head=head))
            except BaseException as error:
                self.roles.detach(role)
                if isinstance(error, ToolkitError):
                    self._errors[folder] = (stamp, str(error))
                raise
        self._adapters[folder] = cached
        return cached.role

    def sha256_of(self, role: str | None) -> str | None:
        """The hash of the weights file that a role was loaded from; None for the base."""
        return next((a.sha256 for a in self._adapters.values() if a.role == role), None)

    def remember_error(self, folder: Path, reason: str) -> None:
        """Record why a run cannot be loaded; `load_error` returns it until the files change."""
        self._errors[folder] = (file_stamp(folder), reason)

    def load_error(self, folder: Path) -> str | None:
        """Why a run could not be loaded, unless its files have changed since."""
        stamp, reason = self._errors.get(folder, (None, None))
        return reason if stamp == file_stamp(folder) else None

    def _attach(self, role: str, folder: Path, stamp: Stamp, *, head: bool) -> str:
        """Attach an adapter. Returns the sha256 of its weights file."""
        run_folder = _run_folder(folder)
        # PEFT draws random weights before it fills them; this must not change other samples
        with torch.random.fork_rng():
            reason = stray(run_folder, self.runs)  # before any file is read
            if reason is not None:
                raise CheckpointError(f"{run_folder}: {reason}")
            self.roles.attach(role, folder, head=head)
            digest = sha256(folder / WEIGHTS_FILE)
            if file_stamp(run_folder) != stamp:  # the hash may not be that of the loaded weights
                raise CheckpointError(
                    f"{folder}: the files changed while they were read; send the question again"
                )
        # a new adapter's dropout is in training mode
        (self.roles.model or self.roles.base).eval()
        return digest

    def _make_room(self) -> None:
        in_use = self.in_use()
        for role in [r for r in self._outdated if r not in in_use]:
            self.roles.detach(role)
            self._outdated.remove(role)
        idle = [f for f, a in self._adapters.items() if a.role not in in_use]
        for folder in idle[: max(0, len(self._adapters) + 1 - MAX_ADAPTERS)]:
            self.roles.detach(self._adapters.pop(folder).role)


def _run_folder(folder: Path) -> Path:
    """A run's folder: the folder itself, or its parent if the folder is `value/` in a run."""
    return folder if (folder / MANIFEST).is_file() else folder.parent
