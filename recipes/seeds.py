"""The numbers of several pipelines side by side, as a Markdown table and summary.json.

    python recipes/seeds.py runs/seeds/0 runs/seeds/1 runs/seeds/2

Reads   report.json and pipeline.json of each directory.
Writes  summary.json beside them; prints the tables.
"""

import argparse
import datetime
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

from toolkit.errors import ConfigError, ToolkitError
from toolkit.runs import write_json

NAMES = ("report.json", "pipeline.json")
RATES = ("correct", "hallucinated", "harmful_compliance", "over_refusal")
MODELS = ["seed", "model", "gold win rate over SFT", "mean gold", *RATES, "KL", "lm_loss", "ended"]
REWARD = ["seed", "reward model: accuracy", "ceiling", "on clear pairs", "mean of demonstrations"]


def main(folders: list[Path]) -> None:
    found = [(folder.name, *(_read(folder / n) for n in NAMES)) for folder in folders]
    seeds: dict[str, Any] = {}
    models, rewards = [], []
    for seed, report, stages in found:
        scored = report["reward_model"]
        seconds = round(sum(stage["seconds"] for stage in stages.values()))
        peak = max(stage["peak_mb"] for stage in stages.values())
        seeds[seed] = {"reward_model": scored, "seconds": seconds, "peak_mb": peak}
        for name, entry in report["checkpoints"].items():
            win = entry["win_rate_vs_sft"]["gold"]
            low, high = win["ci95"]
            rates = {rate: entry["rates"][rate] for rate in RATES}
            numbers = [entry["gold"]["mean"], *rates.values()]
            ending = [
                f"{entry['kl_to_sft']:.1f}",
                f"{entry['lm_loss']:.3f}",
                f"{entry['ended']:.2f}",
            ]
            win_rate = f"{win['mean']:.2f} [{low:.2f}, {high:.2f}]"
            models.append([seed, name, win_rate, *(f"{n:.2f}" for n in numbers), *ending])
            seeds[seed][name] = {
                "gold_win_rate": win["mean"],
                "ci95": win["ci95"],
                "mean_gold": entry["gold"]["mean"],
                "ended": entry["ended"],
            } | rates
        keys = ("pairwise_accuracy", "ceiling", "clear_gold_accuracy")
        numbers = [f"{scored[key]:.3f}" for key in keys]
        mean, agreement = scored["demonstration_mean"], scored["labeler_agreement"]
        rewards.append(
            [seed, *numbers, f"{mean:+.3f}", f"{agreement:.3f}", str(seconds), str(peak)]
        )
    print(_table(MODELS, models))
    print()
    print(_table([*REWARD, "labelers agree", "seconds", "peak MB"], rewards))
    names = found[0][1]["checkpoints"]
    losses = {n: [report["checkpoints"][n]["lm_loss"] for _, report, _ in found] for n in names}
    made = {"date": datetime.date.today().isoformat(), "cores": os.cpu_count()}
    made["machine"] = platform.machine()
    content = {"schema": 1, "made": made, "seeds": seeds, "lm_loss": losses}
    write_json(folders[0].parent / "summary.json", content)


def _read(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: cannot read it ({error}); run recipes/pipeline.py") from error


def _table(header: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, help="pipelines' directories")
    try:
        main(parser.parse_args().folders)
    except ToolkitError as error:
        sys.exit(f"{type(error).__name__}: {error}")
