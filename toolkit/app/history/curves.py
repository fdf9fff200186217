"""Curves of several runs overlaid, one picture per metric."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from toolkit.app.catalog import printable
from toolkit.app.history.logs import Log
from toolkit.evaluation.plots import PALETTE, short_name, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_LINES, MOST_PICTURES = 6, 6
CHOSEN_AT_FIRST = 4
WIDTH, HEIGHT, DPI = 5.6, 3.1, 130  # inches; about 400 pixels wide on the page
LONGEST_NAME = 30
# What stands on the y axis, and the unit; docs/metrics.md says more.
MEANINGS = {
    "objective/scores": "reward model's score",
    "objective/kl": "KL to SFT (nats per answer)",
    "objective/length": "length (tokens per answer)",
    "objective/rlhf_reward": "score after penalties and KL",
    "objective/ended": "share that ended with EOS",
    "objective/entropy": "entropy (nats per answer)",
    "objective/kl_coef": "β (score per nat of KL)",
    "policy/approxkl_avg": "KL of one update (nats per token)",
    "policy/clipfrac_avg": "share of ratios clipped",
    "policy/entropy_avg": "entropy (nats per token)",
    "loss/policy_avg": "policy loss (per token)",
    "loss/value_avg": "value loss (per token)",
    "loss/ptx_avg": "pretraining loss (nats per token)",
    "val/explained_variance": "share of variance explained",
    "val/ratio": "mean new/old probability",
    "eval_gold/mean": "gold utility (held out)",
    "loss": "training loss",
    "eval_loss": "held-out loss",
    "mean_token_accuracy": "share of tokens guessed right",
    "entropy": "entropy (nats per token)",
    "accuracy": "share of pairs ordered right",
    "mean_reward": "mean score",
    "margin": "score of chosen − rejected",
    "reward": "mean reward",
    "kl": "KL to the reference (nats)",
    "completions/mean_length": "length (tokens per answer)",
    "rewards/accuracies": "share of pairs ordered right",
    "rewards/margins": "reward of chosen − rejected",
    "rewards/chosen": "reward of chosen",
    "rewards/rejected": "reward of rejected",
    "grad_norm": "gradient norm before clipping",
    "learning_rate": "learning rate",
    "num_tokens": "tokens trained on",
    "episode": "episodes sampled",
    "time/generate": "seconds per rollout, sampling",
    "time/score": "seconds per rollout, scoring",
}
# What is looked at first, as far as the chosen runs logged it.
FIRST = (
    "objective/scores",
    "reward",
    "objective/kl",
    "kl",
    "loss",
    "objective/length",
    "completions/mean_length",
    "eval_gold/mean",
    "rewards/margins",
    "rewards/accuracies",
    "accuracy",
    "mean_token_accuracy",
)


@dataclass(frozen=True)
class Line:
    """One run's values of one metric; `place` is the run's among those chosen, for its colour."""

    name: str
    points: Sequence[tuple[float, float]]
    place: int


def metric_names(logs: Iterable[Log]) -> list[str]:
    """All metrics that any of the logs has, those looked at first in front, then by name."""
    found = {key for log in logs for key in log.series}
    return [*(k for k in FIRST if k in found), *sorted(found.difference(FIRST))]


def metric_label(key: str) -> str:
    """What a list says of a metric: its key, and in words what it is."""
    known = MEANINGS.get(key)
    return f"{printable(key)}: {known}" if known else printable(key)


def lines_of(key: str, logs: Mapping[str, Log]) -> list[Line]:
    """The runs that logged a metric.

    Args:
        key: the metric.
        logs: name -> log of the chosen runs.
    """
    return [
        Line(name, log.series[key].points, place)
        for place, (name, log) in enumerate(logs.items())
        if key in log.series
    ]


def draw(key: str, lines: Sequence[Line]) -> "Figure":
    """A metric over the optimiser steps. A value that is not finite is a gap in its line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with styled():
        legend = 0.24 * -(-len(lines) // 2)
        figure = Figure(figsize=(WIDTH, HEIGHT + legend), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        ax = figure.subplots()
        for line in lines:
            _plot(ax, line)
        ax.set_title(printable(key, longest=60), fontsize=11, loc="left")
        ax.set_ylabel(MEANINGS.get(key, "value as logged"))
        ax.set_xlabel("optimiser step")
        ax.margins(x=0.02)
        figure.legend(loc="outside lower center", ncols=min(2, len(lines)), frameon=False)
        figure.canvas.draw()  # while the style is in force
    return figure


def _plot(ax: Any, line: Line) -> None:
    steps, values = zip(*line.points, strict=True)
    marker = "o" if len(steps) <= 40 else None
    ax.plot(
        steps,
        values,
        color=PALETTE[line.place % len(PALETTE)],
        linewidth=1.8,
        marker=marker,
        markersize=3.5,
        label=short_name(line.name.lstrip("_"), LONGEST_NAME),  # matplotlib hides "_names"
    )


def latest_values(
    keys: Sequence[str], logs: Mapping[str, Log]
) -> tuple[list[str], list[list[str]]]:
    """Headers and rows: each run's last value of each metric, as text."""
    rows = []
    for name, log in logs.items():
        row = [name, "" if log.step is None else f"{log.step:g}"]
        for key in keys:
            points = log.series[key].points if key in log.series else []
            row.append("" if not points else _value(points[-1][1]))
        rows.append(row)
    return ["run", "step", *(printable(k) for k in keys)], rows


def log_notes(keys: Sequence[str], logs: Mapping[str, Log]) -> str:
    """What is unusual about the logs, a line each."""
    notes = []
    for name, log in logs.items():
        if log.problem:
            notes.append(f"{name}: {log.problem}")
        if log.read_bytes < log.size and log.size - log.read_bytes > 1 << 20:
            mib = f"{log.read_bytes >> 20} of {log.size >> 20} MiB"
            notes.append(f"{name}: a long log, {mib} read so far")
        if log.damaged:
            notes.append(f"{name}: {log.damaged} damaged lines left out")
        for key in keys:
            found = log.series.get(key)
            if found and found.missed:
                notes.append(
                    f"{name}: values of {printable(key)} that were not finite: {found.missed}"
                )
            if found and found.stride > 1:
                notes.append(f"{name}: every {found.stride}th value of {printable(key)} is drawn")
        notes += [f"{name}: {sentence}" for sentence in log.warnings.values()]
    return "\n".join(notes)


def _value(value: float) -> str:
    return "not finite" if value != value else f"{value:.4g}"
