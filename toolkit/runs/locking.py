"""Lock a folder, so that one process at a time writes to it."""

import errno
from pathlib import Path
from typing import IO, Any

from toolkit.errors import CheckpointError

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = ".lock"


def lock_folder(folder: Path, name: str = LOCK) -> IO[str]:
    """Create a folder and lock it for as long as the returned file is open.

    The system releases the lock however the process ends. Without such locks (Windows, some network
    file systems) two processes are not kept apart.

    Args:
        name: name of the lock file; locks of different names are independent.

    Raises: CheckpointError if the folder cannot be created, or another process holds the lock.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / name).open("w", encoding="utf-8")
    except OSError as error:  # not a folder, no permission, read-only, name too long
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise CheckpointError(
            f"{folder}: cannot be the output folder ({error.strerror}); choose another"
        ) from error
    try:
        if fcntl is not None:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        lock.close()
        raise CheckpointError(
            f"{folder}: another process writes to it; wait for it, or choose another output_dir"
        ) from error
    except OSError:  # the file system has no locks
        pass
    return lock
