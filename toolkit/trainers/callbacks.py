"""What every training recipe hangs on a `transformers.Trainer`: its run, and its metrics on disk."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from toolkit.errors import CheckpointError
from toolkit.runs.run import Run

SAMPLES_FILE = "samples.jsonl"  # what evaluations while training were answered


class RunCallback(TrainerCallback):  # type: ignore[misc]
    """Begins the run with the training, and writes `metrics.jsonl`, one object per logged step.

    Args:
        run: whose directory the training writes to; None outside of a recipe.
    """

    def __init__(self, run: Run | None = None) -> None:
        self.run = run

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Start the files anew, or drop what a resumed run is going to log again."""
        if self.run is not None:
            self.run.begin()
        args.logging_nan_inf_filter = False  # a loss that is not finite shall be seen
        file = self._file(args)
        file.parent.mkdir(parents=True, exist_ok=True)
        _keep_until(state.global_step, file)
        samples = file.with_name(SAMPLES_FILE)
        if samples.is_file():
            _keep_until(state.global_step, samples)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Append one line; a value that is not finite becomes null, which JSON has."""
        step = {"step": state.global_step}  # a reward function may log one, too
        row = step | {k: _number(v) for k, v in (logs or {}).items()} | step
        append_rows(self._file(args), [row])

    @staticmethod
    def _file(args: TrainingArguments) -> Path:
        return Path(str(args.output_dir)) / "metrics.jsonl"


def append_rows(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Append rows to a file of a run's, one JSON object a line.

    Raises: CheckpointError where it cannot be written; checkpoints stay.
    """
    lines = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
    try:
        with file.open("a", encoding="utf-8") as opened:
            opened.write(lines)
    except OSError as error:
        raise CheckpointError(
            f"{file}: cannot be written ({error.strerror or error}); checkpoints are whole. Where the "
            "disk is full make room, then continue with --resume_from_checkpoint true"
        ) from error


def _keep_until(step: int, file: Path) -> None:
    """Cut a file of logged rows down to those of a run's first steps; step 0 keeps none."""
    kept = []
    # bytes: text would be broken at U+2028 too, which an answer may hold, or end inside a character
    for line in file.read_bytes().splitlines() if file.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue  # cut short by a crash
        if row.get("step", 0) <= step and "train_runtime" not in row:  # a summary comes at the end
            kept.append(line)
    shorter = file.with_suffix(".incoming")
    shorter.write_bytes(b"".join(line + b"\n" for line in kept if step))
    shorter.replace(file)  # at once, so that no crash can lose what was logged


def _number(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value
