"""Draws a report's pictures as PNG files: training, gold and score, win rates, behaviour, calibration."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from toolkit.evaluation.overoptimization import BEST_OF_N, FORMS, curve, fit_curves, gold_gains
from toolkit.evaluation.report import sampling_name

# Okabe & Ito 2008: distinct for every common kind of colour vision; each checkpoint has a colour
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999", "#000000")
NEUTRAL = "#333333"
MARKERS = "osD^vPX*"
WIDTH, DPI = 9.0, 200  # inches; text of 11 points stays readable at 900 pixels
STYLE = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E3E3E3",
    "text.parse_math": False,  # a checkpoint's name may contain "$"
}
_STYLING = threading.Lock()
SHOWN_RATES = {
    "correct": "correct\n(higher is better)",
    "hallucinated": "hallucinated\n(lower)",
    "harmful_compliance": "harmful\ncompliance\n(lower)",
    "over_refusal": "over-refusal\n(lower)",
    "polite": "polite",
}
TRAINING = {
    "objective/scores": "mean score\n(reward model)",
    "objective/kl": "KL to SFT\n(nats per answer)",
    "objective/length": "length\n(tokens)",
}
LONGEST_NAME = 18
_BESIDE: dict[str, Any] = {"textcoords": "offset points", "fontsize": 10, "color": NEUTRAL}


def draw_all(
    report: Mapping[str, Any], folder: Path, *, training: Sequence[Mapping[str, Any]] = ()
) -> list[Path]:
    """Draw every plot that has data.

    Args:
        report: a valid report.
        folder: an existing folder for the PNG files.
        training: rows of a PPO run's metrics.jsonl.

    Returns: the files written.
    """
    drawn = [
        draw_training(training, folder / "training.png"),
        draw_gold_proxy(report, folder / "gold_proxy.png"),
        draw_gold_kl(report, folder / "gold_kl.png"),
        draw_win_rates(report, folder / "win_rates.png"),
        draw_rates(report, folder / "rates.png"),
        draw_calibration(report.get("reward_model") or {}, folder / "calibration.png"),
    ]
    return [file for file in drawn if file is not None]


def draw_training(rows: Sequence[Mapping[str, Any]], file: Path) -> Path | None:
    """Score, KL and length of a PPO run over its optimizer steps."""
    series = {}
    for key in TRAINING:
        points = [(r["step"], r[key]) for r in rows if r.get(key) is not None and "step" in r]
        if points:
            series[key] = points
    if not series:
        return None
    with figure_file(file, height=0.8 + 1.75 * len(series)) as figure:
        axes = figure.subplots(len(series), 1, sharex=True, squeeze=False)[:, 0]
        for ax, (key, points) in zip(axes, series.items(), strict=True):
            steps, values = zip(*points, strict=True)
            marker = "o" if len(points) <= 40 else None
            ax.plot(steps, values, color=NEUTRAL, linewidth=1.8, marker=marker, markersize=4)
            ax.set_ylabel(TRAINING[key])
        axes[-1].set_xlabel("optimizer step")
        figure.align_ylabels(list(axes))
    return file


def draw_gold_proxy(report: Mapping[str, Any], file: Path) -> Path | None:
    """Mean gold and mean score of each checkpoint with 95 % intervals, on one axis each."""
    entries = report["checkpoints"]
    titles = {"gold": "gold utility (true)", "proxy": "score (reward model)"}
    judges = [j for j in titles if any(e.get(j) for e in entries.values())]
    if not judges:
        return None
    with figure_file(file, height=1.4 + 0.45 * len(entries)) as figure:
        axes = figure.subplots(1, len(judges), sharey=True, squeeze=False)[0]
        for ax, judge in zip(axes, judges, strict=True):
            for y, (name, entry) in enumerate(entries.items()):
                if entry.get(judge):
                    _point(ax, entry[judge], y, marker="o", colour=_colour(entries, name))
            ax.set_xlabel(f"mean {titles[judge]}, 95 % interval")
            ax.margins(x=0.08)
            ax.tick_params(axis="y", length=0)
        _names_down(axes[0], entries)
    return file


def draw_gold_kl(report: Mapping[str, Any], file: Path) -> Path | None:
    """The gain in gold over SFT against the square root of the KL, with the fitted curves."""
    entries, gains = report["checkpoints"], gold_gains(report)
    if not any(gains.values()):
        return None
    fits = fit_curves(report)
    with figure_file(file, height=4.4) as figure:
        ax = figure.subplots()
        ax.axhline(0, color="black", linewidth=1.2, linestyle="--")
        for kind, style in zip(FORMS, ("-", ":"), strict=True):
            if kind in fits:
                furthest = max(d for d, _ in gains[kind].values())
                grid = [furthest * i / 100 for i in range(1, 101)]
                values = "α = {alpha:.2f}, β = {beta:.2f}".format_map(fits[kind])
                label = f"{kind}: {FORMS[kind]}, {values}"
                ax.plot(grid, curve(kind, fits[kind], grid), style, color=NEUTRAL, label=label)
        for kind, points in gains.items():
            names = short_names(list(points))
            for short, (name, (d, gain)) in zip(names, points.items(), strict=True):
                error, marker = error_bar(entries[name]["gold"]), "s" if kind == BEST_OF_N else "o"
                look: dict[str, Any] = {"capsize": 3.5, "markersize": 7}
                look["color"] = _colour(entries, name)
                ax.errorbar([d], [gain], yerr=error, fmt=marker, **look)
                ax.annotate(short, (d, gain), xytext=(7, 4), **_BESIDE)
        ax.set_xlim(left=0)
        ax.margins(x=0.12)
        ax.set_xlabel("d: square root of the KL to SFT (√nats per answer)")
        ax.set_ylabel("gain in mean gold over SFT")
        if fits:
            figure.legend(loc="outside upper center", ncols=1, frameon=False)
    return file


def draw_win_rates(report: Mapping[str, Any], file: Path) -> Path | None:
    """Each checkpoint's win rate over SFT for each sampling, by gold if known, else by score."""
    checkpoints = report["checkpoints"]
    judge = "gold" if any(e.get("gold") for e in checkpoints.values()) else "proxy"
    entries = {n: e for n, e in checkpoints.items() if n != report.get("sft", "sft")}
    main = f"T = {report['sampling']['temperature']:g}"
    series = {main: {n: e["win_rate_vs_sft"].get(judge) for n, e in entries.items()}}
    for name, entry in entries.items():
        for key, other in entry.get("other_sampling", {}).items():
            series.setdefault(sampling_name(key), {})[name] = other["win_rate_vs_sft"].get(judge)
    if not any(v for by in series.values() for v in by.values()):
        return None
    with figure_file(file, height=1.9 + 0.62 * len(entries)) as figure:
        ax = figure.subplots()
        ax.axvline(0.5, color="black", linewidth=1.2, linestyle="--")
        for i, (label, by_name) in enumerate(series.items()):
            shift = 0.22 * (i - (len(series) - 1) / 2)
            for y, name in enumerate(entries):
                if by_name.get(name):
                    marker, colour = MARKERS[i % len(MARKERS)], _colour(checkpoints, name)
                    _point(ax, by_name[name], y + shift, marker=marker, colour=colour)
            handle = {"color": NEUTRAL, "marker": MARKERS[i % len(MARKERS)], "linestyle": "none"}
            ax.plot([], [], markersize=7, label=label, **handle)
        ax.set_xlim(0, 1)
        by = "gold" if judge == "gold" else "reward model's score"
        ax.set_xlabel(f"win rate over SFT by {by} (ties count half; 0.5 means no difference)")
        _names_down(ax, entries)
        figure.legend(loc="outside upper center", ncols=min(len(series), 4), frameon=False)
    return file


