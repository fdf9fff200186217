"""The curves of several runs: one Plotly figure per metric."""

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.app.history.logs import Log
from toolkit.app.texts import printable
from toolkit.evaluation.plots import PALETTE, short_names

MAX_RUNS, MAX_CURVES = 6, 6
CHOSEN_AT_FIRST = 4
MAX_NAME = 30
MAX_DRAWN = 1000  # points per line: all curves together are sent to the page
MARKED_POINTS = 40  # a longer line has no markers
GRID = "rgba(128,128,128,0.25)"
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
    """One run's values of one metric. `place` is the run's position, which determines its colour."""

    name: str
    points: Sequence[tuple[float, float]]
    place: int
    held_out: bool = False


def metric_names(logs: Iterable[Log]) -> list[str]:
    """The metrics of all logs: first `SHOWN_FIRST`, then the others by name.

    A metric on held-out data is drawn with the same metric on training data, if there is one.
    """
    names = {key for log in logs for key in log.series}
    names -= {f"eval_{key}" for key in names}
    return [*(k for k in SHOWN_FIRST if k in names), *sorted(names.difference(SHOWN_FIRST))]


def metric_label(key: str) -> str:
    """A metric's key and meaning, for a list."""
    meaning = MEANINGS.get(key)
    return f"{printable(key)}: {meaning}" if meaning else printable(key)


def lines_of(key: str, logs: Mapping[str, Log]) -> list[Line]:
    """The values of a metric in each run that logged it, each followed by those on held-out data.

    Args:
        key: the metric.
        logs: run name -> log.
    """
    return [
        Line(name, log.series[logged].points, place, logged != key)
        for place, (name, log) in enumerate(logs.items())
        for logged in (key, f"eval_{key}")
        if logged in log.series
    ]


def draw(key: str, lines: Sequence[Line], smoothing: float = 0.0) -> dict[str, Any]:
    """A Plotly figure of a metric over the optimizer steps. A value that is not finite is a gap.

    Args:
        smoothing: in [0, 1), the weight of the past in an exponential moving average. Above 0, the
            values themselves are drawn pale.
    """
    traces: list[Any] = []
    names = short_names([line.name for line in lines], MAX_NAME)
    for line, short in zip(lines, names, strict=True):
        x, y = _drawn_points(line.points)
        style = {
            "color": PALETTE[line.place % len(PALETTE)],
            "width": 2,
            "dash": "dash" if line.held_out else "solid",
        }
        name = short + (", held out" if line.held_out else "")
        mode = "lines+markers" if len(x) <= MARKED_POINTS else "lines"
        trace: dict[str, Any] = {
            "x": x,
            "mode": mode,
            "marker": {"size": 5},
            "name": escaped(name),
            "line": style,
        }
        if smoothing > 0:
            pale = {"opacity": 0.3, "showlegend": False, "hoverinfo": "skip"}
            traces.append(trace | pale | {"y": y})
            y = smoothed(y, smoothing)
        traces.append(trace | {"y": y})
    axes = {
        "xaxis": {"title": {"text": "optimizer step", "standoff": 4}},
        "yaxis": {"title": {"text": escaped(MEANINGS.get(key, "value as logged"))}},
    }
    height = 300 + 20 * -(-len(lines) // 2)  # two names fit into one line of the legend
    return layout(printable(key, longest=60), traces, height=height, **axes)


def layout(title: str, traces: list[Any], *, height: int, **axes: Any) -> dict[str, Any]:
    """A Plotly figure in the page's style; the page's CSS sets the colours of text and grid."""
    plain = {"gridcolor": GRID, "zerolinecolor": GRID, "automargin": True}
    return {
        "data": [{"type": "scatter"} | trace for trace in traces],
        "layout": {
            "title": {"text": escaped(title), "x": 0.01, "font": {"size": 14}},
            "height": height,
            "margin": {"l": 10, "r": 10, "t": 40, "b": 10},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "hovermode": "x unified",
            "legend": {"orientation": "h", "y": -0.2, "yanchor": "top"},
            "showlegend": any("name" in trace for trace in traces),
            **{name: plain | axis for name, axis in axes.items()},
        },
    }


def escaped(text: str) -> str:
    """Text that Plotly shows as it is: it reads some HTML tags."""
    return html.escape(text, quote=False)


def smoothed(values: Sequence[float | None], weight: float) -> list[float | None]:
    """The exponential moving average with bias correction (Kingma and Ba 2015, section 3)."""
    mean, total = 0.0, 0.0
    result: list[float | None] = []
    for value in values:
        if value is None:
            result.append(None)
            continue
        mean = weight * mean + (1 - weight) * value
        total = weight * total + (1 - weight)
        result.append(mean / total)
    return result


def _drawn_points(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float | None]]:
    """At most about `MAX_DRAWN` points, always with the latest; NaN becomes None."""
    every = -(-len(points) // MAX_DRAWN)
    kept = (
        [*points[::every], *([points[-1]] if (len(points) - 1) % every else [])] if points else []
    )
    return [step for step, _ in kept], [None if v != v else v for _, v in kept]


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
    return ["Run", "Step", *(printable(k) for k in keys)], rows


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
