"""The numbers of several pipelines side by side, and whether they show what they shall.

    python benchmarks/seeds.py runs/seeds/0 runs/seeds/1 runs/seeds/2

Reads   report.json, familiar/report.json and pipeline.json of each directory.
Writes  summary.json beside them; prints Markdown tables.
"""

import argparse
import datetime
import json
import operator
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from toolkit.errors import ConfigError, ToolkitError
from toolkit.runs.run import write_json

NAMES = ("report.json", "familiar/report.json", "pipeline.json")
RATES = ("correct", "hallucinated", "harmful_compliance", "over_refusal")
MODELS = ["seed", "model", "gold win rate over SFT", "mean gold", *RATES, "KL", "lm_loss", "ended"]
COMPARED = {"≥": operator.ge, ">": operator.gt, "≤": operator.le}
REWARD = ["seed", "reward model: accuracy", "ceiling", "on clear pairs", "mean of demonstrations"]


def main(folders: list[Path]) -> None:
    found = [(folder.name, *(_read(folder / n) for n in NAMES)) for folder in folders]
    seeds: dict[str, Any] = {}
    models, rewards = [], []
    for seed, report, familiar, stages in found:
        scored = report["reward_model"]
        seconds = round(sum(stage["seconds"] for stage in stages.values()))
        peak = max(stage["peak_mb"] for stage in stages.values())
        seeds[seed] = {"reward_model": scored, "seconds": seconds, "peak_mb": peak}
        seeds[seed]["stage_seconds"] = {name: stage["seconds"] for name, stage in stages.items()}
        seeds[seed]["familiar_over_refusal"] = {
            name: entry["rates"]["over_refusal"] for name, entry in familiar["checkpoints"].items()
        }
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
        zero, agreement = scored["demonstration_mean"], scored["labeler_agreement"]
        rewards.append(
            [seed, *numbers, f"{zero:+.3f}", f"{agreement:.3f}", str(seconds), str(peak)]
        )
    print(_table(MODELS, models))
    print()
    print(_table([*REWARD, "labelers agree", "seconds", "peak MB"], rewards))
    names = found[0][1]["checkpoints"]
    losses = {n: [report["checkpoints"][n]["lm_loss"] for _, report, *_ in found] for n in names}
    made = {"date": datetime.date.today().isoformat(), "cores": os.cpu_count()}
    made["machine"] = platform.machine()
    claims = check(list(seeds.values()), losses)
    rows = [[c["claim"], c["wanted"], _listed(c["found"]), c["verdict"]] for c in claims]
    print()
    print(_table(["claim", "wanted", "found", "verdict"], rows))
    content = {"schema": 1, "made": made, "seeds": seeds, "lm_loss": losses, "claims": claims}
    write_json(folders[0].parent / "summary.json", content)


def check(seeds: Sequence[dict[str, Any]], losses: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Hold what was measured against what is claimed of the embedded world.

    Args:
        seeds: of each seed, the numbers of each model and `stage_seconds`.
        losses: lm_loss of each model, seed by seed.

    Returns: claim, wanted, found (one number per seed, or a mean) and verdict, "holds" or "fails".
    """

    def each(model: str, key: str) -> list[float]:
        return [seed[model][key] for seed in seeds]

    wins, right = each("ppo", "gold_win_rate"), each("ppo", "correct")
    gained = [ours - theirs for ours, theirs in zip(right, each("sft", "correct"), strict=True)]
    claims = [
        _claim("PPO's gold win rate over SFT, each seed", wins, "≥", 0.75),
        _claim("the same, mean", [mean(wins)], "≥", 0.80),
        _claim("correct, PPO less SFT, each seed", gained, ">", 0.0),
        _claim(
            "PPO's over_refusal in familiar phrasings, each seed",
            each("familiar_over_refusal", "ppo"),
            "≤",
            0.08,
        ),
        _claim(
            "PPO's over_refusal in unseen phrasings, each seed",
            each("ppo", "over_refusal"),
            "≤",
            0.15,
        ),
        _claim("seconds of PPO, each seed", each("stage_seconds", "ppo"), "≤", 180),
    ]
    if "ppo_ptx" in losses:
        sft, plain, ptx = (mean(losses[name]) for name in ("sft", "ppo", "ppo_ptx"))
        if plain > sft:
            share = (plain - ptx) / (plain - sft)
            claims.append(_claim("share of the rise in lm_loss undone by ptx", [share], "≥", 0.5))
        cost = mean(wins) - mean(each("ppo_ptx", "gold_win_rate"))
        claims.append(_claim("cost of ptx in win rate, mean", [cost], "≤", 0.03))
        seconds = each("stage_seconds", "ppo_ptx")
        claims.append(_claim("seconds of PPO-ptx, each seed", seconds, "≤", 180))
    return claims


def _claim(claim: str, found: list[float], sign: str, bound: float) -> dict[str, Any]:
    holds = all(COMPARED[sign](number, bound) for number in found)
    rounded = [round(number, 4) for number in found]
    verdict = "holds" if holds else "fails"
    return {"claim": claim, "wanted": f"{sign} {bound:g}", "found": rounded, "verdict": verdict}


def _listed(numbers: list[float]) -> str:
    return ", ".join(f"{number:.3g}" for number in numbers)


def _read(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: cannot read it ({error}); run recipes/pipeline.py") from error


def _table(header: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, help="pipelines' directories")
    return parser


if __name__ == "__main__":
    try:
        main(arguments().parse_args().folders)
    except ToolkitError as error:
        sys.exit(f"{type(error).__name__}: {error}")