def draw_rates(report: Mapping[str, Any], file: Path) -> Path | None:
    """The rates of each checkpoint's behaviours."""
    entries = {n: e for n, e in report["checkpoints"].items() if e.get("rates")}
    if not entries:
        return None
    with figure_file(file, height=4.4) as figure:
        ax = figure.subplots()
        width = 0.82 / len(entries)
        names = short_names(list(entries))
        for i, (name, entry) in enumerate(entries.items()):
            left = [x + (i - (len(entries) - 1) / 2) * width for x in range(len(SHOWN_RATES))]
            rates = [entry["rates"].get(key) for key in SHOWN_RATES]
            colour = _colour(report["checkpoints"], name)
            bars = ax.bar(left, [r or 0.0 for r in rates], width * 0.92, color=colour)
            bars.set_label(names[i])
            if len(entries) <= 5:
                shares = ["" if r is None else f"{100 * r:.0f}" for r in rates]
                ax.bar_label(bars, shares, padding=1.5, fontsize=9)
        ax.set_xticks(range(len(SHOWN_RATES)), list(SHOWN_RATES.values()))
        ax.tick_params(axis="x", length=0)
        ax.grid(visible=False, axis="x")
        ax.set_ylim(0, 1.06)
        ax.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100"])
        ax.set_ylabel("share of the questions (%)")
        figure.legend(loc="outside upper center", ncols=min(len(entries), 4), frameon=False)
    return file


