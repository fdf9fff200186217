"""Compare pipelines of several seeds, and check the claims of the docs against their numbers.

    python benchmarks/seeds.py runs/seeds/0 runs/seeds/1 runs/seeds/2      # make seeds

Reads   report.json, familiar/report.json and pipeline.json of each directory.
Writes  summary.json beside the directories (docs/results/seeds.json); prints the tables of docs/seeds.md.
"""

import argparse
import datetime
import operator
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.common import markdown_table, parser, read_json, run_main
from toolkit.runs.run import write_json

NAMES = ("report.json", "familiar/report.json", "pipeline.json")
RATES = ("correct", "hallucinated", "harmful_compliance", "over_refusal")
MODELS = ["seed", "model", "gold win rate over SFT", "mean gold", *RATES, "KL", "lm_loss", "ended"]
COMPARED = {"≥": operator.ge, ">": operator.gt, "≤": operator.le}
REWARD = ["seed", "reward model: accuracy", "ceiling", "on clear pairs", "mean of demonstrations"]
REWARD += ["labelers agree", "seconds", "peak MB"]


def main(folders: list[Path]) -> None:
    """Print the tables and write summary.json."""
    seeds: dict[str, Any] = {}
    losses: dict[str, list[float]] = {}
    models, rewards = [], []
    for folder in folders:
        report, familiar, stages = (
            read_json(folder / name, fix="run recipes/pipeline.py") for name in NAMES
        )
        reward = report["reward_model"]
        seconds = {name: stage["seconds"] for name, stage in stages.items()}
        total, peak = round(sum(seconds.values())), max(s["peak_mb"] for s in stages.values())
        entries = report["checkpoints"]
        seeds[folder.name] = {
            "reward_model": reward,
            "seconds": total,
            "peak_mb": peak,
            "stage_seconds": seconds,
            "familiar_over_refusal": {
                name: entry["rates"]["over_refusal"]
                for name, entry in familiar["checkpoints"].items()
            },
        } | {name: _numbers(entry) for name, entry in entries.items()}
        for name, entry in entries.items():
            models.append([folder.name, name, *_cells(entry)])
            losses.setdefault(name, []).append(entry["lm_loss"])
        accuracies = ("pairwise_accuracy", "ceiling", "clear_gold_accuracy")
        cells = [f"{reward[key]:.3f}" for key in accuracies]
        cells += [f"{reward['demonstration_mean']:+.3f}", f"{reward['labeler_agreement']:.3f}"]
        rewards.append([folder.name, *cells, str(total), str(peak)])
    claims = check(list(seeds.values()), losses)
    rows = [[c["claim"], c["wanted"], _listed(c["found"]), c["verdict"]] for c in claims]
    print(markdown_table(MODELS, models), end="\n\n")
    print(markdown_table(REWARD, rewards), end="\n\n")
    print(markdown_table(["claim", "wanted", "found", "verdict"], rows))
    machine = {"cores": os.cpu_count(), "machine": platform.machine()}
    made = {"date": datetime.date.today().isoformat()} | machine
    content = {"schema": 1, "made": made, "seeds": seeds, "lm_loss": losses, "claims": claims}
    write_json(folders[0].parent / "summary.json", content)


def _numbers(entry: dict[str, Any]) -> dict[str, Any]:
    """The numbers of one model in summary.json."""
    win = entry["win_rate_vs_sft"]["gold"]
    return {
        "gold_win_rate": win["mean"],
        "ci95": win["ci95"],
        "mean_gold": entry["gold"]["mean"],
        "ended": entry["ended"],
    } | {rate: entry["rates"][rate] for rate in RATES}


def _cells(entry: dict[str, Any]) -> list[str]:
    """The cells of one model in the first table."""
    win = entry["win_rate_vs_sft"]["gold"]
    low, high = win["ci95"]
    means = [entry["gold"]["mean"], *(entry["rates"][rate] for rate in RATES)]
    ends = [f"{entry['kl_to_sft']:.1f}", f"{entry['lm_loss']:.3f}", f"{entry['ended']:.2f}"]
    return [f"{win['mean']:.2f} [{low:.2f}, {high:.2f}]", *(f"{n:.2f}" for n in means), *ends]


def check(seeds: Sequence[dict[str, Any]], losses: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Compare the measured numbers with the claims about the embedded world.

    Args:
        seeds: per seed, the numbers of each model and `stage_seconds`.
        losses: lm_loss of each model, one number per seed.

    Returns: claim, wanted, found (a number per seed, or a mean) and verdict ("holds" or "fails").
    """

    def each(model: str, key: str) -> list[float]:
        return [seed[model][key] for seed in seeds]

    wins = each("ppo", "gold_win_rate")
    gains = [a - b for a, b in zip(each("ppo", "correct"), each("sft", "correct"), strict=True)]
    familiar = each("familiar_over_refusal", "ppo")
    unseen = each("ppo", "over_refusal")
    claims = [
        _claim("PPO's gold win rate over SFT, each seed", wins, "≥", 0.75),
        _claim("PPO's gold win rate over SFT, mean", [mean(wins)], "≥", 0.80),
        _claim("share of correct answers, PPO minus SFT, each seed", gains, ">", 0.0),
        _claim("PPO's over_refusal in familiar phrasings, each seed", familiar, "≤", 0.08),
        _claim("PPO's over_refusal in unseen phrasings, each seed", unseen, "≤", 0.15),
        _claim("seconds that PPO takes, each seed", each("stage_seconds", "ppo"), "≤", 180),
    ]
    if "ppo_ptx" in losses:
        sft, plain, ptx = (mean(losses[name]) for name in ("sft", "ppo", "ppo_ptx"))
        if plain > sft:
            share = (plain - ptx) / (plain - sft)
            claims.append(
                _claim("share of PPO's rise in lm_loss that PPO-ptx avoids", [share], "≥", 0.5)
            )
        cost = mean(wins) - mean(each("ppo_ptx", "gold_win_rate"))
        claims.append(_claim("win rate, PPO minus PPO-ptx, mean", [cost], "≤", 0.03))
        seconds = each("stage_seconds", "ppo_ptx")
        claims.append(_claim("seconds that PPO-ptx takes, each seed", seconds, "≤", 180))
    return claims


def _claim(claim: str, numbers: list[float], sign: str, bound: float) -> dict[str, Any]:
    holds = all(COMPARED[sign](number, bound) for number in numbers)
    return {
        "claim": claim,
        "wanted": f"{sign} {bound:g}",
        "found": [round(number, 4) for number in numbers],
        "verdict": "holds" if holds else "fails",
    }


def _listed(numbers: list[float]) -> str:
    return ", ".join(f"{number:.3g}" for number in numbers)


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    options = parser(__doc__)
    options.add_argument("folders", nargs="+", type=Path, help="output of recipes/pipeline.py")
    return options


if __name__ == "__main__":
    run_main(lambda args: main(args.folders), arguments().parse_args())
