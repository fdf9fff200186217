"""The checkpoint that a run goes on from: the newest one that is whole, or the one that was named."""

import json
import os
from pathlib import Path

from toolkit.errors import CheckpointError
from toolkit.runs.replacing import checkpoints, has_finished
from toolkit.runs.run import ADAPTER_FILES, write_json

CONTENTS = "contents.json"  # of a checkpoint: its files and their sizes, bytes


def asked(wanted: str | bool | None) -> bool:
    """Whether `resume_from_checkpoint`, as the user wrote it, asks to go on from something."""
    return bool(wanted) and str(wanted).lower() != "false"


def last_checkpoint(run: str | os.PathLike[str], wanted: str | bool | None) -> str | None:
    """The checkpoint to resume from.

    Args:
        run: the run's directory.
        wanted: `resume_from_checkpoint` as the user wrote it: a path, true for the newest complete
            checkpoint (none yet: start from the beginning), or nothing.

    Raises: CheckpointError where a named checkpoint is missing or incomplete, or all are of a run
        that did not finish.
    """
    if not asked(wanted):
        return None
    if str(wanted).lower() != "true":
        reason = _incomplete(Path(str(wanted)))
        if reason:
            raise CheckpointError(f"{wanted}: cannot resume from it ({reason})")
        return str(wanted)
    found = checkpoints(Path(run))
    complete = [f for f in found if _incomplete(f) is None]
    if found and not complete and not has_finished(Path(run)):
        raise CheckpointError(
            f"{found[-1]}: cannot resume from it ({_incomplete(found[-1])}); remove it, or choose "
            "another output_dir"
        )
    return str(complete[-1]) if complete else None


def list_contents(checkpoint: Path) -> None:
    """Write down what a checkpoint consists of, so that one half copied or half removed is known."""
    files = sorted(f for f in checkpoint.rglob("*") if f.is_file() and f.name != CONTENTS)
    sizes = {f.relative_to(checkpoint).as_posix(): f.stat().st_size for f in files}
    write_json(checkpoint / CONTENTS, sizes)


def _incomplete(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be resumed from; those that others have written list no contents."""
    for name in (*ADAPTER_FILES, "optimizer.pt", "scheduler.pt", "trainer_state.json"):
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except ValueError:
        return "trainer_state.json is cut short"
    try:
        sizes = dict(json.loads((checkpoint / CONTENTS).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        return f"{CONTENTS} is cut short"
    for name, size in sizes.items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes, and had {size}"
    return None
