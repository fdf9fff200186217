"""Checks of a run's files before they are read: each is regular, inside the folder, unchanged."""

import hashlib
import os
import stat
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import BinaryIO

from toolkit.runs.memory import memory_limit

# The files that answers depend on. Only these names are looked up; paths in a manifest are not followed.
HASHED = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "head.safetensors",
    "last/adapter_config.json",
    "last/adapter_model.safetensors",
    "value/adapter_config.json",
    "value/adapter_model.safetensors",
    "value/head.safetensors",
)
HASHED_WHOLE = 256 << 20  # bytes; of larger weight files only the size, head and tail are hashed
WITHIN_A_RUN = ("value", "ref", "last")  # folders of roles that are saved inside their run


def hashes(folder: Path) -> dict[str, str]:
    """The sha256 of each file in `HASHED` that exists in a run's folder."""
    return {name: sha256(folder / name) for name in HASHED if (folder / name).is_file()}


def changed(folder: Path, recorded: Mapping[str, str]) -> str | None:
    """The file that was changed after the run finished; None if no file was, or no hash is recorded.

    Args:
        folder: the run's directory.
        recorded: `weights` of its manifest, file -> sha256.
    """
    for name in HASHED:
        expected, file = recorded.get(name), folder / name
        if expected is None or not file.is_file():
            continue
        if (size := too_large(file)) is not None:
            return size
        if (actual := sha256(file)) != expected:
            return (
                f"{name} was changed after the run finished: its sha256 is {actual[:12]}…, run.json "
                f"has {expected[:12]}…; restore the file or train the run again"
            )
    return None


def too_large(file: Path) -> str | None:
    """Why a file must not be read whole, or None. A sparse file can have terabytes but use no disk."""
    size = file.stat().st_size
    if size <= memory_limit() // 2:
        return None
    return f"{file.name} has {size / 2**30:.1f} GiB, more than half of the memory of this process"


def sha256(file: Path) -> str:
    """A file's sha256 in hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def content_of(names: Iterable[str], *, written: Path) -> list[str]:
    """Name and hash of each local file in `names`, and of each file in the local folders in `names`.

    Modification times are not compared: a copy has a later time, and a file can be replaced twice within
    one clock tick. Hidden files and checkpoints are left out.

    Args:
        names: paths; any text that is not an existing file or folder is ignored.
        written: a folder that is left out, because its files change while a pipeline runs.
    """
    files: set[Path] = set()
    for path in (Path(n).expanduser() for n in names if n and "\n" not in n and len(n) < 4096):
        if path.resolve().is_relative_to(written.resolve()):
            continue
        if path.is_file():
            files.add(path)
        elif path.is_dir():
            files.update(f for f in path.rglob("*") if f.is_file() and _is_input(f, path))
    return [f"{file}:{_content_hash(file, _stamp(file))}" for file in sorted(files)]


def _is_input(file: Path, folder: Path) -> bool:
    parts = file.relative_to(folder).parts
    return not any(part.startswith((".", "checkpoint-")) for part in parts)


def _stamp(file: Path) -> tuple[int, ...]:
    status = file.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


@cache
def _content_hash(file: Path, stamp: tuple[int, ...]) -> str:
    """The sha256 of a file, or of the size, start and end of a large weight file.

    Args:
        stamp: a value that changes with the file, so that one process hashes it once.
    """
    size = stamp[1]
    if size <= HASHED_WHOLE or file.suffix != ".safetensors":
        return sha256(file)
    with file.open("rb") as stream:
        digest = hashlib.sha256(f"{size}".encode() + stream.read(1 << 20))
        stream.seek(-(1 << 20), 2)
        digest.update(stream.read())
    return digest.hexdigest()


def stray(folder: Path, root: Path) -> str | None:
    """Why a run's folder must not be read (a link that leads out of `root`, a pipe, a device), or None.

    Checkpoints are not checked, because the app does not read them and they may be on another disk.
    """
    for place in (folder, *(folder / name for name in WITHIN_A_RUN)):
        if place.is_symlink():
            continue  # checked as an entry of its parent
        try:
            names = sorted(
                e.name for e in os.scandir(place) if not e.name.startswith("checkpoint-")
            )
        except OSError:
            continue
        reason = _first_stray(place, names, root.resolve())
        if reason is not None:
            return reason
    return None


def _first_stray(folder: Path, names: Iterable[str], root: Path) -> str | None:
    for name in names:
        path = folder / name
        try:
            if path.is_symlink() and not path.resolve().is_relative_to(root):
                return f"{name} is a link that leads out of the runs folder"
            mode = path.stat().st_mode
        except (OSError, RuntimeError):  # removed meanwhile, or a dangling link
            continue
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            return f"{name} is neither a file nor a folder (a pipe, a socket or a device)"
    return None


def open_inside(file: Path, root: Path) -> BinaryIO:
    """Open a regular file below `root` for reading bytes.

    A pipe in the place of the file raises an error instead of blocking.

    Raises: OSError if the file is missing, not a regular file, or outside `root`.
    """
    if not file.resolve().is_relative_to(root.resolve()):
        raise OSError(f"{file.name} is a link that leads out of the runs folder")
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    stream = os.fdopen(descriptor, "rb", closefd=True)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        stream.close()
        raise OSError(f"{file.name} is not a regular file")
    return stream


def read_inside(file: Path, root: Path, *, at_most: int) -> bytes:
    """Read a regular file below `root`.

    Raises: OSError for the reasons of `open_inside`, or if the file has more than `at_most` bytes.
    """
    with open_inside(file, root) as stream:
        content = stream.read(at_most + 1)
    if len(content) > at_most:
        raise OSError(f"{file.name} has more than {at_most >> 20} MiB")
    return content
