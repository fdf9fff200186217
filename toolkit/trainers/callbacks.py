"""What every training recipe hangs on a `transformers.Trainer`: its metrics on disk."""

import json
import math
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class RunCallback(TrainerCallback):  # type: ignore[misc]
    """Writes `metrics.jsonl`, one object per logged step."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Start the file anew, or drop what a resumed run is going to log again."""
        args.logging_nan_inf_filter = False  # a loss that is not finite shall be seen
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

    @staticmethod
    def _file(args: TrainingArguments) -> Path:
        return Path(str(args.output_dir)) / "metrics.jsonl"


def _number(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value
