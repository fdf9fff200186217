"""Which method to use: the numbers of `make compare`.

    python benchmarks/methods.py runs/compare/0 runs/compare/1 runs/compare/2      # make compare

Reads   report.json and pipeline.json of each pipeline world/compare.
Writes  docs/results/compare.json, and gold_kl.png of the first seed to docs/images/; prints a table and the
        targets that are missed.
"""

import argparse
import datetime
import os
import platform
import shutil
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.common import ROOT, markdown_table, parser, read_json, run_main
from toolkit.runs.run import write_json

FIX = "run `make compare`"
# the stages whose seconds a method takes, besides SFT, comparisons and the reward model
STAGES = {
    "ppo": ["ppo"],
    "rloo": ["rloo"],
    "grpo": ["grpo"],
    "dpo": ["dpo"],
    "kto": ["kto"],
    "iterative_dpo": ["samples_1", "dpo_1", "samples_2", "iterative_dpo"],
    "rejection_sft": ["samples", "rejection_sft"],
}
COLUMNS = [
    "gold_win_rate",
    "gold",
    "correct",
    "over_refusal",
    "kl",
    "lm_loss",
    "seconds",
    "peak_memory_mb",
]
LEAST_WINS = {"rloo": 0.72, "grpo": 0.72, "rejection_sft": 0.60, "best_of_16": 0.75}
MOST_OVER_REFUSAL = {"rloo": 0.08, "grpo": 0.08}


def main(args: argparse.Namespace) -> None:
    """Write the summary and the picture; print the tables."""
    reports = {f.name: read_json(f / "report.json", fix=FIX) for f in args.folders}
    seeds = {
        f.name: numbers(reports[f.name], read_json(f / "pipeline.json", fix=FIX))
        for f in args.folders
    }
    write_json(
        args.output,
        {
            "schema": 1,
            "made": {
                "date": datetime.date.today().isoformat(),
                "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            },
            "seeds": seeds,
            "gao": {name: report["overoptimization"] for name, report in reports.items()},
        },
    )
    picture = args.folders[0] / "gold_kl.png"
    if picture.is_file():
        shutil.copy(picture, args.images / "compare.png")
    print(markdown_table(["method", *COLUMNS], rows(seeds)))
    for line in missed(seeds):
        print(line)


def numbers(report: dict[str, Any], stages: dict[str, Any]) -> dict[str, Any]:
    """The numbers of each method for a seed."""
    methods = {}
    for name, entry in report["checkpoints"].items():
        win = entry["win_rate_vs_sft"]["gold"]
        used = [stages[stage] for stage in STAGES.get(name, [])]
        methods[name] = {
            "gold_win_rate": win["mean"],
            "ci95": win["ci95"],
            "gold": entry["gold"]["mean"],
            "correct": entry["rates"]["correct"],
            "over_refusal": entry["rates"]["over_refusal"],
            "kl": entry["kl_to_sft"],
            "lm_loss": entry["lm_loss"],
            "seconds": round(sum(stage["seconds"] for stage in used), 1) if used else None,
            "peak_memory_mb": max(stage["peak_mb"] for stage in used) if used else None,
        }
    return methods


def rows(seeds: dict[str, Any]) -> list[list[str]]:
    """One line per method: means over the seeds."""
    lines = []
    for name in next(iter(seeds.values())):
        cells = []
        for column in COLUMNS:
            values = [methods[name][column] for methods in seeds.values()]
            known = [value for value in values if value is not None]
            digits = 0 if column in ("seconds", "peak_memory_mb") else 2
            cells.append(f"{mean(known):.{digits}f}" if known else "–")
        lines.append([name, *cells])
    return lines


def missed(seeds: dict[str, Any]) -> list[str]:
    """A line for each target that a seed misses."""
    lines = []
    for seed, methods in seeds.items():
        for name, least in LEAST_WINS.items():
            if methods[name]["gold_win_rate"] < least:
                lines.append(
                    f"seed {seed}: {name} wins {methods[name]['gold_win_rate']:.3f} < {least}"
                )
        for name, most in MOST_OVER_REFUSAL.items():
            if methods[name]["over_refusal"] > most:
                value = methods[name]["over_refusal"]
                lines.append(f"seed {seed}: {name} refuses {value:.3f} of good requests > {most}")
            if methods[name]["correct"] < methods["sft"]["correct"]:
                lines.append(f"seed {seed}: {name} has fewer correct answers than SFT")
    return lines


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    options = parser(__doc__)
    options.add_argument("folders", nargs="+", type=Path, help="pipelines world/compare")
    options.add_argument("--output", type=Path, default=ROOT / "docs/results/compare.json")
    options.add_argument("--images", type=Path, default=ROOT / "docs/images")
    return options


if __name__ == "__main__":
    run_main(main, arguments().parse_args())
