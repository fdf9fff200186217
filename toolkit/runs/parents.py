"""Runs that an option names, looked at cheaply before anything is loaded."""

import os
from pathlib import Path
from typing import Any

from toolkit.errors import CheckpointError
from toolkit.runs.run import ENSEMBLE, MANIFEST, Run


def is_finished(path: str | os.PathLike[str]) -> bool:
    """Whether there is a run that finished, with an adapter that is whole."""
    try:
        run = Run.load(path)
    except CheckpointError:
        return False
    return run.state == "finished" and run.adapter_problem() is None


def reward_models(path: str) -> list[str]:
    """The reward model's run, or those of an ensemble.

    Raises: CheckpointError for an ensemble that is not finished.
    """
    if not (Path(path) / MANIFEST).is_file() or Run.load(path).recipe != ENSEMBLE:
        return [path]
    run = Run.load(path)
    if run.state != "finished":
        raise CheckpointError(
            f"{path}: this ensemble is not finished but {run.state}; continue it with "
            "--resume_from_checkpoint true"
        )
    return [str(run.path / f"member-{i}") for i in range(run.config["ensemble"])]


def require_adapter(run: str, option: str) -> None:
    """Check cheaply that a run named by an option holds an adapter that is whole.

    A checkpoint's folder, or an adapter made elsewhere, will do; a run that did not finish will
    not, because its adapter may be older than its manifest.

    Raises: CheckpointError saying what is missing.
    """
    reason = Run(Path(run), "").adapter_problem() if Path(run).is_dir() else "no such directory"
    if reason and (Path(run) / MANIFEST).is_file() and Run.load(run).recipe == ENSEMBLE:
        reason = f"it is an ensemble; name one of its members, such as {run}/member-0"
    if reason:
        raise CheckpointError(f"{option}: {run} holds no adapter ({reason})")
    if (Path(run) / MANIFEST).is_file() and (state := Run.load(run).state) != "finished":
        raise CheckpointError(
            f"{option}: {run} is not finished but {state}; continue it with "
            "--resume_from_checkpoint true, or name one of its checkpoints"
        )


def made_with(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The configuration of the run that made an adapter: the first of those that trained it.

    Returns: nothing where that is not known, as of an adapter made elsewhere.
    """
    seen: set[str] = set()
    while str(path) not in seen:
        seen.add(str(path))
        folder = Path(path)
        if folder.name.startswith("checkpoint-") and not (folder / MANIFEST).is_file():
            folder = folder.parent
        try:
            run = Run.load(folder)
        except CheckpointError:
            return {}
        if "adapter" not in run.parents:
            return run.config
        path = run.parents["adapter"]
    return {}
