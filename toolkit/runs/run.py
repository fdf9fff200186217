"""A run: one execution of a recipe, with its directory and its manifest `run.json`."""

import contextlib
import dataclasses
import json
import os
import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from filelock import FileLock

from toolkit.errors import CheckpointError, Interrupted
from toolkit.reading import check_types, parse_json, read_bytes, read_mapping
from toolkit.runs import replacing
from toolkit.runs.integrity import hashes
from toolkit.runs.locking import lock_folder
from toolkit.runs.provenance import (
    CARD,
    commit,
    model_card,
    plain,
    refuse_other_card,
    versions,
)
from toolkit.runs.settings import changed_options, hash_adapter, kept
from toolkit.runs.signals import (
    interrupt_of,
    raise_interrupt,
    receive_signals,
    restore_handlers,
    signal_of,
)

SCHEMA = 1
ENSEMBLE, MANIFEST = replacing.ENSEMBLE, replacing.MANIFEST
WEIGHTS_FILE = "adapter_model.safetensors"
HEAD_FILE = "head.safetensors"  # the head of a reward model or a value
MAX_METRICS_BYTES = 256 << 20
MAX_SECONDS = 1e11  # of a manifest's times, since 1970; a date in the year 5138
CONVERT_ADAPTER = (
    "convert it in Python: safetensors.torch.save_file(torch.load('adapter_model.bin', "
    "weights_only=True), 'adapter_model.safetensors')"
)
ADAPTER_FILES = ("adapter_config.json", WEIGHTS_FILE)


