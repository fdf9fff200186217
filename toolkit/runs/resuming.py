"""Finds the checkpoint to resume from: the newest undamaged one, or the one that the user names."""

import os
import zipfile
from pathlib import Path
from typing import Any

from safetensors import safe_open

from toolkit.errors import CheckpointError
from toolkit.reading import read_json, read_mapping
from toolkit.runs.integrity import HASHED, sha256
from toolkit.runs.replacing import checkpoints, has_finished
from toolkit.runs.run import ADAPTER_FILES, write_json

CONTENTS = "contents.json"  # of a checkpoint: its files with their bytes and sha256
LOSS_FILE = "loss_since_log.json"
REQUIRED = (*ADAPTER_FILES, "optimizer.pt", "scheduler.pt", "trainer_state.json")

MAX_STATE_BYTES = 256 << 20  # of trainer_state.json, which holds all logged rows


def is_requested(wanted: str | bool | None) -> bool:
    """Whether `resume_from_checkpoint`, as the user wrote it, requests a resume."""
    return bool(wanted) and str(wanted).lower() != "false"


def last_checkpoint(run: str | os.PathLike[str], wanted: str | bool | None) -> str | None:
    """The checkpoint to resume from; damaged newer checkpoints are reported and skipped.

    Args:
        run: the run's directory.
        wanted: `resume_from_checkpoint` as the user wrote it: a path; true for the newest undamaged
            checkpoint (without a checkpoint, the run starts from the beginning); or nothing.

    Raises: CheckpointError if the named checkpoint is missing or damaged, or if all checkpoints of an
        unfinished run are damaged.
    """
    if not is_requested(wanted):
        return None
    if str(wanted).lower() != "true":
        if reason := damage(Path(str(wanted))):
            raise CheckpointError(
                f"{wanted}: cannot resume from it ({reason}); name another checkpoint, or let "
                "--resume_from_checkpoint true choose the newest undamaged one"
            )
        return str(wanted)
    existing = checkpoints(Path(run))
    for checkpoint in reversed(existing):
        reason = damage(checkpoint)
        if reason is None:
            return str(checkpoint)
        print(f"{checkpoint}: cannot resume from it ({reason})", flush=True)
    if existing and not has_finished(Path(run)):
        raise CheckpointError(
            f"{existing[-1]}: cannot resume from it ({damage(existing[-1])}), and no older checkpoint is "
            "undamaged; remove the damaged ones, or choose another output_dir"
        )
    return None


def list_contents(checkpoint: Path) -> None:
    """Record size and hash of a checkpoint's files, so that partial copies and damage are detected."""
    files = sorted(f for f in checkpoint.rglob("*") if f.is_file() and f.name != CONTENTS)
    contents = {
        f.relative_to(checkpoint).as_posix(): {"bytes": f.stat().st_size, "sha256": sha256(f)}
        for f in files
    }
    write_json(checkpoint / CONTENTS, contents)


def damage(checkpoint: Path) -> str | None:
    """The reason why a checkpoint is incomplete or damaged, or None."""
    for name in REQUIRED:
        if not (checkpoint / name).is_file():
            only = name == "optimizer.pt" and "; was it saved with `save_only_model`?"
            return f"{name} is missing{only or ''}"
    contents = _contents(checkpoint)
    if contents is None:
        if (checkpoint / LOSS_FILE).is_file():
            return f"{CONTENTS} is missing"
        files = (f for f in checkpoint.rglob("*") if f.is_file())  # of another program
        contents = {f.relative_to(checkpoint).as_posix(): {} for f in files}
    if unlisted := [name for name in REQUIRED if name not in contents]:
        return f"{CONTENTS} is damaged: it does not list {unlisted[0]}"
    problems = (_file_damage(checkpoint, name, entry) for name, entry in contents.items())
    return next((problem for problem in problems if problem), None)


def adapter_damage(checkpoint: Path) -> str | None:
    """How a checkpoint's adapter was changed, or None; other files of the checkpoint may be missing."""
    contents = _contents(checkpoint) or {}
    problems = (_file_damage(checkpoint, n, contents[n]) for n in HASHED if n in contents)
    return next((problem for problem in problems if problem), None)


def _contents(checkpoint: Path) -> dict[str, Any] | None:
    """The entries of `contents.json`: empty if the file is damaged, None if it is missing."""
    file = checkpoint / CONTENTS
    try:
        return read_mapping(file) if file.is_file() else None
    except (OSError, ValueError):
        return {}


def _file_damage(checkpoint: Path, name: str, recorded: Any) -> str | None:
    """How a file differs from its record; if the record has no hash, why the file cannot be read.

    Args:
        recorded: an entry of `contents.json`; an earlier version recorded only the number of bytes.
    """
    file, entry = checkpoint / name, {"bytes": recorded} if isinstance(recorded, int) else recorded
    if not isinstance(entry, dict):
        return f"{CONTENTS} is damaged: its entry of {name} is not a mapping"
    try:
        if entry and not file.is_file():
            return f"{name} is missing"
        size = file.stat().st_size
        if entry.get("bytes", size) != size:
            return f"{name} has {size} bytes, expected {entry['bytes']}"
        if "sha256" not in entry:
            _read(file)
        elif sha256(file) != entry["sha256"]:
            return f"{name} was changed after it was written: its sha256 differs"
    except Exception as error:  # each reader raises its own errors
        return f"{name} is damaged: {type(error).__name__}: {error}"
    return None


def _read(file: Path) -> None:
    """Raise an error for a JSON, torch or safetensors file that cannot be read, without unpickling."""
    if file.suffix == ".json":
        read_json(file, at_most=MAX_STATE_BYTES)
    elif file.suffix in (".pt", ".pth"):
        with zipfile.ZipFile(file) as archive:
            if bad := archive.testzip():  # compares the checksum of each record
                raise ValueError(f"wrong checksum of {bad}")
    elif file.suffix == ".safetensors":
        with safe_open(file, framework="numpy"):
            pass
