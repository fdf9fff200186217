"""The completions that a run logs during training: the last rows of `samples.jsonl`."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.app.history.logs import number
from toolkit.app.texts import printable
from toolkit.reading import parse_json
from toolkit.runs.integrity import open_inside

SAMPLES_FILE = "samples.jsonl"
MAX_BYTES = 2 << 20  # read from the end of the file
MAX_ROWS, MAX_COLUMNS = 200, 8  # in the table of one step
MAX_TEXT = 4000  # characters of a cell
FIRST = ("prompt", "completion", "score")


@dataclass(frozen=True)
class Samples:
    """The rows that were read, in the order of the file; `cut` is True if the file has earlier rows."""

    rows: Sequence[dict[str, Any]]
    cut: bool = False

    @property
    def steps(self) -> list[float]:
        """The steps of the rows, in rising order."""
        return sorted({row["step"] for row in self.rows})

    def table(self, step: float) -> tuple[list[str], list[list[str]]]:
        """Headers and rows of one step."""
        rows = [row for row in self.rows if row["step"] == step][-MAX_ROWS:]
        names = dict.fromkeys(key for row in rows for key in row if key not in (*FIRST, "step"))
        columns = [*FIRST, *names][:MAX_COLUMNS]
        cells = [[_cell(row.get(column)) for column in columns] for row in rows]
        return [printable(column) for column in columns], cells


def read_samples(folder: Path, root: Path) -> Samples:
    """Read the last rows of a run's file. Missing or damaged files, and damaged lines, are left out."""
    try:
        with open_inside(folder / SAMPLES_FILE, root) as stream:
            size = os.fstat(stream.fileno()).st_size
            stream.seek(max(0, size - MAX_BYTES))
            lines = stream.read(MAX_BYTES).split(b"\n")
    except OSError:
        return Samples(())
    cut = size > MAX_BYTES
    rows = [row for line in lines[1 if cut else 0 :] if (row := _row(line)) is not None]
    return Samples(rows, cut)


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = parse_json(line)
        step = number(row.get("step"))
    except (ValueError, AttributeError):
        return None
    return None if step is None or step != step else row | {"step": step}


def _cell(value: object) -> str:
    """A value as text; the messages of a conversation follow each other."""
    if isinstance(value, list) and value and all(isinstance(m, dict) for m in value):
        value = "\n".join(f"{m.get('role')}: {m.get('content')}" for m in value)
    if isinstance(value, float):
        value = f"{value:.4g}"
    text = "" if value is None else str(value)
    text = text.encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"