@dataclass
class Run:
    """A run directory and the content of its `run.json`.

    `state` is "running", "finished" or "failed"; `parents` maps a purpose ("adapter", "reward") to the
    parent's directory; `base` is the fingerprint of the base model; `weights` maps each file that answers
    depend on to its sha256 at the end of the run; `inputs` identifies the training data and the parents by
    their content; `resumed` lists each resume with the options that changed.
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
    inputs: dict[str, str] = field(default_factory=dict)
    resumed: list[dict[str, Any]] = field(default_factory=list)
    error: str | None = None
    # time.monotonic() when this process started the run
    _clock: float | None = field(default=None, repr=False, compare=False)
    _lock: FileLock | None = field(default=None, repr=False, compare=False)
    # the run in the directory that this one replaces, until `begin`
    _replaced: "Run | None" = field(default=None, repr=False, compare=False)
    # the checkpoint to resume from, or the ensemble's folder, until `begin`
    _resume: str | None = field(default=None, repr=False, compare=False)
    _begun: bool = field(default=False, repr=False, compare=False)
    _in_block: bool = field(default=False, repr=False, compare=False)  # `__exit__` will unlock
    # the signal handlers before the block
    _handlers: dict[int, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def start(
        cls,
        path: str | os.PathLike[str],
        *,
        recipe: str,
        configs: Iterable[Any] = (),
        parents: Mapping[str, str | None] | None = None,
        resume: str | None = None,
    ) -> "Run":
        """Create the directory and write a manifest in state "running".

        An earlier run in the directory stays unchanged until `begin`, because most errors occur while
        models and data are loaded. It may be finished, resumed, or have checkpoints that may be replaced.

        Args:
            resume: the checkpoint to resume from, or the file of `STREAMED` to append to; or an ensemble's
                folder, whose members are kept.

        Raises: CheckpointError if the directory holds checkpoints of an unfinished run, if another process
            writes to it, or if it cannot be created.
        """
        lock = lock_folder(Path(path))
        try:
            return cls._start(Path(path), lock, recipe, configs, parents or {}, resume)
        except BaseException:
            lock.release()
            raise

    @classmethod
    def _start(
        cls,
        path: Path,
        lock: FileLock,
        recipe: str,
        configs: Iterable[Any],
        parents: Mapping[str, str | None],
        resume: str | None,
    ) -> "Run":
        found = None
        if not (path / MANIFEST).exists():
            refuse_other_card(path)
        replacing.remove_leftovers(path)
        with contextlib.suppress(CheckpointError):
            found = cls.load(path)
        if resume is None or not _within(path, Path(resume)):
            replacing.refuse_unfinished(path)
        elif found is not None and found.recipe != recipe:
            raise CheckpointError(
                f"{path}: holds a run of {found.recipe}, which {recipe} cannot continue; choose "
                "another output_dir"
            )
        merged: dict[str, Any] = {}
        for config in configs:
            merged |= plain(config)
        existing = {k: str(v) for k, v in parents.items() if v is not None}
        run = cls(
            path,
            recipe,
            config=merged,
            seed=merged.get("seed"),
            parents=existing,
            inputs={k.replace("adapter", "parent"): hash_adapter(v) for k, v in existing.items()},
            versions=versions(),
            git_commit=commit(),
            started=time.time(),
            _lock=lock,
            _clock=time.monotonic(),
        )
        run._resume = resume
        work = replacing.unfinished(run.path) or replacing.members(run.path)
        if found is not None and (found.state == "finished" or resume is not None or work):
            run._replaced = found
            replacing.put_back(run.path)  # moved by a run that was killed in `begin`
            replacing.hold_dropped(run.path)
        else:
            run.save()
        return run

    def begin(self) -> None:
        """Take over the directory; later calls do nothing.

        The manifest of an earlier run is replaced. Unless this run resumes the earlier one, its files that
        could be mistaken for this run's are removed.
        """
        old, resume = self._replaced, self._resume
        if self._begun:
            return
        if resume is None:
            if old is not None:
                started = time.strftime("%Y-%m-%d %H:%M", time.localtime(old.started))
                print(f"{self.path}: replaces {old._description()} of {started}", flush=True)
            try:
                replacing.set_aside(self.path, roles=old is not None)
                self.save()
                replacing.discard_set_aside(self.path)
            except BaseException:  # such as a full disk: the finished run stays finished
                replacing.put_back(self.path)
                raise
        else:
            changed = {} if old is None else changed_options(old.config, self.config)
            self.resumed = [] if old is None else list(old.resumed)
            self.resumed.append({"from": Path(resume).name, "changed": changed})
            self.save()
        self._replaced, self._begun = None, True
        replacing.remove_set_aside(self.path)
        replacing.remove_held_dropped(self.path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Run":
        """Read the manifest of a run directory.

        Raises: CheckpointError if it is missing or damaged.
        """
        file = Path(path) / "run.json"
        if file.exists() and not file.is_file():
            raise CheckpointError(f"{file}: expected a file, found a folder, a pipe or a device")
        try:
            saved = read_mapping(file)
            check_types(saved, {f.name: f.type for f in cls._written()})
            for name in ("started", "seconds"):
                if not 0 <= (saved.get(name) or 0) < MAX_SECONDS:
                    raise ValueError(f"`{name}` must be in 0…{MAX_SECONDS:g}, got {saved[name]}")
        except FileNotFoundError as error:
            raise CheckpointError(f"{path}: run.json is missing; name a run directory") from error
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{file}: damaged manifest ({error}); train again") from error
        if "recipe" not in saved or saved.get("schema") != SCHEMA:
            raise CheckpointError(f"{file}: not a manifest of schema {SCHEMA}; train again")
        names = [f.name for f in cls._written()]
        return cls(Path(path), **{name: saved[name] for name in names if name in saved})

    def save(self) -> None:
        """Write `run.json` atomically."""
        content = {f.name: getattr(self, f.name) for f in self._written()}
        write_json(self.path / MANIFEST, {"schema": SCHEMA} | content)

    @classmethod
    def _written(cls) -> list[dataclasses.Field[Any]]:
        """The manifest's fields."""
        fields = dataclasses.fields(cls)
        return [f for f in fields if f.name != "path" and not f.name.startswith("_")]

    def finish(self, **results: Any) -> "Run":
        """Mark the run finished and add results."""
        self.begin()
        for file in self.path.rglob("*.safetensors"):
            apply_umask(file)
        weights = hashes(self.path)
        self.state, self.error = "finished", None
        self._take_time()
        self.results |= results
        self.weights = weights
        self.save()
        base = self.base.get("id", "unknown")
        card = model_card(self.name, self.recipe, base, self.seed, self.parents, self.results)
        (self.path / CARD).write_text(card, encoding="utf-8")
        if not self._in_block:
            self._release()
        return self

    def _take_time(self) -> None:
        """Record the run's duration, unless it comes from a loaded manifest."""
        if self._clock is not None:
            self.seconds = round(time.monotonic() - self._clock, 2)

    def fail(self, error: BaseException) -> None:
        """Mark the run failed and record the reason; its checkpoints stay.

        Before `begin`, an earlier run keeps its manifest; but if it failed to resume, its state is no
        longer "running".
        """
        old, reason = self._replaced, f"{type(error).__name__}: {error}"
        if old is not None:
            replacing.restore_dropped(self.path)
            if self._resume is not None and old.state == "running":  # killed earlier
                old.state, old.error = "failed", reason
                with contextlib.suppress(OSError):
                    old.save()
            print(f"{self.path}: {old._description()} is unchanged", flush=True)
            self._release()
            return
        self.state, self.error = "failed", reason
        self._take_time()
        with contextlib.suppress(OSError):  # a full disk must not hide the reason
            self.save()
        self._release()

    def _description(self) -> str:
        state = "finished" if self.state == "finished" else "unfinished"
        return f"the {state} {self.recipe} run"

    def _release(self) -> None:
        """Unlock the directory."""
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> "Run":
        """Inside the block, a stop signal marks the run failed, even while models are loaded."""
        self._handlers = receive_signals(raise_interrupt)
        self._in_block = True
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Mark a run failed on an error. Raises: Interrupted if a signal ended the block."""
        for number in self._handlers:
            signal.signal(number, signal.SIG_IGN)  # a further signal must not prevent `fail`
        interrupt = interrupt_of(error)
        stopped = None if interrupt is None else self._interrupted(interrupt)
        try:
            if error is not None and self.state != "finished":
                self.fail(stopped or error)
        finally:
            self._release()
            restore_handlers(self._handlers)
        if stopped is not None:
            raise stopped from None

    def _interrupted(self, error: KeyboardInterrupt) -> Interrupted:
        """The error for a signal outside of training steps, when no checkpoint can be written."""
        number, written = signal_of(error), replacing.unfinished(self.path)
        what, advice = (
            f"{number.name}: {self.path} was stopped before it finished",
            "start it again",
        )
        if self.state == "finished":
            what, advice = f"{number.name}: stopped", f"{self.path} is finished"
        elif self._replaced is None and written:
            advice = f"{written[-1].name} is complete, continue with --resume_from_checkpoint true"
        return Interrupted(f"{what}; {advice}", number)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that a resumed run must share with this run: options, and the content of inputs."""
        return kept(self.config) | self.inputs

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.path.name

    def adapter_problem(self) -> str | None:
        """Why the run's adapter cannot be loaded, or None."""
        for name in ADAPTER_FILES:
            file = self.path / name
            if not file.is_file():
                pickled = name.endswith(".safetensors") and file.with_suffix(".bin").exists()
                note = f"; adapter_model.bin is a pickle, which is never opened; {CONVERT_ADAPTER}"
                return f"{name} is missing{note if pickled else ''}"
            if file.stat().st_size == 0:
                return f"{name} is empty"
        return None

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of `metrics.jsonl`; a last line that a crash cut short is left out.

        Raises: CheckpointError for a file that is too large.
        """
        file = self.path / "metrics.jsonl"
        try:
            content = read_bytes(file, at_most=MAX_METRICS_BYTES) if file.is_file() else b""
        except ValueError as error:
            raise CheckpointError(f"{self.path}: {error}") from error
        rows = []
        for line in content.splitlines():
            with contextlib.suppress(ValueError):
                rows.append(parse_json(line))
        return rows


def _within(folder: Path, resume: Path) -> bool:
    """Whether `resume` is a checkpoint in the folder, or the folder itself."""
    return folder.resolve() in (resume.resolve(), resume.parent.resolve())


def apply_umask(file: Path) -> None:
    """Give a file the permissions of any other new file. Safetensors lets only the user read its files."""
    umask = os.umask(0o077)
    os.umask(umask)
    with contextlib.suppress(OSError):  # such as a file system without permissions
        file.chmod(0o666 & ~umask)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically: after a crash, the file is either the old or the new one."""
    text = json.dumps(content, indent=2, ensure_ascii=False, default=str)
    with replacing_file(path) as file:
        file.write(text + "\n")


@contextlib.contextmanager
def replacing_file(path: Path) -> Iterator[TextIO]:
    """A text file that replaces `path` when the block ends without an error."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
