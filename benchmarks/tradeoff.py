"""What PPO-ptx keeps of pretraining and what it costs in win rate, over γ: a table and a picture.

    python benchmarks/tradeoff.py runs/tradeoff --image docs/images/ptx_tradeoff.png

Reads   a report of recipes/evaluate.py over SFT and PPO runs that differ in ptx_coef.
Writes  the picture (PNG); prints the table.
"""

import argparse
import json
import sys
from pathlib import Path

from toolkit.errors import ConfigError, ToolkitError
from toolkit.runs.run import Run


def main(folder: Path, image: Path) -> None:
    from toolkit.evaluation.plots import draw_tradeoff
    from toolkit.evaluation.report import validate

    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder}: no report ({error}); see `make tradeoff`") from error
    validate(report)
    sft = report["checkpoints"][report["sft"]]["lm_loss"]
    points = []
    for name, path in Run.load(folder).parents.items():
        entry, run = report["checkpoints"][name], Run.load(path)
        if run.recipe != "ppo":
            continue
        win = entry["win_rate_vs_sft"].get("gold") or entry["win_rate_vs_sft"].get("proxy")
        if entry["lm_loss"] is None or sft is None or win is None:
            raise ConfigError(f"{folder}: {name} has no lm_loss or no win rate (`texts`)")
        points.append((run.config.get("ptx_coef", 0.0), entry["lm_loss"] - sft, win))
    if not points:
        raise ConfigError(f"{folder}: the report has no PPO run")
    plain = next((rise for gamma, rise, _ in points if gamma == 0), None)
    print("| γ | rise of lm_loss | undone | win rate over SFT |\n| --- | --- | --- | --- |")
    for gamma, rise, win in sorted(points, key=lambda point: point[0]):
        undone = f"{1 - rise / plain:.0%}" if plain else "–"
        low, high = win["ci95"]
        print(f"| {gamma:g} | {rise:+.3f} | {undone} | {win['mean']:.3f} [{low:.2f}, {high:.2f}] |")
    image.parent.mkdir(parents=True, exist_ok=True)
    print(f"\n{draw_tradeoff(points, image)}")


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="the report's directory")
    parser.add_argument("--image", type=Path, required=True, help="where the picture goes")
    return parser


if __name__ == "__main__":
    try:
        main(**vars(arguments().parse_args()))
    except ToolkitError as error:
        sys.exit(f"{type(error).__name__}: {error}")
