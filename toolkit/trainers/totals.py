"""Saves sums and means between two logs in a checkpoint, so that a resumed run logs the same."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolkit.errors import CheckpointError
from toolkit.reading import read_mapping
from toolkit.runs.resuming import LOSS_FILE, MAX_STATE_BYTES
from toolkit.runs.run import write_json

# the types of the sums in `LOSS_FILE`; earlier versions saved fewer
TOTALS: dict[str, Any] = {
    "loss": float,
    "logged": int,
    "total": float | None,
    "tokens": int | float | None,
    "metrics": dict[str, list[float]] | None,
}


class LoggedTotals:
    """Mixin for a `transformers.Trainer`: saves the sums that the libraries do not save.

    These are transformers' loss since the last log and since training began, TRL's metrics since the last
    log, and TRL's number of tokens.
    """

    state: Any
    _tr_loss: Any
    _total_loss_scalar: float
    _globalstep_last_logged: int
    _metrics: Any = None  # TRL's: "train" -> metric -> values
    _total_train_tokens = 0

    def save_totals(self, checkpoint: Path) -> None:
        """Write the sums into a checkpoint."""
        totals = {
            "loss": self._tr_loss.item(),
            "total": self._total_loss_scalar,
            "logged": self._globalstep_last_logged,
            "tokens": self._total_train_tokens,
            "metrics": {} if self._metrics is None else self._metrics["train"],
        }
        write_json(checkpoint / LOSS_FILE, totals)

    def restore_totals(self, checkpoint: Path) -> None:
        """Continue from a checkpoint's sums; checkpoints of earlier versions lack some or all of them."""
        if not (checkpoint / LOSS_FILE).is_file():
            return
        saved = read_state(checkpoint / LOSS_FILE, TOTALS)
        total = saved.get("total")
        self._tr_loss += saved["loss"]
        self._total_loss_scalar = math.nan if total is None else total  # unknown: null in the log
        self._globalstep_last_logged = saved["logged"]
        self._total_train_tokens = saved.get("tokens") or 0
        if self._metrics is not None:
            self._metrics["train"].update(saved.get("metrics") or {})

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log; the final `train_loss` is the mean over all steps, including those before a resume."""
        if "train_loss" in logs:
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step, 1)
        super().log(logs, start_time)  # type: ignore[misc]


def read_state(file: Path, types: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Read one of a checkpoint's small JSON files, whose values have the given types.

    Raises: CheckpointError if it is missing or damaged.
    """
    try:
        return read_mapping(file, types, at_most=MAX_STATE_BYTES)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error})") from error