def draw_calibration(section: Mapping[str, Any], file: Path) -> Path | None:
    """Predicted against observed agreement with the labels, and the number of pairs per bin."""
    calibration = section.get("calibration")
    if not calibration:
        return None
    predicted, observed, pairs = (
        [each[key] for each in calibration["bins"]] for key in ("predicted", "observed", "pairs")
    )
    with figure_file(file, height=5.6) as figure:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        above.plot([0.5, 1], [0.5, 1], color="black", linewidth=1.2, linestyle="--")
        error = [1.96 * (o * (1 - o) / n) ** 0.5 for o, n in zip(observed, pairs, strict=True)]
        style = {"color": PALETTE[0], "markersize": 7, "capsize": 3.5, "linewidth": 1.8}
        above.errorbar(predicted, observed, yerr=error, fmt="o-", **style)
        above.set_ylim(0, 1.03)
        above.set_ylabel("share of pairs where\nthe labels agree")
        above.annotate("perfectly calibrated", (0.52, 0.52), xytext=(0, -22), **_BESIDE)
        above.set_title(f"expected calibration error {calibration['ece']:.3f}", fontsize=11)
        below.bar(predicted, pairs, width=0.03, color="#BBBBBB")
        below.set_ylabel("pairs")
        below.set_xlim(0.49, 1.01)
        below.set_xlabel("the reward model's probability for its preferred answer")
        figure.align_ylabels([above, below])
    return file


@contextmanager
def styled() -> Iterator[None]:
    """Apply the style of all pictures inside the block.

    matplotlib's style is global to the process, so only one thread at a time may change and restore it.
    """
    import matplotlib

    with _STYLING, matplotlib.rc_context(STYLE):
        yield


@contextmanager
def figure_file(file: Path, *, height: float) -> Iterator[Any]:
    """A figure that is saved at the end. It uses no pyplot state, so threads may draw."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with styled():
        figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        figure.savefig(file)


def _point(ax: Any, interval: Mapping[str, Any], y: float, *, marker: str, colour: str) -> None:
    """Draw a mean with its interval as a horizontal line."""
    style = {"color": colour, "markersize": 7, "capsize": 3.5, "linewidth": 1.8}
    ax.errorbar([interval["mean"]], [y], xerr=error_bar(interval), fmt=marker, **style)


def error_bar(interval: Mapping[str, Any]) -> list[list[float]]:
    """The distances of an interval's ends from its mean, as matplotlib takes them."""
    mean, (low, high) = interval["mean"], interval["ci95"]
    return [[max(0.0, mean - low)], [max(0.0, high - mean)]]


def _names_down(ax: Any, entries: Mapping[str, Any]) -> None:
    """Write the checkpoints' names along the y axis, the first on top."""
    ax.set_yticks(range(len(entries)), short_names(list(entries)))
    ax.set_ylim(len(entries) - 0.45, -0.55)
    ax.tick_params(axis="y", length=0)


def _colour(entries: Mapping[str, Any], name: str) -> str:
    """A checkpoint's colour, the same in all plots."""
    return PALETTE[list(entries).index(name) % len(PALETTE)]


def short_name(name: str, longest: int = LONGEST_NAME) -> str:
    """A long name without its middle, because names often differ at their ends."""
    start = (longest - 1) // 2
    return name if len(name) <= longest else f"{name[:start]}…{name[start + 1 - longest :]}"


def short_names(names: Sequence[str], longest: int = LONGEST_NAME) -> list[str]:
    """The short form of each name, longer than `longest` if two names would look the same."""
    while True:
        short = [short_name(name, longest) for name in names]
        if len(set(short)) == len(set(names)):
            return short
        longest += 8
