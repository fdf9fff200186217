"""Checkpoints that are whole or not there, and runs that a signal interrupts without loss."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import rotate_checkpoints

from toolkit.errors import CheckpointError, Interrupted
from toolkit.models.base import save_fingerprint

INCOMING = ".incoming"


class WholeCheckpoints:
    """Mixin before a `transformers.Trainer`: writes a checkpoint beside and renames it.

    The trainer of the library writes into `checkpoint-<step>` file by file and chooses the largest
    step afterwards, whole or not. Here the folder gets its name when everything in it is on disk,
    and older ones are removed after that, never before.
    """

    base_fingerprint: dict[str, str] | None = None  # put beside the adapter, if known
    _incoming: Path | None = None

    def _get_output_dir(self, trial: Any) -> str:
        if self._incoming is not None:
            return str(self._incoming)
        return str(super()._get_output_dir(trial))  # type: ignore[misc]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Raises: CheckpointError where the checkpoint cannot be written; older ones stay."""
        trainer: Any = self
        run_dir = Path(self._get_output_dir(trial))
        final = run_dir / f"checkpoint-{trainer.state.global_step}"
        if final.exists():  # resumed at this very step: it is there, and whole
            return
        shutil.rmtree(run_dir / INCOMING, ignore_errors=True)
        self._incoming = run_dir / INCOMING
        try:
            super()._save_checkpoint(model, trial)  # type: ignore[misc]
            written = self._incoming / final.name
            if self.base_fingerprint is not None:
                save_fingerprint(written, self.base_fingerprint)
            _name_best(trainer.state, written, final)
            _sync(written)
            os.replace(written, final)
        except Exception as error:  # torch, safetensors and the system each raise their own
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"{final}: cannot be written ({reason}); earlier checkpoints are whole. Make room, "
                "then continue with --resume_from_checkpoint true"
            ) from error
        finally:
            shutil.rmtree(run_dir / INCOMING, ignore_errors=True)
            self._incoming = None
        rotate_checkpoints(
            output_dir=str(run_dir),
            save_total_limit=trainer.args.save_total_limit,
            best_model_checkpoint=trainer.state.best_model_checkpoint,
        )


def _name_best(state: TrainerState, written: Path, final: Path) -> None:
    """The best checkpoint by the name it will have, where it is the one being written."""
    if state.best_model_checkpoint == str(written):
        state.best_model_checkpoint = str(final)
        state.save_to_json(str(written / "trainer_state.json"))


def _sync(folder: Path) -> None:
    """Ask the system to put every file of a folder on disk, and the folder itself."""
    for path in (*folder.rglob("*"), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class _StopCallback(TrainerCallback):  # type: ignore[misc]
    """Ends the training after the current step, with a checkpoint, once `signal` is set."""

    signal: int | None = None

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Ask for a checkpoint and for the end."""
        if self.signal is not None:
            control.should_save = control.should_training_stop = True


@contextmanager
def interruptible(trainer: Trainer) -> Iterator[None]:
    """While the body trains, Ctrl-C and SIGTERM end it after the current step, with a checkpoint.

    A second signal ends it at once. Only in the main thread; elsewhere signals are not ours.

    Raises: Interrupted after the body, if it was.
    """
    stop = _StopCallback()

    def receive(number: int, frame: FrameType | None) -> None:
        if stop.signal is not None:
            raise KeyboardInterrupt
        stop.signal = number
        print("stopping after this step, with a checkpoint; once more to stop at once", flush=True)

    trainer.add_callback(stop)
    before = {n: signal.signal(n, receive) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stop.signal is not None:
        name = signal.Signals(stop.signal).name
        raise Interrupted(
            f"{name} at step {trainer.state.global_step}; a checkpoint is in "
            f"{trainer.args.output_dir}, continue with --resume_from_checkpoint true",
            stop.signal,
        )


def read_state(file: Path) -> dict[str, Any]:
    """A checkpoint's small JSON file.

    Raises: CheckpointError where it is missing or damaged.
    """
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error})") from error
