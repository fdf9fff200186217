"""Checkpoints that are whole or not there."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import rotate_checkpoints

from toolkit.errors import CheckpointError, ConfigError, DivergedError
from toolkit.models.fingerprint import check_fingerprint, save_fingerprint
from toolkit.models.peft_methods import why_refused
from toolkit.runs.replacing import checkpoints, step_of
from toolkit.runs.resuming import last_checkpoint, list_contents
from toolkit.runs.run import write_json
from toolkit.trainers.callbacks import RunCallback

INCOMING = ".incoming"
LOSS_FILE = "loss_since_log.json"


class WholeCheckpoints:
    """Mixin before a `transformers.Trainer`: writes a checkpoint beside and renames it.

    The trainer of the library writes into `checkpoint-<step>` file by file and chooses the largest
    step afterwards, whole or not. Here the folder gets its name when everything in it is on disk,
    and older ones are removed after that, never before.
    """

    base_fingerprint: dict[str, str] | None = None  # put beside the adapter, if known
    _incoming: Path | None = None
    _resumed: Path | None = None  # the checkpoint that this training goes on from

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As the library's.

        Raises: ConfigError for options that the library refuses.
        """
        try:
            super().__init__(*args, **kwargs)
        except (ValueError, ImportError, NotImplementedError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "to be installed" not in str(error):
                raise  # but for a log's package (`report_to`) it is a bug
            raise ConfigError(
                f"{type(self).__name__} refuses its options: {why_refused(error)}"
            ) from error

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """As the library's, from a whole checkpoint only, with no other one in the way.

        Raises: CheckpointError where the directory holds checkpoints and none is to be resumed;
            DivergedError where what was trained is not finite in the end.
        """
        trainer: Any = self
        chosen = last_checkpoint(trainer.args.output_dir, resume_from_checkpoint)
        self._resumed = None if chosen is None else Path(chosen).resolve()
        if self._resumed is not None:
            self._check_fits(self._resumed)
        nothing = chosen is None and str(resume_from_checkpoint).lower() in ("none", "false")
        if nothing and not self._begins_run():
            self._require_no_other()
        if not any(isinstance(c, _BeginCallback) for c in trainer.callback_handler.callbacks):
            trainer.add_callback(_BeginCallback(trainer))
        at_start = trainer.args.eval_on_start
        trainer.args.eval_on_start = at_start and self._resumed is None  # the first run has done it
        try:
            found = super().train(resume_from_checkpoint=chosen, **kwargs)  # type: ignore[misc]
            self._require_finite()
            return found
        finally:
            trainer.args.eval_on_start = at_start

    def _require_finite(self) -> None:
        """Raises: DivergedError naming a weight that training has made infinite or NaN."""
        trainer: Any = self
        named = trainer.model.named_parameters()
        bad = [n for n, p in named if p.requires_grad and not bool(torch.isfinite(p).all())]
        if bad:
            raise DivergedError(
                f"{trainer.args.output_dir}: at step {trainer.state.global_step} training has "
                f"diverged: {len(bad)} of its weights are not finite, such as {bad[0]}. Nothing of it "
                "is saved, earlier checkpoints are whole: start again with a lower learning_rate, or "
                "continue from one with a lower max_grad_norm"
            )

    def _determine_best_metric(self, *args: Any, **kwargs: Any) -> bool:
        """As the library's; where only the best is kept, a stop that was asked for keeps this too."""
        trainer: Any = self
        asked = trainer.control.should_training_stop and trainer.control.should_save
        return bool(super()._determine_best_metric(*args, **kwargs) or asked)  # type: ignore[misc]

    def _check_fits(self, checkpoint: Path) -> None:
        """Raises: CheckpointError where this training cannot go on from it; nothing is touched yet."""
        trainer: Any = self
        step, end = _global_step(checkpoint), trainer.args.max_steps
        if 0 < end < step:  # the library would train one step more
            raise CheckpointError(
                f"{checkpoint}: it is of step {step}, and this training ends with step {end}"
            )
        if self.base_fingerprint:
            check_fingerprint(checkpoint, self.base_fingerprint)

    def _begins_run(self) -> bool:
        """Whether a run takes its directory over: what else is there has been looked at."""
        trainer: Any = self
        hung = trainer.callback_handler.callbacks
        return any(isinstance(c, RunCallback) and c.run is not None for c in hung)

    def _require_no_other(self) -> None:
        """Raises: CheckpointError where another training's checkpoints would be mixed with."""
        trainer: Any = self
        found = checkpoints(Path(trainer.args.output_dir))
        if found:
            raise CheckpointError(
                f"{trainer.args.output_dir} holds {found[-1].name} of another training: resume it, "
                "choose another output_dir, or remove it"
            )

    def _clear_way(self) -> None:
        """Remove what an earlier run wrote after the step that this one goes on from."""
        trainer: Any = self
        found = checkpoints(Path(trainer.args.output_dir))
        step = 0
        if self._resumed is not None:
            step = _global_step(self._resumed)
        for folder in found:
            if step_of(folder) > step:
                print(f"{folder}: removed, since training goes on from step {step}", flush=True)
                if folder.is_symlink():
                    folder.unlink()  # to another disk
                else:
                    shutil.rmtree(folder)

    def _get_output_dir(self, trial: Any) -> str:
        if self._incoming is not None:
            return str(self._incoming)
        return str(super()._get_output_dir(trial))  # type: ignore[misc]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Raises: CheckpointError where the checkpoint cannot be written, DivergedError where it is
        not worth it; older ones stay."""
        trainer: Any = self
        run_dir = Path(self._get_output_dir(trial))
        final = run_dir / f"checkpoint-{trainer.state.global_step}"
        if final.exists():  # written at this step, or resumed from it: it is there, and whole
            return
        self._require_finite()
        shutil.rmtree(run_dir / INCOMING, ignore_errors=True)
        self._incoming = run_dir / INCOMING
        try:
            super()._save_checkpoint(model, trial)  # type: ignore[misc]
            written = self._incoming / final.name
            write_json(written / LOSS_FILE, _BeginCallback.state_of(trainer))
            if self.base_fingerprint is not None:
                save_fingerprint(written, self.base_fingerprint)
            _name_best(trainer.state, written, final)
            list_contents(written)
            _sync(written)
            os.replace(written, final)
            _sync_folder(run_dir)
        except Exception as error:  # torch, safetensors and the system each raise their own
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise CheckpointError(
                f"{final}: cannot be written ({reason}); earlier checkpoints are whole. Where the "
                "disk is full make room, then continue with --resume_from_checkpoint true"
            ) from error
        finally:
            shutil.rmtree(run_dir / INCOMING, ignore_errors=True)
            self._incoming = None
        rotate_checkpoints(
            output_dir=str(run_dir),
            save_total_limit=trainer.args.save_total_limit,
            best_model_checkpoint=trainer.state.best_model_checkpoint,
        )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the library's.

        Raises: CheckpointError where it cannot be written; checkpoints stay.
        """
        try:
            super().save_model(output_dir, _internal_call)  # type: ignore[misc]
        except (OSError, SafetensorError) as error:
            if _internal_call:  # of a checkpoint, which says so itself
                raise
            trainer: Any = self
            raise CheckpointError(
                f"{output_dir or trainer.args.output_dir}: what was trained cannot be written ({error}); "
                "checkpoints are whole. Where the disk is full make room, then continue with "
                "--resume_from_checkpoint true"
            ) from error

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        """As the library's, which with a limit of one keeps the best checkpoint only: not if stopped."""
        trainer: Any = self
        limit = trainer.args.save_total_limit
        if trainer.state.global_step < trainer.state.max_steps:
            trainer.args.save_total_limit = None
        try:
            return super()._finalize_training(*args, **kwargs)  # type: ignore[misc]
        finally:
            trainer.args.save_total_limit = limit


class _BeginCallback(TrainerCallback):  # type: ignore[misc]
    """What is done when a training begins: a checkpoint that it goes on from is loaded, and fits."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    @staticmethod
    def state_of(trainer: Any) -> dict[str, Any]:
        """What the library forgets: the sum, and the step of the last log."""
        return {"loss": trainer._tr_loss.item(), "logged": trainer._globalstep_last_logged}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Clear the way, and take up the loss that was summed, so that a resumed training logs the same."""
        self.trainer._clear_way()
        resumed = self.trainer._resumed
        if resumed is not None and state.best_model_checkpoint is None and state.best_global_step:
            best = Path(str(args.output_dir)) / f"checkpoint-{state.best_global_step}"
            if best.is_dir():  # in a run that was moved, the library does not find it
                state.best_model_checkpoint = str(best)
        if resumed is not None and (resumed / LOSS_FILE).is_file():
            saved = read_state(resumed / LOSS_FILE)
            self.trainer._tr_loss += float(saved["loss"])
            self.trainer._globalstep_last_logged = int(saved["logged"])


def _global_step(checkpoint: Path) -> int:
    return int(read_state(checkpoint / "trainer_state.json")["global_step"])


def _name_best(state: TrainerState, written: Path, final: Path) -> None:
    """The best checkpoint by the name it will have, where it is the one being written."""
    if state.best_model_checkpoint == str(written):
        state.best_model_checkpoint = str(final)
        state.save_to_json(str(written / "trainer_state.json"))


def _sync(folder: Path) -> None:
    """Ask the system to put every file of a folder on disk, and the folder itself."""
    for path in (*folder.rglob("*"), folder):
        _sync_folder(path)


def _sync_folder(path: Path) -> None:
    """The same of one file, or of a folder's list of names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_state(file: Path) -> dict[str, Any]:
    """A checkpoint's small JSON file.

    Raises: CheckpointError where it is missing or damaged.
    """
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error})") from error
