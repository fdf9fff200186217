"""Callbacks of every recipe: they begin the run, write metrics, and stop cleanly on signals."""

import json
import math
import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import Trainer, TrainerCallback

from toolkit.errors import CheckpointError, Interrupted
from toolkit.reading import parse_json
from toolkit.runs.resuming import last_checkpoint
from toolkit.runs.run import Run
from toolkit.runs.signals import receive_signals, restore_handlers

AFTER_FULL_DISK = (
    "earlier checkpoints are intact. If the disk is full, free space (or raise `ulimit -f`) and continue "
    "with --resume_from_checkpoint true"
)
METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"  # completions of the evaluations during training


class RunCallback(TrainerCallback):  # type: ignore[misc]
    """Begins the run when training begins, and writes `metrics.jsonl`, one object per logged step.

    Args:
        run: the run of the trainer's `output_dir`; None outside of a recipe.
    """

    def __init__(self, run: Run | None = None) -> None:
        self.run = run

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Empty the log files; for a resumed run, remove only the rows that it will log again."""
        if self.run is not None:
            self.run.begin()
        args.logging_nan_inf_filter = False  # a loss that is not finite must be visible
        file = Path(str(args.output_dir)) / METRICS_FILE
        file.parent.mkdir(parents=True, exist_ok=True)
        _keep_until(state.global_step, file)
        samples = file.with_name(SAMPLES_FILE)
        if samples.is_file():
            _keep_until(state.global_step, samples)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Append one line; a value that is not finite becomes null, because JSON has no NaN."""
        step = {"step": state.global_step}  # first key, and not a reward function's own `step`
        row = step | {k: _number(v) for k, v in (logs or {}).items()} | step
        append_rows(Path(str(args.output_dir)) / METRICS_FILE, [row])


def append_rows(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Append rows to one of a run's log files, one JSON object per line.

    Raises: CheckpointError if the file cannot be written.
    """
    lines = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
    try:
        with file.open("a", encoding="utf-8") as stream:
            stream.write(lines)
    except OSError as error:
        require_folder(file.parent)
        raise CheckpointError(
            f"{file}: cannot be written ({error.strerror or error}); {AFTER_FULL_DISK}"
        ) from error


def require_folder(folder: Path) -> None:
    """Raise CheckpointError if the folder of a run was removed or renamed, perhaps with its checkpoints."""
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: was removed or renamed while the run was training; restore it and continue with "
            "--resume_from_checkpoint true, or start again"
        )


def _keep_until(step: int, file: Path) -> None:
    """Keep only the rows of steps up to `step` in a log file; step 0 keeps no row."""
    kept = []
    # as bytes: str.splitlines also splits at U+2028, and a crash may have cut a character in two
    for line in file.read_bytes().splitlines() if file.is_file() else ():
        try:
            row = parse_json(line)
        except ValueError:
            continue  # cut short by a crash
        if row.get("step", 0) <= step and "train_runtime" not in row:  # drop the final summary
            kept.append(line)
    shorter = file.with_name(f".{file.name}.{os.getpid()}")
    shorter.write_bytes(b"".join(line + b"\n" for line in kept if step))
    shorter.replace(file)  # atomic, so that a crash loses no logged values


def _number(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value


class _StopCallback(TrainerCallback):  # type: ignore[misc]
    """When `signal` is set, saves a checkpoint and ends training after the current step."""

    signal: int | None = None

    def _stop(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.signal is not None:
            control.should_save = control.should_training_stop = True

    # after a step, its log or its evaluation the trainer can still save a checkpoint of this step
    on_step_end = on_log = on_evaluate = _stop

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop without another checkpoint, because this step's checkpoint was just saved."""
        if self.signal is not None:
            control.should_training_stop = True


@contextmanager
def interruptible(trainer: Trainer) -> Iterator[None]:
    """Inside the block, a stop signal ends training after the current step, with a checkpoint.

    A second signal ends it at once. See `receive_signals` for the signals.

    Raises: Interrupted at the end of the block if a signal arrived and steps are left.
    """
    stop, second = _StopCallback(), False

    def receive(number: int, frame: FrameType | None) -> None:
        nonlocal second
        second, stop.signal = stop.signal is not None, number
        if second:
            raise KeyboardInterrupt
        with suppress(RuntimeError):  # the signal came while the main program was printing
            print("stopping after this step, with a checkpoint; repeat to stop at once", flush=True)

    trainer.add_callback(stop)
    handlers = receive_signals(receive)
    try:
        yield
    except KeyboardInterrupt:
        if not second:
            raise
    finally:
        restore_handlers(handlers)
    finished = trainer.state.global_step >= trainer.state.max_steps
    if stop.signal is None or (finished and not second):
        return
    name, step = signal.Signals(stop.signal).name, trainer.state.global_step
    checkpoint = None
    with suppress(CheckpointError):  # no checkpoint is complete, as with `save_only_model`
        checkpoint = last_checkpoint(str(trainer.args.output_dir), True)
    advice = f"{checkpoint} is complete, continue with --resume_from_checkpoint true"
    raise Interrupted(
        f"{f'a second signal, {name},' if second else name} at step {step}; "
        f"{advice if checkpoint else 'there is no checkpoint to resume from'}",
        stop.signal,
    )
