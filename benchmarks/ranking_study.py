"""A test of InstructGPT's claim that all pairs of a prompt in one batch element beat shuffled pairs.

    python benchmarks/ranking_study.py runs/seeds/0 runs/seeds/1 runs/seeds/2      # make ranking

Reads   the SFT run and the comparisons of each pipeline's directory.
Writes  per directory one reward model trained on prompts and one on shuffled pairs (equal steps,
        equal comparisons per step), and ranking.json; prints the table of docs/reward.md.
"""

import argparse
import datetime
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.common import ROOT, markdown_table, parser, run_main
from toolkit.errors import ConfigError, ToolkitError
from toolkit.runs.parents import is_finished
from toolkit.runs.run import Run, write_json

RECIPES = ROOT / "recipes"
CONFIG = RECIPES / "configs" / "world" / "reward.yaml"
PROMPTS_PER_STEP = 8  # as in the config
HEADER = [
    "seed",
    "learned from",
    "held-out accuracy",
    "Kendall's τ",
    "calibration error",
    "seconds",
]
Numbers = dict[str, Any]


def main(folders: list[Path], output_dir: Path) -> None:
    """Train the missing models, print the table and write ranking.json."""
    seeds: dict[str, dict[str, Numbers]] = {}
    for folder in folders:
        pairs = round(PROMPTS_PER_STEP * _pairs_per_prompt(folder))
        options = {
            "prompts": ["--per_device_train_batch_size", str(PROMPTS_PER_STEP)],
            "pairs": ["--per_device_train_batch_size", str(pairs), "--shuffle_pairs", "true"],
        }
        for name, words in options.items():
            run = output_dir / f"{folder.name}-{name}"
            if not is_finished(run):
                _train(folder, run, words)
            seeds.setdefault(folder.name, {})[name] = _numbers(run)
    gain = {
        key: round(mean(s["prompts"][key] - s["pairs"][key] for s in seeds.values()), 4)
        for key in ("accuracy", "kendall_tau", "calibration_error")
    }
    content = {"schema": 1, "date": datetime.date.today().isoformat(), "seeds": seeds, "gain": gain}
    write_json(output_dir / "ranking.json", content)
    print(_table(seeds))
    print(
        f"\nprompts over pairs, mean of {len(seeds)} seeds: accuracy {gain['accuracy']:+.3f}, "
        f"τ {gain['kendall_tau']:+.3f}, calibration error {gain['calibration_error']:+.3f}"
    )


def _pairs_per_prompt(folder: Path) -> float:
    file = folder / "comparisons" / "train.jsonl"
    try:
        with file.open(encoding="utf-8") as lines:
            groups = [json.loads(line)["group_id"] for line in lines]
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error}); see `make seeds`") from error
    return len(groups) / len(set(groups))


def _train(folder: Path, run: Path, options: list[str]) -> None:
    command = [sys.executable, str(RECIPES / "reward.py"), "--config", str(CONFIG)]
    command += ["--parent", str(folder / "sft"), "--dataset_name", str(folder / "comparisons")]
    command += ["--output_dir", str(run), "--save_strategy", "no", *options]
    run.parent.mkdir(parents=True, exist_ok=True)
    with run.with_suffix(".log").open("w", encoding="utf-8") as log:
        if subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode:
            raise ToolkitError(f"{' '.join(command)} failed; see {log.name}")


def _numbers(folder: Path) -> Numbers:
    run = Run.load(folder)
    keys = {"accuracy": "pairwise_accuracy", "ci95": "pairwise_accuracy_ci95"}
    keys |= {name: name for name in ("kendall_tau", "calibration_error", "steps")}
    return {key: run.results[name] for key, name in keys.items()} | {"seconds": run.seconds}


def _table(seeds: dict[str, dict[str, Numbers]]) -> str:
    rows = []
    for seed, by_name in seeds.items():
        for name, n in by_name.items():
            low, high = n["ci95"]
            cells = [f"{n['accuracy']:.3f} [{low:.3f}, {high:.3f}]", f"{n['kendall_tau']:.3f}"]
            cells += [f"{n['calibration_error']:.3f}", f"{n['seconds']:.0f}"]
            rows.append([seed, name, *cells])
    return markdown_table(HEADER, rows)


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    options = parser(__doc__)
    options.add_argument("folders", nargs="+", type=Path, help="output of recipes/pipeline.py")
    options.add_argument("--output_dir", type=Path, default=Path("runs/ranking"))
    return options


if __name__ == "__main__":
    run_main(lambda args: main(args.folders, args.output_dir), arguments().parse_args())
