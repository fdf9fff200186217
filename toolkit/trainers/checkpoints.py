"""Checkpoints that are either complete or absent, exact resuming, no saving of diverged weights."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_utils import rotate_checkpoints

from toolkit.errors import CheckpointError, ConfigError, DivergedError
from toolkit.models.adapters import sort_sets
from toolkit.models.base import check_fingerprint, save_fingerprint
from toolkit.models.peft_methods import library_reason
from toolkit.runs.replacing import INCOMING, checkpoints, step_of
from toolkit.runs.resuming import damage, last_checkpoint, list_contents
from toolkit.runs.run import Run, apply_umask, write_json
from toolkit.runs.settings import SETTINGS_FILE, read_settings, require_same, settings_of
from toolkit.runs.signals import ignore_signals
from toolkit.trainers.callbacks import AFTER_FULL_DISK, RunCallback, require_folder
from toolkit.trainers.totals import LoggedTotals, read_state

# the types of those values in `trainer_state.json` that a resumed training uses
STATE: dict[str, Any] = {
    "global_step": int,
    "max_steps": int,
    "epoch": float | None,
    "train_batch_size": int | None,
    "num_input_tokens_seen": int | None,
    "total_flos": float | None,
    "log_history": list[dict[str, Any]] | None,
    "best_metric": float | None,
    "best_global_step": int | None,
    "best_model_checkpoint": str | None,
    "stateful_callbacks": dict[str, Any] | None,
}


class WholeCheckpoints(LoggedTotals):
    """Mixin for a `transformers.Trainer` that makes each folder `checkpoint-<step>` complete.

    The library writes into `checkpoint-<step>` file by file, and later resumes from the largest
    step even if it is incomplete. Here a checkpoint is written to `.incoming`, synced to disk, and
    renamed; older ones are removed only after that.
    """

    args: Any
    control: Any
    model: Any
    state: Any
    callback_handler: Any
    base_fingerprint: dict[str, str] | None = None  # saved with each checkpoint, if set
    _incoming: Path | None = None  # while a checkpoint is being written
    _resumed: Path | None = None  # the checkpoint that this training resumes from

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Raises: ConfigError for options that the library rejects."""
        for config in (*args, *kwargs.values()):
            if isinstance(config, TrainingArguments):
                reject_jit_checkpoint(config)
        try:
            super().__init__(*args, **kwargs)
        except (ValueError, ImportError, NotImplementedError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "to be installed" not in str(error):
                raise  # a bug; only `report_to` raises RuntimeError for a missing package
            raise ConfigError(
                f"{type(self).__name__}: the library rejects the options: {library_reason(error)}"
            ) from error

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train, or resume from a complete checkpoint (its path, or true for the newest one).

        Raises: CheckpointError if the checkpoint does not fit this training, or if the directory holds
            another training's checkpoints; DivergedError if trained weights are not finite.
        """
        chosen = last_checkpoint(self.args.output_dir, resume_from_checkpoint)
        self._resumed = None if chosen is None else Path(chosen).resolve()
        if self._resumed is not None:
            self._check_fits(self._resumed)
        elif str(resume_from_checkpoint).lower() in ("none", "false"):
            self._require_no_checkpoints()
        if not any(isinstance(c, _BeginCallback) for c in self.callback_handler.callbacks):
            self.callback_handler.add_callback(_BeginCallback(self))
        at_start = self.args.eval_on_start
        self.args.eval_on_start = at_start and self._resumed is None  # not again when resuming
        try:
            output = super().train(resume_from_checkpoint=chosen, **kwargs)  # type: ignore[misc]
            self._require_finite()
            return output
        finally:
            self.args.eval_on_start = at_start

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """The library's data loader, whose workers ignore stop signals with any start method."""
        loader = super()._get_dataloader(*args, **kwargs)  # type: ignore[misc]
        own = getattr(loader, "base_dataloader", loader)
        own.worker_init_fn = partial(_start_worker, own.worker_init_fn)
        return loader

    def _check_fits(self, checkpoint: Path) -> None:
        """Raise CheckpointError if this training cannot resume from a checkpoint; change nothing."""
        saved = self.saved_settings(checkpoint)
        if saved is None:
            print(
                f"warning: {checkpoint} has no {SETTINGS_FILE}, because an earlier version of the toolkit "
                "wrote it, so this run's settings and data are not compared with the checkpoint's",
                flush=True,
            )
        else:
            require_same(checkpoint, saved, self.settings)
        _require_before(_global_step(checkpoint), self.args.max_steps, checkpoint)
        if self.base_fingerprint:
            check_fingerprint(checkpoint, self.base_fingerprint)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that a resumed training must share with the training that wrote the checkpoint."""
        return settings_of([self.args]) if self._run is None else self._run.settings

    def saved_settings(self, checkpoint: Path) -> dict[str, Any] | None:
        """The settings that a checkpoint was written with; None for one of an earlier version."""
        return read_settings(checkpoint)

    @property
    def _run(self) -> Run | None:
        """The run that this training belongs to; None outside of a recipe."""
        callbacks = self.callback_handler.callbacks
        runs = [c.run for c in callbacks if isinstance(c, RunCallback) and c.run is not None]
        return runs[0] if runs else None

    def _require_no_checkpoints(self) -> None:
        """Raise CheckpointError if checkpoints of another training would be mixed with this one's.

        If there is a `Run`, `Run.start` has already checked the directory.
        """
        existing = checkpoints(Path(self.args.output_dir))
        if existing and self._run is None:
            raise CheckpointError(
                f"{self.args.output_dir} holds {existing[-1].name} of another training: resume it, "
                "choose another output_dir, or remove it"
            )

    def begin(self, state: TrainerState) -> None:
        """Prepare the first step, after the library has loaded any checkpoint; see `_BeginCallback`."""
        step = 0 if self._resumed is None else _global_step(self._resumed)
        for folder in checkpoints(Path(self.args.output_dir)):
            if step_of(folder) > step:
                print(f"{folder}: removed, because training resumes from step {step}", flush=True)
                if folder.is_symlink():
                    folder.unlink()  # a link to another disk
                else:
                    shutil.rmtree(folder)
        if self._resumed is None:
            return
        _require_before(step, state.max_steps, self._resumed)
        if state.best_model_checkpoint is None and state.best_global_step:
            best = Path(self.args.output_dir) / f"checkpoint-{state.best_global_step}"
            if best.is_dir():  # the library stores its old path, which is wrong in a moved run
                state.best_model_checkpoint = str(best)
        if state.best_model_checkpoint and (reason := damage(Path(state.best_model_checkpoint))):
            print(
                f"{state.best_model_checkpoint}: the best checkpoint so far cannot be used ({reason}); the "
                "best of the next steps will be chosen",
                flush=True,
            )
            state.best_model_checkpoint = state.best_metric = state.best_global_step = None
        self.restore_totals(self._resumed)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write `checkpoint-<step>`, then remove the oldest checkpoints beyond `save_total_limit`.

        Raises: CheckpointError if it cannot be written; DivergedError if a weight is not finite. In both
            cases, older checkpoints stay.
        """
        run_dir = Path(self._get_output_dir(trial))
        final = run_dir / f"checkpoint-{self.state.global_step}"
        if final.exists():  # saved or resumed from at this step, and complete
            return
        self._require_finite()
        if self._run is not None:
            require_folder(run_dir)
        for config in getattr(self.model, "peft_config", {}).values():
            sort_sets(config)
        shutil.rmtree(run_dir / INCOMING, ignore_errors=True)
        self._incoming = run_dir / INCOMING
        try:
            super()._save_checkpoint(model, trial)  # type: ignore[misc]
            written = self._incoming / final.name
            self.save_totals(written)
            write_json(written / SETTINGS_FILE, self.settings)
            if self.base_fingerprint is not None:
                save_fingerprint(written, self.base_fingerprint)
            if self.state.best_model_checkpoint == str(written):
                self.state.best_model_checkpoint = str(final)
                self.state.save_to_json(str(written / "trainer_state.json"))
            list_contents(written)
            for path in (*written.rglob("*"), written):
                if path.is_file():
                    apply_umask(path)
                _sync(path)
            os.replace(written, final)
            _sync(run_dir)
        except Exception as error:  # torch, safetensors and the system each raise their own
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise CheckpointError(
                f"{final}: cannot be written ({reason}); {AFTER_FULL_DISK}"
            ) from error
        finally:
            shutil.rmtree(run_dir / INCOMING, ignore_errors=True)
            self._incoming = None
        rotate_checkpoints(
            output_dir=str(run_dir),
            save_total_limit=self.args.save_total_limit,
            best_model_checkpoint=self.state.best_model_checkpoint,
        )

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _readable(checkpoint, "optimizer.pt or scheduler.pt"):
            super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _readable(checkpoint, "rng_state.pth"):
            super()._load_rng_state(checkpoint)  # type: ignore[misc]

    def _get_output_dir(self, trial: Any) -> str:
        if self._incoming is not None:
            return str(self._incoming)
        return str(super()._get_output_dir(trial))  # type: ignore[misc]

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the trained model.

        Raises: CheckpointError if it cannot be written; then checkpoints stay.
        """
        try:
            super().save_model(output_dir, _internal_call)  # type: ignore[misc]
        except (OSError, SafetensorError) as error:
            if _internal_call:  # `_save_checkpoint` adds its own message
                raise
            raise CheckpointError(
                f"{output_dir or self.args.output_dir}: the trained model cannot be written ({error}); "
                f"{AFTER_FULL_DISK}"
            ) from error

    def _determine_best_metric(self, *args: Any, **kwargs: Any) -> bool:
        """Also save when a signal stops the training, even if `save_strategy` saves only the best."""
        stopped = self.control.should_training_stop and self.control.should_save
        return bool(super()._determine_best_metric(*args, **kwargs) or stopped)  # type: ignore[misc]

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        """Keep the newest checkpoint of a stopped training; with limit 1 the library keeps the best."""
        limit = self.args.save_total_limit
        if self.state.global_step < self.state.max_steps:
            self.args.save_total_limit = None
        try:
            return super()._finalize_training(*args, **kwargs)  # type: ignore[misc]
        finally:
            self.args.save_total_limit = limit

    def _require_finite(self) -> None:
        """Raise DivergedError with a weight's name if a trained weight is infinite or NaN."""
        named = self.model.named_parameters()
        bad = [n for n, p in named if p.requires_grad and not bool(torch.isfinite(p).all())]
        if bad:
            raise DivergedError(
                f"{self.args.output_dir}: training diverged by step {self.state.global_step}: "
                f"{len(bad)} of its weights are not finite, such as {bad[0]}. They are not saved, and "
                "earlier checkpoints are intact: start again with a lower learning_rate, or continue "
                "from a checkpoint with a lower max_grad_norm"
            )


class _BeginCallback(TrainerCallback):  # type: ignore[misc]
    """Calls the trainer's `begin` when training begins."""

    def __init__(self, trainer: WholeCheckpoints) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Prepare the first step."""
        self.trainer.begin(state)


def reject_jit_checkpoint(args: TrainingArguments) -> None:
    """Raise ConfigError for `enable_jit_checkpoint`, which makes an empty folder before it saves."""
    if args.enable_jit_checkpoint:
        raise ConfigError(
            "`enable_jit_checkpoint` is not supported, because its checkpoints can be incomplete; "
            "remove it: SIGTERM ends a run after the current step with a checkpoint"
        )


@contextmanager
def _readable(checkpoint: str | None, file: str) -> Iterator[None]:
    """Turn errors of a damaged pickle into one line; torch loads only tensors and runs no code."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (UnpicklingError, RuntimeError, EOFError, OSError, LookupError, TypeError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(
            f"{checkpoint}: {file} is damaged or belongs to another training ({reason}); resume from an "
            "earlier checkpoint: --resume_from_checkpoint FOLDER"
        ) from error


def _start_worker(start: Callable[[int], None] | None, number: int) -> None:
    ignore_signals()
    if start is not None:
        start(number)


def _global_step(checkpoint: Path) -> int:
    """The step of a checkpoint. Raises: CheckpointError if `trainer_state.json` is damaged."""
    file = checkpoint / "trainer_state.json"
    state = read_state(file, STATE)
    try:
        TrainerState(**state)
    except (TypeError, AttributeError) as error:  # an unknown name, or callbacks of a wrong type
        raise CheckpointError(f"{file}: cannot be read ({error})") from error
    step, end = int(state["global_step"]), int(state["max_steps"])
    if not 1 <= step <= end:
        raise CheckpointError(
            f"{file}: `global_step` must be in 1…`max_steps` ({end}), got {step}; resume from another "
            "checkpoint"
        )
    return step


def _require_before(step: int, end: int, checkpoint: Path) -> None:
    """Raise CheckpointError if a training ends before a checkpoint's step; 0 or less: unknown."""
    if 0 < end < step:  # the library would train one more step, or none
        raise CheckpointError(
            f"{checkpoint}: saved at step {step}, but this training ends at step {end}; increase "
            "max_steps, or resume from an earlier checkpoint"
        )


def _sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
