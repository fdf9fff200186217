"""InstructGPT's claim, tested: does learning all pairs of a prompt together beat shuffled pairs?

    python benchmarks/ranking_study.py runs/seeds/0 runs/seeds/1 runs/seeds/2 --output_dir runs/ranking

Reads   the SFT run and the comparisons of each pipeline's directory.
Writes  per directory a reward model trained on prompts and one on shuffled pairs (as many
        comparisons per step, and as many steps), ranking.json; prints a table.
"""

import argparse
import datetime
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean

from toolkit.errors import ConfigError, ToolkitError
from toolkit.runs.parents import is_finished
from toolkit.runs.run import Run, write_json

CONFIG = "recipes/configs/world/reward.yaml"
PROMPTS_PER_STEP = 8  # as in the config
HEADER = [
    "seed",
    "learned from",
    "held-out accuracy",
    "Kendall's τ",
    "calibration error",
    "seconds",
]


def main(folders: list[Path], output_dir: Path) -> None:
    found: dict[str, dict[str, dict[str, object]]] = {}
    for folder in folders:
        size = PROMPTS_PER_STEP * _pairs_per_prompt(folder)
        for name, options in (
            ("prompts", ["--per_device_train_batch_size", str(PROMPTS_PER_STEP)]),
            (
                "pairs",
                ["--per_device_train_batch_size", str(round(size)), "--shuffle_pairs", "true"],
            ),
        ):
            run = output_dir / f"{folder.name}-{name}"
            if not is_finished(run):
                _train(folder, run, options)
            found.setdefault(folder.name, {})[name] = _numbers(run)
    gain = {
        key: round(mean(s["prompts"][key] - s["pairs"][key] for s in found.values()), 4)  # type: ignore[operator]
        for key in ("accuracy", "kendall_tau", "calibration_error")
    }
    written = {"schema": 1, "date": datetime.date.today().isoformat(), "seeds": found, "gain": gain}
    write_json(output_dir / "ranking.json", written)
    print(_table(found))
    print(
        f"\nprompts over pairs, mean of {len(found)} seeds: accuracy {gain['accuracy']:+.3f}, "
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
    command = [sys.executable, "recipes/reward.py", "--config", CONFIG]
    command += ["--parent", str(folder / "sft"), "--dataset_name", str(folder / "comparisons")]
    command += ["--output_dir", str(run), "--save_strategy", "no", *options]
    run.parent.mkdir(parents=True, exist_ok=True)
    with run.with_suffix(".log").open("w", encoding="utf-8") as log:
        if subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode:
            raise ToolkitError(f"{' '.join(command)} failed; see {log.name}")


def _numbers(run: Path) -> dict[str, object]:
    done = Run.load(run)
    names = {"accuracy": "pairwise_accuracy", "ci95": "pairwise_accuracy_ci95"}
    names |= {name: name for name in ("kendall_tau", "calibration_error", "steps")}
    return {key: done.results[name] for key, name in names.items()} | {"seconds": done.seconds}


def _table(found: dict[str, dict[str, dict[str, object]]]) -> str:
    rows = [HEADER, ["---"] * len(HEADER)]
    for seed, ways in found.items():
        for way, n in ways.items():
            low, high = n["ci95"]  # type: ignore[misc]
            numbers = [f"{n['accuracy']:.3f} [{low:.3f}, {high:.3f}]", f"{n['kendall_tau']:.3f}"]
            numbers += [f"{n['calibration_error']:.3f}", f"{n['seconds']:.0f}"]
            rows.append([seed, way, *numbers])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, help="of recipes/pipeline.py")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/ranking"))
    return parser


if __name__ == "__main__":
    try:
        args = arguments().parse_args()
        main(args.folders, args.output_dir)
    except ToolkitError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(2)
