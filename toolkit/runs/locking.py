"""A folder that one process writes to at a time."""

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


def own(folder: Path, name: str = LOCK) -> IO[str]:
    """Make a folder this process's own, for as long as the file that is returned is open.

    Args:
        name: of that file; who locks by another name is not kept out.

    The system frees it however the process ends. Where it has no such locks (Windows, some network
    file systems) two processes are not kept apart.

    Raises: CheckpointError where the folder cannot be made, or another process has it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / name).open("w", encoding="utf-8")
    except OSError as error:  # not a folder, not ours, read only, too long a name
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise CheckpointError(
            f"{folder}: cannot be the output folder ({error.strerror})"
        ) from error
    try:
        if fcntl is not None:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        lock.close()
        raise CheckpointError(
            f"{folder}: another process writes to it; wait for it, or choose another output_dir"
        ) from error
    except OSError:  # the file system keeps no locks
        pass
    return lock
