"""Locks a folder, so that only one process at a time writes to it."""

import errno
from pathlib import Path

from filelock import FileLock, Timeout

from toolkit.errors import CheckpointError

LOCK = ".lock"
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # some network file systems


def lock_folder(folder: Path, name: str = LOCK) -> FileLock:
    """Create a folder and lock it until `release` is called on the result.

    The system releases the lock when the process ends for any reason. A file system without locks gives no
    protection.

    Args:
        name: name of the lock file; locks of different names are independent.

    Raises: CheckpointError if the folder cannot be created or written to safely, or another process
        holds the lock.
    """
    # not thread-local: another thread may finish the run
    lock = FileLock(folder / name, blocking=False, thread_local=False, fallback_to_soft=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _refuse_links(folder)
        lock.acquire()
    except Timeout as error:
        raise CheckpointError(
            f"{folder}: another process writes to it; wait until it ends, or choose another output_dir"
        ) from error
    except OSError as error:  # not a folder, no permission, read-only, name too long
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        if error.errno not in _NO_LOCKS:
            place = f"{name}: " if (folder / name).is_dir() else ""
            raise CheckpointError(
                f"{folder}: cannot be the output folder ({place}{error.strerror}); choose another"
            ) from error
    return lock


def _refuse_links(folder: Path) -> None:
    """Raise CheckpointError for a link to a file, because writing would change the link's target."""
    for file in folder.iterdir():
        if file.is_symlink() and not file.is_dir():
            raise CheckpointError(
                f"{folder}: {file.name} is a symbolic link, and writing would change the file that it "
                "points to; remove the link, or choose another output_dir"
            )
