"""Check a config, its data and its model before training, and predict the memory.

    toolkit check --config world/sft
    toolkit check --config qwen3-0.6b/pipeline --gpu_memory_gb 8

Reads the YAML of a training recipe or of a pipeline. Prints the number of rows, their lengths, samples
as the trainer reads them, and the memory predicted from the shapes of the model. It does not use a GPU.
The exit code is 2 if the run would fail.
"""

import argparse
import math
import os
import sys
from collections.abc import Sequence

from toolkit.cli import run as run_command
from toolkit.errors import ToolkitError, exit_is_error
from toolkit.recipe import Command, recipes


def main(words: Sequence[str]) -> int:
    args, options = arguments().parse_known_args(words)
    if args.gpu_memory_gb is not None and not 0 < args.gpu_memory_gb < math.inf:
        arguments().error(f"--gpu_memory_gb must be above 0, got {args.gpu_memory_gb}")

    from toolkit.preflight.gpu import gpu_memory_gb

    memory_gb = args.gpu_memory_gb or gpu_memory_gb()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the prediction runs on the CPU
    try:
        return check(args.config, options, args.recipe, memory_gb)
    except ToolkitError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2


def check(config: str, options: list[str], recipe: str | None, gpu_memory_gb: float | None) -> int:
    from toolkit.stages import find_stages

    stages = find_stages(config, options, recipe=recipe)

    from toolkit.preflight.check import check_stage  # heavy

    failed = 0
    for stage in stages:
        print(f"=== {stage.name or stage.recipe.name} ({stage.recipe.name})", flush=True)
        try:
            with exit_is_error(stage.recipe.name):
                findings = check_stage(stage, gpu_memory_gb=gpu_memory_gb)
        except Exception as error:  # of any kind, so that the other stages are checked
            failed += 1
            known = isinstance(error, ToolkitError)
            print(f"error: {'' if known else 'cannot be checked: '}{type(error).__name__}: {error}")
            continue
        failed += bool(findings.errors)
        for kind in ("note", "warning", "error"):
            for line in getattr(findings, f"{kind}s"):
                print(f"{kind}: {line}")
        print("would fail" if findings.errors else "no problems found")
    return 2 if failed else 0


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="toolkit check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog="Any other option is an option of the recipe and overrides the YAML.",
    )
    parser.add_argument("--config", required=True, help="YAML of a recipe or of a pipeline")
    parser.add_argument("--recipe", choices=list(recipes()), help="the recipe that the YAML is for")
    parser.add_argument(
        "--gpu_memory_gb", type=float, help="memory of the GPU to predict for (1 GB = 2^30 bytes)"
    )
    return parser


COMMAND = Command("check", __doc__, main)

if __name__ == "__main__":
    sys.exit(run_command(COMMAND))
