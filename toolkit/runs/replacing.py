"""Replaces an earlier run in a directory: its checkpoints, ensemble members and role files."""

import os
import shutil
from pathlib import Path
from typing import Any

from toolkit.errors import CheckpointError
from toolkit.reading import read_mapping

MANIFEST = "run.json"
ENSEMBLE = "reward_ensemble"  # recipe of a run whose reward models are runs in its subfolders
SET_ASIDE, DISCARDED = ".replaced", ".replaced-for-good"
INCOMING = ".incoming"  # folder in which a checkpoint is written before it gets its name
REPLACES = "TOOLKIT_REPLACES_UNFINISHED"
DROPPED_FILE = "dropped_rows.jsonl"  # written while data is read, before a run begins
# written by some recipes only, so that a later run of another recipe does not overwrite them
ROLE_FILES = ("head.safetensors", "value", "reward_report.json", "calibration.png")
# `toolkit sample` appends to the first one; the others are made from it
STREAMED, MADE_FROM_STREAMED = "answers.jsonl", ("best.jsonl", "pairs.jsonl")


def checkpoints(run: Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first."""
    folders = (
        f for f in run.glob("checkpoint-*") if f.name.removeprefix("checkpoint-").isdecimal()
    )
    return sorted(folders, key=step_of)


def unfinished(run: Path) -> list[Path]:
    """What a run can continue from: its checkpoints, oldest first, or the file that it appends to."""
    streamed = run / STREAMED
    is_streamed = streamed.is_file() and (run / MANIFEST).is_file()
    return checkpoints(run) or ([streamed] if is_streamed else [])


def step_of(checkpoint: Path) -> int:
    """The step number in a checkpoint's name."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def members(run: Path) -> list[Path]:
    """The folders of an ensemble's reward models; empty for any other run."""
    if _manifest(run).get("recipe") != ENSEMBLE:
        return []
    return sorted(f for f in run.glob("member-*") if f.name.removeprefix("member-").isdecimal())


def has_finished(folder: Path) -> bool:
    """Whether a folder holds a run in state "finished"."""
    return _manifest(folder).get("state") == "finished"


def refuse_unfinished(folder: Path, *, inside: bool = True) -> None:
    """Raise an error if a folder holds an unfinished run's checkpoints or ensemble members.

    If REPLACES is set in the environment (by a pipeline whose stage was changed), there is no error: they
    are replaced when the next run begins.

    Args:
        inside: also check the members of an ensemble.

    Raises: CheckpointError if the folder holds such files.
    """
    if os.environ.get(REPLACES):
        return
    held = [c.name for c in unfinished(folder) if not has_finished(folder)]
    for member in members(folder) if inside else ():
        if not has_finished(folder) and has_finished(member):
            held.append(member.name)
        elif not has_finished(member):
            held += [f"{member.name}/{c.name}" for c in checkpoints(member)]
    if held:
        raise CheckpointError(
            f"{folder} holds {held[-1]} of a run that did not finish: continue it with "
            "--resume_from_checkpoint true, choose another output_dir, or remove the folder"
        )


def set_aside(folder: Path, *, roles: bool = False) -> None:
    """Move files that the next run must not inherit into a hidden folder; see `remove_set_aside`.

    These are checkpoints, `last/` of a run with `ema_decay`, ensemble members and, if `roles` is set, the
    files that only some recipes write. Each move is atomic.
    """
    put_back(folder)
    names = ("last", *((*ROLE_FILES, STREAMED, *MADE_FROM_STREAMED) if roles else ()))
    own = [f for f in map(folder.joinpath, names) if f.is_file() or _is_role(f)]
    for old in (*checkpoints(folder), *members(folder), *own):
        (folder / SET_ASIDE).mkdir(exist_ok=True)
        os.replace(old, folder / SET_ASIDE / old.name)


def put_back(folder: Path) -> None:
    """Undo `set_aside`, except for files that a new file has replaced."""
    for old in (folder / SET_ASIDE).glob("*"):
        if not (folder / old.name).exists():
            os.replace(old, folder / old.name)
    remove_set_aside(folder)


def discard_set_aside(folder: Path) -> None:
    """Make `set_aside` final: `put_back` then restores nothing, even before the removal."""
    if (folder / SET_ASIDE).is_dir():
        shutil.rmtree(folder / DISCARDED, ignore_errors=True)
        os.replace(folder / SET_ASIDE, folder / DISCARDED)


def remove_set_aside(folder: Path) -> None:
    """Remove the files that were set aside."""
    for name in (SET_ASIDE, DISCARDED):
        shutil.rmtree(folder / name, ignore_errors=True)


def remove_leftovers(folder: Path, *, locked: bool = True) -> None:
    """Remove temporary files of processes that were killed while they wrote them.

    Args:
        locked: remove all such files, because this process holds the lock and writes nothing yet.
    """
    if locked:
        shutil.rmtree(folder / INCOMING, ignore_errors=True)
    for file in folder.glob(".*.[0-9]*"):  # a temporary file's name ends with the process id
        id = file.suffix[1:]
        if id.isdecimal() and file.is_file() and (locked or not _is_running(int(id))):
            file.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    """Whether a process with this id is running."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def hold_dropped(folder: Path) -> None:
    """Move a finished run's list of dropped rows away, so that the next run does not overwrite it."""
    listed, held = folder / DROPPED_FILE, folder / f".{DROPPED_FILE}"
    # if both exist, an earlier start was killed: keep what is held
    if listed.is_file() and not held.exists():
        os.replace(listed, held)


def restore_dropped(folder: Path) -> None:
    """Restore the finished run's list of dropped rows if the next run never began."""
    listed, held = folder / DROPPED_FILE, folder / f".{DROPPED_FILE}"
    listed.unlink(missing_ok=True)
    if held.is_file():
        os.replace(held, listed)


def remove_held_dropped(folder: Path) -> None:
    """Remove the moved list of dropped rows of a replaced run."""
    (folder / f".{DROPPED_FILE}").unlink(missing_ok=True)


def _is_role(folder: Path) -> bool:
    """Whether a folder holds an adapter or a head but is not a run."""
    files = ("adapter_config.json", "head.safetensors")
    return any((folder / f).is_file() for f in files) and not (folder / MANIFEST).exists()


def _manifest(folder: Path) -> dict[str, Any]:
    """The content of run.json; empty if it is missing or damaged."""
    file = folder / MANIFEST
    try:
        return read_mapping(file) if file.is_file() else {}
    except (OSError, ValueError):
        return {}
