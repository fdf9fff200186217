"""Every kind of adapter on the embedded world: what it trains, weighs on disk, and learns in SFT.

    python benchmarks/adapters.py --output_dir runs/adapters

Further words go to recipes/sft.py, such as --num_train_epochs 1.

Reads   recipes/configs/world/sft.yaml, whose demonstrations all learn from.
Writes  an SFT run per method and adapters.json; prints a Markdown table.
"""

import argparse
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from toolkit.errors import ConfigError, ToolkitError
from toolkit.runs.run import Run, write_json

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
CONFIG = RECIPES / "configs" / "world" / "sft.yaml"
# what a method needs of its own; learning rates are the best of those tried, thrice apart
METHODS: dict[str, dict[str, Any]] = {
    "none": {"peft_method": "lora", "learning_rate": 0.0, "max_steps": 1},  # the base as it is
    "lora": {},
    "rslora": {},
    "dora": {},
    "adalora": {"learning_rate": 3e-2},
    "prefix": {"learning_rate": 3e-2},
    "prompt": {"learning_rate": 1e-1},
    "ia3": {"learning_rate": 1e-1},
}
WITHOUT_LORA = ("prefix", "prompt", "ia3")


def main(args: argparse.Namespace) -> None:
    if unknown := [m for m in args.methods if m not in METHODS]:
        raise ConfigError(f"no method {unknown[0]!r}; there are {', '.join(METHODS)}")
    rows = []
    for method in args.methods:
        run = train(method, args.output_dir / method, args.further)
        rows.append({"method": method} | look(run))
        if method == "none":
            rows[-1] |= {"trainable": 0, "bytes": 0}
        print(f"{method}: {rows[-1]}", flush=True)
        write_json(args.output_dir / "adapters.json", {"schema": 1, "methods": rows})
    print(f"\n{to_markdown(rows)}")


def train(method: str, folder: Path, further: list[str]) -> Run:
    """SFT as a user would call it, with held-out loss after every epoch."""
    shape = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    if method in WITHOUT_LORA:
        shape = {k: v for k, v in shape.items() if not k.startswith("lora_")}
    given = shape | {"peft_method": method, "output_dir": str(folder)} | METHODS[method]
    given |= {"eval_strategy": "epoch", "save_strategy": "no", "disable_tqdm": True}
    words = [sys.executable, str(RECIPES / "sft.py")]
    for name, value in given.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    done = subprocess.run([*words, *further], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ToolkitError(f"{method}: SFT failed: {(done.stderr.strip() or '?').splitlines()[-1]}")
    return Run.load(folder)


def look(run: Run) -> dict[str, Any]:
    """Numbers of one run."""
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
    header = [
        "`peft_method`",
        "learning rate",
        "trainable parameters",
        "on disk",
        "SFT loss",
        "seconds",
    ]
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
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, ["---"] * 6, *cells])


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--output_dir", type=Path, default=Path("runs/adapters"))
    return parser


if __name__ == "__main__":
    args, args.further = arguments().parse_known_args()
    try:
        main(args)
    except ToolkitError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(2)
