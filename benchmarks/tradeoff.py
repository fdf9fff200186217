"""Loss on pretraining text and win rate of PPO-ptx over γ: a table and a picture.

    python benchmarks/tradeoff.py runs/tradeoff --image docs/images/ptx_tradeoff.png      # make tradeoff

Reads   a report of recipes/evaluate.py over SFT and PPO runs that differ in ptx_coef.
Writes  docs/images/ptx_tradeoff.png; prints the table of docs/ppo.md.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import markdown_table, parser, read_json, run_main
from toolkit.errors import ConfigError
from toolkit.runs.run import Run


def main(folder: Path, image: Path) -> None:
    """Print the table and draw the picture."""
    from toolkit.evaluation.report import validate

    report = read_json(folder / "report.json", fix="run `make tradeoff`")
    validate(report)
    sft = report["checkpoints"][report["sft"]]["lm_loss"]
    points = []
    for name, path in Run.load(folder).parents.items():
        entry, gamma = report["checkpoints"][name], Run.load(path).config.get("ptx_coef")
        if gamma is None:
            continue
        win = entry["win_rate_vs_sft"].get("gold") or entry["win_rate_vs_sft"].get("proxy")
        if entry["lm_loss"] is None or sft is None or win is None:
            raise ConfigError(f"{folder}: {name} has no lm_loss or no win rate; set `texts`")
        points.append((gamma, entry["lm_loss"] - sft, win))
    if not points:
        raise ConfigError(f"{folder}: the report has no PPO run")
    plain = next((rise for gamma, rise, _ in points if gamma == 0), None)
    rows = []
    for gamma, rise, win in sorted(points, key=lambda point: point[0]):
        undone = f"{1 - rise / plain:.0%}" if plain else "–"
        low, high = win["ci95"]
        win_rate = f"{win['mean']:.3f} [{low:.2f}, {high:.2f}]"
        rows.append([f"{gamma:g}", f"{rise:+.3f}", undone, win_rate])
    print(markdown_table(["γ", "rise of lm_loss", "undone", "win rate over SFT"], rows))
    image.parent.mkdir(parents=True, exist_ok=True)
    print(f"\n{draw_tradeoff(points, image)}")


def draw_tradeoff(points: Sequence[tuple[float, float, Mapping[str, Any]]], file: Path) -> Path:
    """Draw win rate over the rise of the loss on pretraining text.

    Args:
        points: per run γ, the rise of lm_loss over SFT's in nats per token, and the win rate over
            SFT with its interval.
        file: the PNG to write.
    """
    from toolkit.evaluation.plots import MARKERS, PALETTE, error_bar, figure_file

    ordered = sorted(points, key=lambda point: point[0])
    with figure_file(file, height=5.0) as figure:
        ax = figure.subplots()
        means = [win["mean"] for _, _, win in ordered]
        ax.plot([rise for _, rise, _ in ordered], means, color="#BBBBBB", linewidth=1.4, zorder=1)
        for i, (gamma, rise, win) in enumerate(ordered):
            style = {"color": PALETTE[i % len(PALETTE)], "markersize": 8, "capsize": 3.5}
            marker = MARKERS[i % len(MARKERS)]
            ax.errorbar([rise], [win["mean"]], yerr=error_bar(win), fmt=marker, **style)
            ax.annotate(
                "PPO, no ptx" if gamma == 0 else f"γ = {gamma:g}",
                (rise, win["mean"]),
                xytext=(10, 8),
                textcoords="offset points",
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5},
            )
        ax.margins(x=0.2, y=0.12)
        ax.set_xlabel(
            "rise of the loss on pretraining text over SFT's (nats per token; lower is better)"
        )
        ax.set_ylabel("gold win rate over SFT, 95 % interval\n(higher is better)")
    return file


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    options = parser(__doc__)
    options.add_argument("folder", type=Path, help="the report's directory")
    options.add_argument("--image", type=Path, required=True, help="the PNG to write")
    return options


if __name__ == "__main__":
    run_main(lambda args: main(args.folder, args.image), arguments().parse_args())
