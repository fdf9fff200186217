"""The checkpoint to resume from: the newest complete one, or the one that the user names."""

import json
import os
from pathlib import Path

from toolkit.errors import CheckpointError
from toolkit.runs.replacing import checkpoints, has_finished
from toolkit.runs.run import ADAPTER_FILES, write_json

CONTENTS = "contents.json"  # the files of a checkpoint and their sizes in bytes


def is_requested(wanted: str | bool | None) -> bool:
    """Whether `resume_from_checkpoint`, as the user wrote it, requests a resume."""
    return bool(wanted) and str(wanted).lower() != "false"


def last_checkpoint(run: str | os.PathLike[str], wanted: str | bool | None) -> str | None:
    """The checkpoint to resume from.

    Args:
        run: the run's directory.
        wanted: `resume_from_checkpoint` as the user wrote it: a path, true for the newest complete
            checkpoint (without one the run starts from the beginning), or nothing.

    Raises: CheckpointError if the named checkpoint is missing or incomplete, or an unfinished run
        has only incomplete ones.
    """
    if not is_requested(wanted):
        return None
    if str(wanted).lower() != "true":
        reason = _incomplete(Path(str(wanted)))
        if reason:
            raise CheckpointError(f"{wanted}: cannot resume from it ({reason}); name another one")
        return str(wanted)
    existing = checkpoints(Path(run))
    complete = [f for f in existing if _incomplete(f) is None]
    if existing and not complete and not has_finished(Path(run)):
        raise CheckpointError(
            f"{existing[-1]}: cannot resume from it ({_incomplete(existing[-1])}); remove it, or choose "
            "another output_dir"
        )
    return str(complete[-1]) if complete else None


def list_contents(checkpoint: Path) -> None:
    """Write the names and sizes of a checkpoint's files, so that a partial copy is detected."""
    files = sorted(f for f in checkpoint.rglob("*") if f.is_file() and f.name != CONTENTS)
    sizes = {f.relative_to(checkpoint).as_posix(): f.stat().st_size for f in files}
    write_json(checkpoint / CONTENTS, sizes)


def _incomplete(checkpoint: Path) -> str | None:
    """Why a checkpoint is incomplete, or None; checkpoints of other programs list no contents."""
    for name in (*ADAPTER_FILES, "optimizer.pt", "scheduler.pt", "trainer_state.json"):
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except ValueError:
        return "trainer_state.json is truncated"
    try:
        sizes = dict(json.loads((checkpoint / CONTENTS).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        return f"{CONTENTS} is truncated"
    for name, size in sizes.items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes, expected {size}"
    return None
