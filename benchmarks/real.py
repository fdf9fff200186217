"""What was learned on SmolLM2-135M-Instruct: numbers and pictures of `make real`.

    make real           # obtains the model, runs the pipelines, then:
    python benchmarks/real.py runs/real/0 runs/real/1 runs/real/2 --preferences runs/real/preferences

Reads   report.json, pipeline.json and the PPO metrics of each pipeline. Numbers in summary.json
        whose pipelines are not named stay as they are.
Writes  docs/results/real/: summary.json, tone.png, the report of the first seed (tone/), and the plots
        of the preferences (preferences/). Prints the table of docs/real.md.
"""

import argparse
import datetime
import json
import os
import platform
import shutil
from pathlib import Path
from typing import Any

from benchmarks.common import markdown_table, parser, read_json, run_main
from toolkit.runs.run import Run, write_json

MACHINE = f"{platform.machine()}, {os.cpu_count()} cores"
FIX = "run `make real`"
PLOTS = ("gold_proxy.png", "win_rates.png", "training.png", "calibration.png")


def main(args: argparse.Namespace) -> None:
    """Write the summary, the picture and the reports; print the table."""
    args.output.mkdir(parents=True, exist_ok=True)
    file = args.output / "summary.json"
    summary: dict[str, Any] = read_json(file, fix=FIX) if file.is_file() else {"seeds": {}}
    summary |= {
        "schema": 1,
        "made": {"date": datetime.date.today().isoformat(), "machine": MACHINE},
    }
    if args.folders:
        summary["seeds"] = {folder.name: {"ppo": tone_numbers(folder)} for folder in args.folders}
        copy_report(args.folders[0], args.output / "tone")
        logs = {folder.name: Run.load(folder / "ppo").metrics() for folder in args.folders}
        draw(logs, args.output / "tone.png")
    if args.preferences is not None:
        summary |= preference_numbers(args.preferences)
        # without report.md, which quotes the dataset
        copy_report(args.preferences, args.output / "preferences", names=PLOTS)
    write_json(file, summary)
    print(table(summary["seeds"]))
    print(json.dumps({k: v for k, v in summary.items() if k != "seeds"}, indent=1))


def tone_numbers(folder: Path) -> dict[str, Any]:
    """What PPO changed in the tone of the answers to held-out prompts."""
    sft, ppo = (report(folder)["checkpoints"][name] for name in ("sft", "ppo"))
    return {
        "reward": {"sft": sft["proxy"]["mean"], "ppo": ppo["proxy"]["mean"]},
        "gain": ppo["gain_vs_sft"]["proxy"],
        "kl": ppo["kl_to_sft"],
        "perplexity_ratio": round(ppo["base_perplexity"] / sft["base_perplexity"], 3),
        "ended": {"sft": sft["ended"], "ppo": ppo["ended"]},
        "length": {"sft": sft["length"], "ppo": ppo["length"]},
        "minutes": minutes(folder, "ppo"),
        "warnings": Run.load(folder / "ppo").results.get("warnings", []),
    }


def preference_numbers(folder: Path) -> dict[str, Any]:
    """The reward model against chance and against "the longer answer is better"; PPO and DPO from it."""
    judged = report(folder)["reward_model"]
    numbers: dict[str, Any] = {
        "reward_model": {
            "accuracy": judged["pairwise_accuracy"],
            "ci95": judged["pairwise_accuracy_ci95"],
            "length_baseline": judged["length_accuracy"],
            "length_correlation": judged["length_correlation"],
            "pairs": judged["pairs"],
            "minutes": minutes(folder, "reward"),
        }
    }
    for name in ("ppo", "dpo"):
        entry = report(folder)["checkpoints"][name]
        numbers[name] = {
            "score": entry["proxy"]["mean"],
            "gain": entry["gain_vs_sft"]["proxy"],
            "win_rate_vs_sft": entry["win_rate_vs_sft"]["proxy"],
            "kl": entry["kl_to_sft"],
            "perplexity": entry["base_perplexity"],
            "ended": entry["ended"],
            "length": entry["length"],
            "minutes": minutes(folder, name),
        }
    return numbers


def report(folder: Path) -> dict[str, Any]:
    """The report of a pipeline."""
    return read_json(folder / "report.json", fix=FIX)


def minutes(folder: Path, stage: str) -> float:
    """Minutes of a stage."""
    stages = read_json(folder / "pipeline.json", fix=FIX)
    return round(stages[stage]["seconds"] / 60, 1)


def copy_report(
    folder: Path, output: Path, *, names: tuple[str, ...] = ("report.md", *PLOTS)
) -> None:
    """Copy a report and its plots."""
    output.mkdir(exist_ok=True)
    for name in names:
        if (folder / name).is_file():
            shutil.copy(folder / name, output / name)


def draw(logs: dict[str, list[dict[str, Any]]], file: Path) -> None:
    """Plot held-out tone, KL and share of ended answers over the episodes, one line per seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.2), layout="constrained")
    panels = {
        "held-out tone (VADER)": "eval_objective/scores",
        "KL to SFT, nats per answer": "eval_objective/kl",
        "share of answers that end": "eval_objective/ended",
    }
    for axes, (title, key) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for seed, rows in logs.items():
            points = [(row["step"], row[key]) for row in rows if key in row]
            axes.plot(*zip(*points, strict=True), marker="o", label=f"seed {seed}")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("optimizer step")
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    figure.savefig(file, dpi=120)


def table(seeds: dict[str, Any]) -> str:
    """One line per seed."""
    header = ["seed", "tone before", "after", "gain [95 %]", "KL", "perplexity, after / before"]
    header += ["ended before", "after", "minutes of PPO"]
    rows = []
    for seed, entry in seeds.items():
        ppo = entry["ppo"]
        low, high = ppo["gain"]["ci95"]
        rows.append(
            [
                seed,
                *(f"{ppo['reward'][name]:.2f}" for name in ("sft", "ppo")),
                f"{ppo['gain']['mean']:.2f} [{low:.2f}, {high:.2f}]",
                f"{ppo['kl']:.1f}",
                f"{ppo['perplexity_ratio']:.2f}",
                *(f"{ppo['ended'][name]:.2f}" for name in ("sft", "ppo")),
                f"{ppo['minutes']:.1f}",
            ]
        )
    return markdown_table(header, rows)


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    options = parser(__doc__)
    options.add_argument("folders", nargs="*", type=Path, help="pipelines smollm2-135m/tone")
    options.add_argument("--preferences", type=Path, help="a pipeline smollm2-135m/pipeline")
    options.add_argument("--output", type=Path, default=Path("docs/results/real"))
    return options


if __name__ == "__main__":
    run_main(main, arguments().parse_args())
