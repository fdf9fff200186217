"""Run a function as on a full disk: no file can become longer than a limit."""

import multiprocessing
import resource
import signal
from collections.abc import Callable
from pathlib import Path


def with_full_disk(
    folder: Path, work: Callable[[Path], list[object]], *, file_bytes: int = 20_000
) -> list[object]:
    """What `work` returns in a process that can make no file longer than this."""
    context = multiprocessing.get_context("fork")
    with context.Pool(1, _limit_files, (file_bytes,)) as pool:
        return pool.apply(work, (folder,))


def free_space() -> None:
    """Remove the limit."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def _limit_files(file_bytes: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing raises an error instead
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, resource.RLIM_INFINITY))
