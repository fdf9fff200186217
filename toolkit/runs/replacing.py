"""What runs have left in a directory: checkpoints, an ensemble's members, and what a new run puts away."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from toolkit.errors import CheckpointError

MANIFEST = "run.json"
ENSEMBLE = "reward_ensemble"  # recipe of a run whose reward models are runs of their own inside
ASIDE, GIVEN_UP = ".replaced", ".replaced-for-good"
REPLACES = "TOOLKIT_REPLACES_UNFINISHED"
DROPPED_FILE = "dropped_rows.jsonl"  # written while data is read, before a run begins
# of a reward model or of PPO, which a later run may not write over: it has no such role, or is not judged
OF_A_ROLE = ("head.safetensors", "value", "reward_report.json", "calibration.png")


def checkpoints(run: Path) -> list[Path]:
    """A run's checkpoint folders, oldest first."""
    found = (f for f in run.glob("checkpoint-*") if f.name.removeprefix("checkpoint-").isdigit())
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint's name says."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def members(run: Path) -> list[Path]:
    """The folders of an ensemble's reward models, as many as there are; none of another run."""
    if _manifest(run).get("recipe") != ENSEMBLE:
        return []
    return sorted(f for f in run.glob("member-*") if f.name.removeprefix("member-").isdigit())


def has_finished(folder: Path) -> bool:
    """Whether a folder holds a run that says so."""
    return _manifest(folder).get("state") == "finished"


def refuse_unfinished(folder: Path, *, inside: bool = True) -> None:
    """Checkpoints of a run that did not finish, and what an ensemble has so far, are somebody's work.

    Where REPLACES is set in the environment (by a pipeline, whose stage was changed) they give way
    when the next run begins.

    Args:
        inside: look at an ensemble's members, too.

    Raises: CheckpointError where the folder holds such.
    """
    if os.environ.get(REPLACES):
        return
    held = [c.name for c in checkpoints(folder) if not has_finished(folder)]
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


def put_aside(folder: Path, *, of_a_role: bool = False) -> None:
    """Move into a hidden folder what would be mistaken for the next run's, for `remove_aside` to remove.

    That is checkpoints, the last policy of a run that averaged it (`ema_decay`), members, and with
    `of_a_role` what only some recipes write. Moved one by one, so that hardly a crash can meet half
    of it.
    """
    put_back(folder)
    names = ("last", *(OF_A_ROLE if of_a_role else ()))
    own = [f for f in map(folder.joinpath, names) if f.is_file() or _is_a_roles(f)]
    for old in (*checkpoints(folder), *members(folder), *own):
        (folder / ASIDE).mkdir(exist_ok=True)
        os.replace(old, folder / ASIDE / old.name)


def put_back(folder: Path) -> None:
    """Undo `put_aside`, as far as nothing new stands in the place."""
    for old in (folder / ASIDE).glob("*"):
        if not (folder / old.name).exists():
            os.replace(old, folder / old.name)
    remove_aside(folder)


def give_up_aside(folder: Path) -> None:
    """From here on nothing is put back, even if it cannot be removed."""
    if (folder / ASIDE).is_dir():
        shutil.rmtree(folder / GIVEN_UP, ignore_errors=True)
        os.replace(folder / ASIDE, folder / GIVEN_UP)


def remove_aside(folder: Path) -> None:
    """Remove what was put aside."""
    for name in (ASIDE, GIVEN_UP):
        shutil.rmtree(folder / name, ignore_errors=True)


def hold_dropped(folder: Path) -> None:
    """Keep a finished run's list of dropped rows where the next run's will not be written."""
    listed, held = folder / DROPPED_FILE, folder / f".{DROPPED_FILE}"
    if listed.is_file() and not held.exists():  # else a start was killed, and what it holds counts
        os.replace(listed, held)


def give_back_dropped(folder: Path) -> None:
    """The finished run's list again, in place of that of a run that never began."""
    listed, held = folder / DROPPED_FILE, folder / f".{DROPPED_FILE}"
    listed.unlink(missing_ok=True)
    if held.is_file():
        os.replace(held, listed)


def forget_dropped(folder: Path) -> None:
    """Remove the list of a run that is replaced."""
    (folder / f".{DROPPED_FILE}").unlink(missing_ok=True)


def _is_a_roles(folder: Path) -> bool:
    """Whether a folder holds an adapter or a head, and is no run of somebody's."""
    files = ("adapter_config.json", "head.safetensors")
    return any((folder / f).is_file() for f in files) and not (folder / MANIFEST).exists()


def _manifest(folder: Path) -> dict[str, Any]:
    """What a manifest says; nothing where it is missing or damaged."""
    file = folder / MANIFEST
    try:
        return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}
    except (OSError, ValueError, TypeError, RecursionError):
        return {}
