"""The memory that this process may use: the machine's, or less in a container or a job."""

import os
from collections.abc import Iterator
from pathlib import Path


def memory_limit(root: Path = Path("/")) -> int:
    """The memory that this process may use, in bytes: the machine's memory or a lower limit.

    Limits are those of this process's control groups (v1 and v2) and of all groups around them, as
    Docker, Kubernetes, Slurm and systemd set them, and of `ulimit -v`. A group of v1 without a limit has
    a number above any machine's memory.

    Args:
        root: folder of the system's `proc` and `sys`.
    """
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *_group_limits(root), *_address_space()])


def _group_limits(root: Path) -> Iterator[int]:
    for file in _limit_files(root):
        try:
            yield int(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # no such group here, or "max"
            continue


def _limit_files(root: Path) -> Iterator[Path]:
    """The files with the limits of this process's groups and of the groups around them.

    A container may see its own group at the top, and in /proc the path outside of the container.
    """
    mounted = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = ["0::/"]
    tops: tuple[Path, ...]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            tops, name = (mounted, mounted / "unified"), "memory.max"
        elif "memory" in controllers.split(","):
            tops, name = (mounted / "memory",), "memory.limit_in_bytes"
        else:
            continue
        inside = Path(path.lstrip("/"))
        for group in (inside, *inside.parents):
            yield from (top / group / name for top in tops)


def _address_space() -> Iterator[int]:
    try:
        import resource
    except ImportError:  # Windows
        return
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        yield soft
