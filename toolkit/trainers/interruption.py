"""Trainings that a signal interrupts without loss."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from toolkit.errors import Interrupted
from toolkit.runs.resuming import last_checkpoint


class _StopCallback(TrainerCallback):  # type: ignore[misc]
    """Ends the training after what is being done, with a checkpoint, once `signal` is set."""

    signal: int | None = None

    def _ask(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.signal is not None:
            control.should_save = control.should_training_stop = True

    # a step, its log or its evaluation: a checkpoint of the step is still to come
    on_step_end = on_log = on_evaluate = _ask

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """The checkpoint is there."""
        if self.signal is not None:
            control.should_training_stop = True


@contextmanager
def interruptible(trainer: Trainer) -> Iterator[None]:
    """While the body trains, Ctrl-C and SIGTERM end it after the current step, with a checkpoint.

    A second signal ends it at once. Only in the main thread; elsewhere signals are not ours.

    Raises: Interrupted after the body, if it was, and if steps are left.
    """
    stop, again = _StopCallback(), False

    def receive(number: int, frame: FrameType | None) -> None:
        nonlocal again
        again, stop.signal = stop.signal is not None, number
        if again:
            raise KeyboardInterrupt
        print("stopping after this step, with a checkpoint; once more to stop at once", flush=True)

    trainer.add_callback(stop)
    ours = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if ours else ()
    before = {n: signal.signal(n, receive) for n in numbers}
    try:
        yield
    except KeyboardInterrupt:
        if not again:
            raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    done = trainer.state.global_step >= trainer.state.max_steps
    if stop.signal is None or (done and not again):
        return
    name, step = signal.Signals(stop.signal).name, trainer.state.global_step
    found = last_checkpoint(str(trainer.args.output_dir), True)
    kept = f"{found} is whole, continue with --resume_from_checkpoint true"
    raise Interrupted(
        f"{f'a second signal, {name},' if again else name} at step {step}; "
        f"{kept if found else 'there is no checkpoint'}",
        stop.signal,
    )
