"""The curves of several runs in one figure per metric."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.app.catalog import printable
from toolkit.app.history.logs import Log
from toolkit.evaluation.plots import PALETTE, short_name, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_RUNS, MAX_CURVES = 6, 6
CHOSEN_AT_FIRST = 4
WIDTH, HEIGHT, DPI = 5.6, 3.1, 130  # inches; about 400 pixels wide on the page
MAX_NAME = 30
# The label of the y axis with its unit. docs/metrics.md explains each metric.
MEANINGS: Mapping[str, str] = json.loads(
    Path(__file__).with_name("meanings.json").read_text(encoding="utf-8")
)
# Shown first, if the chosen runs logged them.
SHOWN_FIRST = """
objective/scores reward objective/kl kl loss objective/length completions/mean_length
eval_gold/mean rewards/margins rewards/accuracies accuracy mean_token_accuracy
""".split()


@dataclass(frozen=True)
class Line:
    """One run's values of one metric. `place` is the run's position, which sets its colour."""

    name: str
    points: Sequence[tuple[float, float]]
    place: int


def metric_names(logs: Iterable[Log]) -> list[str]:
    """The metrics of all logs: those of `SHOWN_FIRST`, then the others by name."""
    names = {key for log in logs for key in log.series}
    return [*(k for k in SHOWN_FIRST if k in names), *sorted(names.difference(SHOWN_FIRST))]


def metric_label(key: str) -> str:
    """A metric's key and meaning, for a list."""
    meaning = MEANINGS.get(key)
    return f"{printable(key)}: {meaning}" if meaning else printable(key)


def lines_of(key: str, logs: Mapping[str, Log]) -> list[Line]:
    """The values of a metric in each run that logged it.

    Args:
        key: the metric.
        logs: run name -> log.
    """
    return [
        Line(name, log.series[key].points, place)
        for place, (name, log) in enumerate(logs.items())
        if key in log.series
    ]


def draw(key: str, lines: Sequence[Line]) -> "Figure":
    """A figure of a metric over the optimizer steps. A value that is not finite leaves a gap."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with styled():
        legend = 0.24 * -(-len(lines) // 2)
        figure = Figure(figsize=(WIDTH, HEIGHT + legend), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        ax = figure.subplots()
        for line in lines:
            steps, values = zip(*line.points, strict=True)
            ax.plot(
                steps,
                values,
                color=PALETTE[line.place % len(PALETTE)],
                linewidth=1.8,
                marker="o" if len(steps) <= 40 else None,
                markersize=3.5,
                label=short_name(line.name.lstrip("_"), MAX_NAME),  # matplotlib hides "_names"
            )
        ax.set_title(printable(key, longest=60), fontsize=11, loc="left")
        ax.set_ylabel(MEANINGS.get(key, "value as logged"))
        ax.set_xlabel("optimiser step")
        ax.margins(x=0.02)
        figure.legend(loc="outside lower center", ncols=min(2, len(lines)), frameon=False)
        figure.canvas.draw()  # inside the style
    return figure


def latest_values(
    keys: Sequence[str], logs: Mapping[str, Log]
) -> tuple[list[str], list[list[str]]]:
    """Headers and rows: each run's last value of each metric."""
    rows = []
    for name, log in logs.items():
        row = [name, "" if log.step is None else f"{log.step:g}"]
        for key in keys:
            points = log.series[key].points if key in log.series else []
            row.append(_value(points[-1][1]) if points else "")
        rows.append(row)
    return ["run", "step", *(printable(k) for k in keys)], rows


def log_notes(keys: Sequence[str], logs: Mapping[str, Log]) -> str:
    """Problems and warnings of the logs, one per line."""
    notes = []
    for name, log in logs.items():
        if log.problem:
            notes.append(f"{name}: {log.problem}")
        if log.size - log.read_bytes > 1 << 20:
            mib = f"{log.read_bytes >> 20} of {log.size >> 20} MiB"
            notes.append(f"{name}: a long log, {mib} read so far")
        if log.damaged:
            notes.append(f"{name}: {log.damaged} damaged lines skipped")
        for key in keys:
            series = log.series.get(key)
            if series and series.missed:
                notes.append(
                    f"{name}: {series.missed} values of {printable(key)} that are not finite"
                )
            if series and series.stride > 1:
                notes.append(f"{name}: every {series.stride}th value of {printable(key)} is drawn")
        notes += [f"{name}: {warning}" for warning in log.warnings.values()]
    return "\n".join(notes)


def _value(value: float) -> str:
    return "not finite" if value != value else f"{value:.4g}"
