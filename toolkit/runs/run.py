"""A run: one execution of a recipe, its directory, its manifest `run.json`, and its lineage."""

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from toolkit.errors import CheckpointError
from toolkit.runs import replacing as leftovers
from toolkit.runs.integrity import hashes
from toolkit.runs.locking import LOCK, own
from toolkit.runs.provenance import commit, plain, versions

SCHEMA = 1
ENSEMBLE, MANIFEST = leftovers.ENSEMBLE, leftovers.MANIFEST
WEIGHTS_FILE = "adapter_model.safetensors"
ADAPTER_FILES = ("adapter_config.json", WEIGHTS_FILE)


@dataclass
class Run:
    """A run directory and what its `run.json` says.

    `state` is "running", "finished" or "failed"; `parents` maps what a parent was for
    ("adapter", "reward") to its directory; `base` is the fingerprint of the base model; `weights`
    maps the files that answers depend on to their sha256 when the run finished.
    """

    path: Path
    recipe: str
    state: str = "running"
    config: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    base: dict[str, Any] = field(default_factory=dict)
    parents: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    git_commit: str | None = None
    started: float = 0.0
    seconds: float | None = None
    results: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)
    error: str | None = None
    _lock: IO[str] | None = field(default=None, repr=False, compare=False)
    _replaced: "Run | None" = field(default=None, repr=False, compare=False)  # until `begin`
    _fresh: bool = field(default=False, repr=False, compare=False)  # likewise
    _entered: bool = field(default=False, repr=False, compare=False)  # the block's end releases

    @classmethod
    def start(
        cls,
        path: str | os.PathLike[str],
        *,
        recipe: str,
        configs: Iterable[Any] = (),
        parents: dict[str, str | None] | None = None,
        resume: str | None = None,
    ) -> "Run":
        """Create the directory and write a manifest in state "running".

        A run in the directory that finished, or has checkpoints that may be replaced, stays as it is
        until `begin`: most of what goes wrong does so while models and data are loaded.

        Args:
            resume: the checkpoint that the run continues from, or the folder whose members stay.

        Raises: CheckpointError where the directory holds checkpoints of a run that did not finish,
            another process writes to it, or it cannot be made.
        """
        lock, found = own(Path(path)), None
        with contextlib.suppress(CheckpointError):
            found = cls.load(path)
        if resume is None or not _within(Path(path), Path(resume)):
            leftovers.refuse_unfinished(Path(path))
        elif found is not None and found.recipe != recipe:
            raise CheckpointError(
                f"{path}: holds a run of {found.recipe}, from which {recipe} cannot go on; choose "
                "another output_dir"
            )
        merged: dict[str, Any] = {}
        for config in configs:
            merged |= plain(config)
        run = cls(
            Path(path),
            recipe,
            config=merged,
            seed=merged.get("seed"),
            parents={k: str(v) for k, v in (parents or {}).items() if v is not None},
            versions=versions(),
            git_commit=commit(),
            started=time.time(),
            _lock=lock,
        )
        run._fresh = resume is None
        work = leftovers.checkpoints(run.path) or leftovers.members(run.path)
        unfinished = resume is None and bool(work)
        if found is not None and (found.state == "finished" or unfinished):
            run._replaced = found
            leftovers.put_back(run.path)  # what a run put aside that died as it began
            leftovers.hold_dropped(run.path)
        else:
            run.save()
        return run

    def begin(self) -> None:
        """Take the directory over, now that there is something to write; again it does nothing.

        A finished run in it is no longer one. Unless this run goes on from it, nothing of it stays
        that would be mistaken for this run's.
        """
        old, fresh = self._replaced, self._fresh
        if fresh:
            if old is not None:
                made = time.strftime("%Y-%m-%d %H:%M", time.localtime(old.started))
                print(f"{self.path}: replaces {old._described()} of {made}", flush=True)
            try:
                leftovers.put_aside(self.path, of_a_role=old is not None)
                self.save()
                leftovers.give_up_aside(self.path)
            except BaseException:  # such as a full disk: the finished run stays one
                leftovers.put_back(self.path)
                raise
        elif old is not None:
            self.save()
        self._replaced, self._fresh = None, False
        leftovers.remove_aside(self.path)
        leftovers.forget_dropped(self.path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Run":
        """Read a run directory's manifest.

        Raises: CheckpointError where it is missing or damaged, saying which.
        """
        file = Path(path) / "run.json"
        if file.exists() and not file.is_file():  # reading a pipe would wait for ever
            raise CheckpointError(f"{file}: expected a file, found a folder, a pipe or a device")
        try:
            saved = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise CheckpointError(f"{path}: not a run directory (it has no run.json)") from error
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{file}: damaged manifest ({error})") from error
        known = cls._written()
        if not isinstance(saved, dict) or saved.get("schema") != SCHEMA or "recipe" not in saved:
            raise CheckpointError(f"{file}: expected a manifest of schema {SCHEMA} with a recipe")
        return cls(Path(path), **{k: v for k, v in saved.items() if k in known})

    def save(self) -> None:
        """Write `run.json` beside and rename it, so that a reader never sees half of it."""
        content = {name: getattr(self, name) for name in self._written()}
        write_json(self.path / MANIFEST, {"schema": SCHEMA} | content)

    @classmethod
    def _written(cls) -> list[str]:
        """The fields that a manifest holds."""
        names = (f.name for f in dataclasses.fields(cls))
        return [name for name in names if name != "path" and not name.startswith("_")]

    def finish(self, **results: Any) -> "Run":
        """Mark the run finished and keep what it measured."""
        self.begin()
        weights = hashes(self.path)
        self.state, self.error = "finished", None
        self.seconds = round(time.time() - self.started, 2)
        self.results |= results
        self.weights = weights
        self.save()
        self._write_card()
        if not self._entered:
            self._release()
        return self

    def _write_card(self) -> None:
        """README.md: what made this directory, for whoever finds it."""
        parents = "".join(f"- {what}: `{path}`\n" for what, path in self.parents.items())
        base = self.base.get("id", "unknown")
        text = (
            f"# {self.name}\n\nMade by `recipes/{self.recipe}.py` on the base `{base}`, "
            f"seed {self.seed}.\n\n{parents}\n"
            f"```json\n{json.dumps(self.results, indent=2, default=str)}\n```\n\n"
            "The whole configuration and all versions are in `run.json`.\n"
        )
        (self.path / "README.md").write_text(text, encoding="utf-8")

    def fail(self, error: BaseException) -> None:
        """Mark the run failed with the reason; its checkpoints stay.

        Before it has begun, a finished run in the directory stays what it is.
        """
        if self._replaced is not None:
            leftovers.give_back_dropped(self.path)
            print(f"{self.path}: {self._replaced._described()} is as it was", flush=True)
            self._release()
            return
        self.state, self.error = "failed", f"{type(error).__name__}: {error}"
        self.seconds = round(time.time() - self.started, 2)
        with contextlib.suppress(OSError):  # a full disk: the reason itself shall be seen
            self.save()
        self._release()

    def _described(self) -> str:
        state = "finished" if self.state == "finished" else "unfinished"
        return f"the {state} {self.recipe} run"

    def _release(self) -> None:
        """Let another process write to the directory."""
        if self._lock is not None:
            self._lock.close()

    def __enter__(self) -> "Run":
        self._entered = True
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None and self.state != "finished":
            self.fail(error)
        self._release()

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.path.name

    def adapter_problem(self) -> str | None:
        """Why this run has no adapter that could be loaded, or None where it has one."""
        for name in ADAPTER_FILES:
            file = self.path / name
            if not file.is_file():
                pickled = name.endswith(".safetensors") and file.with_suffix(".bin").exists()
                refused = "; adapter_model.bin is a pickle, which is never opened"
                return f"{name} is missing{refused if pickled else ''}"
            if file.stat().st_size == 0:
                return f"{name} is empty"
        return None

    def metrics(self) -> list[dict[str, Any]]:
        """The logged steps of `metrics.jsonl`; a last line cut short by a crash is left out."""
        file = self.path / "metrics.jsonl"
        rows = []
        for line in file.read_bytes().splitlines() if file.is_file() else ():
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
        return rows


def _within(folder: Path, resume: Path) -> bool:
    """Whether what a run goes on from is its folder's own: a checkpoint in it, or the folder itself."""
    return folder.resolve() in (resume.resolve(), resume.parent.resolve())


def require_new(path: str | os.PathLike[str], *, recipe: str) -> None:
    """Check that a directory is empty or not there, or holds what this recipe did not finish.

    Raises: CheckpointError where anything would be overwritten.
    """
    folder = Path(path)
    if not folder.exists() or (folder.is_dir() and all(f.name == LOCK for f in folder.iterdir())):
        return
    if (folder / MANIFEST).is_file():
        run = Run.load(folder)
        if run.recipe == recipe and run.state != "finished":
            return
    raise CheckpointError(
        f"output_dir: {folder} is not empty, and nothing is overwritten; choose another"
    )


def write_json(path: Path, content: Any) -> None:
    """Write JSON beside `path` and rename: a crash leaves the old file or the new one, whole."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    text = json.dumps(content, indent=2, ensure_ascii=False, default=str)
    try:
        with beside.open("w", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
