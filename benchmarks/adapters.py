"""Every PEFT method in SFT on the embedded world: trainable parameters, size on disk, loss, time.

    python benchmarks/adapters.py --output_dir runs/adapters      # make adapters

Other options are passed to recipes/sft.py, such as --num_train_epochs 1.

Reads   recipes/configs/world/sft.yaml.
Writes  an SFT run per method and adapters.json; prints the table of docs/adapters.md.
"""

import argparse
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from benchmarks.common import ROOT, markdown_table, parser, require_known, run_main
from toolkit.errors import ToolkitError
from toolkit.runs.run import Run, write_json

RECIPES = ROOT / "recipes"
CONFIG = RECIPES / "configs" / "world" / "sft.yaml"
# options of each method; learning rates are the best of a grid with a factor of three
METHODS: dict[str, dict[str, Any]] = {
    "none": {"peft_method": "lora", "learning_rate": 0.0, "max_steps": 1},  # the plain base
    "lora": {},
    "rslora": {},
    "dora": {},
    "adalora": {"learning_rate": 3e-2},
    "prefix": {"learning_rate": 3e-2},
    "prompt": {"learning_rate": 1e-1},
    "ia3": {"learning_rate": 1e-1},
}
WITHOUT_LORA = ("prefix", "prompt", "ia3")
HEADER = [
    "`peft_method`",
    "learning rate",
    "trainable parameters",
    "on disk",
    "SFT loss",
    "seconds",
]


def main(args: argparse.Namespace) -> None:
    """Train each method and write the table after each."""
    require_known("method", args.methods, METHODS)
    rows = []
    for method in args.methods:
        numbers = measure(train(method, args.output_dir / method, args.sft_options))
        if method == "none":
            numbers |= {"trainable": 0, "bytes": 0}
        rows.append({"method": method} | numbers)
        print(f"{method}: {rows[-1]}", flush=True)
        write_json(args.output_dir / "adapters.json", {"schema": 1, "methods": rows})
    print(f"\n{to_markdown(rows)}")


def train(method: str, folder: Path, sft_options: list[str]) -> Run:
    """Run the SFT recipe with one method, with held-out loss after every epoch."""
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    if method in WITHOUT_LORA:
        config = {k: v for k, v in config.items() if not k.startswith("lora_")}
    config |= {"peft_method": method, "output_dir": str(folder)} | METHODS[method]
    config |= {"eval_strategy": "epoch", "save_strategy": "no", "disable_tqdm": True}
    command = [sys.executable, str(RECIPES / "sft.py")]
    for name, value in config.items():
        command += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    process = subprocess.run([*command, *sft_options], capture_output=True, text=True, check=False)
    if process.returncode != 0:
        last = (process.stderr.strip() or "no output").splitlines()[-1]
        raise ToolkitError(f"{method}: SFT failed: {last}")
    return Run.load(folder)


def measure(run: Run) -> dict[str, Any]:
    """The numbers of one SFT run."""
    losses = [row["eval_loss"] for row in run.metrics() if "eval_loss" in row]
    files = [run.path / name for name in ("adapter_model.safetensors", "adapter_config.json")]
    return {
        "learning_rate": run.config["learning_rate"],
        "trainable": run.results["trainable_parameters"],
        "bytes": sum(file.stat().st_size for file in files),
        "loss": losses[-1] if losses else math.nan,
        "seconds": round(run.seconds or math.nan, 1),
    }


def to_markdown(rows: list[dict[str, Any]]) -> str:
    """A table, one method per line."""
    cells = [
        [
            f"`{r['method']}`",
            f"{r['learning_rate']:g}",
            f"{r['trainable']:,}",
            f"{r['bytes'] / 1000:,.0f} kB",
            f"{r['loss']:.3f}",
            f"{r['seconds']:.0f}",
        ]
        for r in rows
    ]
    return markdown_table(HEADER, cells)


def arguments() -> argparse.ArgumentParser:
    """The command line; unknown options are passed to SFT."""
    options = parser(__doc__)
    options.add_argument("--methods", nargs="+", default=list(METHODS), help=", ".join(METHODS))
    options.add_argument("--output_dir", type=Path, default=Path("runs/adapters"))
    return options


if __name__ == "__main__":
    args, args.sft_options = arguments().parse_known_args()
    run_main(main, args)
