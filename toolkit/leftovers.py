"""What an earlier run has left in a directory: its checkpoints, and what a new run clears away."""

import shutil
from pathlib import Path

from toolkit.errors import CheckpointError


def checkpoints(run: Path) -> list[Path]:
    """A run's checkpoint folders, oldest first."""
    found = (f for f in run.glob("checkpoint-*") if f.name.split("-")[1].isdigit())
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint's name says."""
    return int(checkpoint.name.split("-")[1])


def refuse_unfinished(folder: Path) -> None:
    """Checkpoints of a run that did not finish are somebody's work.

    Raises: CheckpointError where the folder holds such.
    """
    found = checkpoints(folder)
    if found and not _finished(folder):
        raise CheckpointError(
            f"{folder} holds {found[-1].name} of a run that did not finish: continue it with "
            "--resume_from_checkpoint true, choose another output_dir, or remove the folder"
        )


def clear(folder: Path) -> None:
    """Remove what would be mistaken for the next run's: a finished run's checkpoints, the last policy
    of one that averaged it (`ema_decay`), and an ensemble's finished members."""
    from toolkit.runs import ADAPTER_FILES, MANIFEST  # which clears by this module

    members = (f for f in folder.glob("member-*") if _finished(f))
    last = folder / "last"
    averaged = (last / ADAPTER_FILES[0]).is_file() and not (last / MANIFEST).exists()
    for old in (*checkpoints(folder), *members, *([last] if averaged else [])):
        shutil.rmtree(old)


def _finished(folder: Path) -> bool:
    from toolkit.runs import Run

    try:
        return Run.load(folder).state == "finished"
    except CheckpointError:
        return False
