"""Which weights gave an answer: the hash of an adapter's file."""

import hashlib
from pathlib import Path

from toolkit.runs import WEIGHTS_FILE


class AdapterHashes:
    """SHA-256 of adapters' weights files, read again where a file has changed."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[tuple[int, int, int], str]] = {}

    def of(self, run: Path) -> str:
        """The hash of a run's adapter.

        Raises: OSError where it cannot be read.
        """
        file = run / WEIGHTS_FILE
        found = file.stat()
        stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
        if self._known.get(file, (None, ""))[0] != stamp:
            with file.open("rb") as opened:
                digest = hashlib.file_digest(opened, "sha256").hexdigest()
            self._known[file] = (stamp, digest)
        return self._known[file][1]
