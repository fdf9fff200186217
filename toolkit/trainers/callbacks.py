"""What every training recipe hangs on a `transformers.Trainer`: metrics on disk, a resumable state."""

import json
import math
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from toolkit.models.base import save_fingerprint


class RunCallback(TrainerCallback):  # type: ignore[misc]
    """Writes `metrics.jsonl`, one object per logged step, and the base's fingerprint per checkpoint."""

    def __init__(self, base_fingerprint: dict[str, str]) -> None:
        self.fingerprint = base_fingerprint

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Start the file anew, or drop what a resumed run is going to log again."""
        file = self._file(args)
        kept = []
        for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
            try:
                row = json.loads(line)
            except ValueError:
                continue  # cut short by a crash
            if row.get("step", 0) <= state.global_step:
                kept.append(line)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(
            "".join(line + "\n" for line in kept if state.global_step), encoding="utf-8"
        )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Append one line; a value that is not finite becomes null, which JSON has."""
        row = {"step": state.global_step} | {k: _number(v) for k, v in (logs or {}).items()}
        with self._file(args).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Put the base's fingerprint beside the checkpoint's adapter."""
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if folder.is_dir():
            save_fingerprint(folder, self.fingerprint)

    @staticmethod
    def _file(args: TrainingArguments) -> Path:
        return Path(str(args.output_dir)) / "metrics.jsonl"


def _number(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value
