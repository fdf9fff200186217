"""Checks of the runs that options name, by their files, before anything is loaded."""

import contextlib
import os
from pathlib import Path
from typing import Any

from toolkit.errors import CheckpointError
from toolkit.reading import read_mapping
from toolkit.runs.integrity import WITHIN_A_RUN, changed
from toolkit.runs.locking import LOCK
from toolkit.runs.replacing import members as list_members
from toolkit.runs.resuming import adapter_damage
from toolkit.runs.run import ENSEMBLE, HEAD_FILE, MANIFEST, Run


def is_finished(path: str | os.PathLike[str]) -> bool:
    """Whether the path is a finished run with a complete adapter."""
    try:
        run = Run.load(path)
    except CheckpointError:
        return False
    return run.state == "finished" and run.adapter_problem() is None


def require_adapter(run: str, option: str) -> None:
    """Check that the directory that an option names holds a complete adapter.

    A checkpoint folder or an adapter made elsewhere is accepted. An unfinished run is rejected, because its
    adapter may be of an earlier run.

    Raises: CheckpointError that names the missing or changed file.
    """
    reason = Run(Path(run), "").adapter_problem() if Path(run).is_dir() else "no such directory"
    if reason and (Path(run) / MANIFEST).is_file() and Run.load(run).recipe == ENSEMBLE:
        reason = f"it is an ensemble; name a member, such as {run}/member-0"
    if reason:
        raise CheckpointError(f"{option}: {run} holds no adapter ({reason})")
    if (Path(run) / MANIFEST).is_file() and (state := Run.load(run).state) != "finished":
        raise CheckpointError(
            f"{option}: {run} is {state}, not finished; continue it with "
            "--resume_from_checkpoint true, or name one of its checkpoints"
        )
    require_unchanged(Path(run))


def require_unchanged(folder: Path) -> None:
    """Check by hashes that the adapter of a finished run, role folder or checkpoint is unchanged.

    Raises: CheckpointError that names the changed file.
    """
    reason, run = adapter_damage(folder), folder
    if folder.name in WITHIN_A_RUN and not (folder / MANIFEST).is_file():
        run = folder.parent
    if reason is None and (run / MANIFEST).is_file():
        reason = changed(run, Run.load(run).weights)
    if reason is not None:
        raise CheckpointError(f"{run}: {reason}")


def require_reward_models(path: str) -> list[str]:
    """The directories of the reward models in a run: the run's own, or those of an ensemble's members.

    Raises: CheckpointError for a run that is missing, unfinished, or not a reward model.
    """
    members = [path]
    if (Path(path) / MANIFEST).is_file() and (run := Run.load(path)).recipe == ENSEMBLE:
        if run.state != "finished":
            raise CheckpointError(
                f"{path}: this ensemble is {run.state}, not finished; continue it with "
                "--resume_from_checkpoint true"
            )
        size, found = run.config.get("ensemble"), len(list_members(run.path))
        if size != found:
            raise CheckpointError(
                f"{path}: `ensemble` in {MANIFEST} is {size}, but the folder holds {found} members; put "
                "the others back, or train again"
            )
        members = [str(run.path / f"member-{i}") for i in range(found)]
    for member in members:
        require_adapter(member, "reward_model")
        if not (Path(member) / HEAD_FILE).is_file():
            raise CheckpointError(
                f"reward_model: {member} has no {HEAD_FILE}, so it is not a reward model; use "
                "a run of `toolkit reward`"
            )
    return members


def made_with(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The config of the run that created an adapter, found through the runs that continued its training.

    Returns: an empty dictionary if that is unknown, as for an adapter made elsewhere.
    """
    visited: set[str] = set()
    while str(path) not in visited:
        visited.add(str(path))
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


def base_options(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The options that selected the base of an adapter, from the config of the adapter's run.

    Returns: for an adapter made elsewhere, only the base's name from its config; empty without a name.
    """
    folder = Path(path)
    if folder.name.startswith("checkpoint-") and not (folder / MANIFEST).is_file():
        folder = folder.parent
    try:
        return Run.load(folder).config
    except CheckpointError:
        name = "base_model_name_or_path"
        with contextlib.suppress(OSError, ValueError):
            config = read_mapping(Path(path) / "adapter_config.json", {name: str | None})
            return {"model_name_or_path": config.get(name)}
    return {}


def require_new(path: str | os.PathLike[str], *, recipe: str) -> None:
    """Check that a directory is missing or empty, or holds an unfinished run of this recipe.

    Raises: CheckpointError if anything would be overwritten.
    """
    folder = Path(path)
    if not folder.exists() or (folder.is_dir() and all(f.name == LOCK for f in folder.iterdir())):
        return
    if (folder / MANIFEST).is_file():
        run = Run.load(folder)
        if run.recipe == recipe and run.state != "finished":
            return
    raise CheckpointError(
        f"output_dir: {folder} is not empty, and its content would be overwritten; choose another"
    )
