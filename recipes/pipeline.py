"""Run the stages of one YAML in order, such as SFT, reward model, PPO, DPO and report.

    toolkit pipeline --config world/pipeline

Each stage runs as a separate command. The output has one line per stage; a stage's output goes to a
log file. Run the same command again to continue after an interruption; a stage whose config changed
runs again.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from toolkit.cli import run as run_command
from toolkit.errors import ToolkitError
from toolkit.options.stage_options import pipeline_arguments
from toolkit.pipeline import Pipeline, run_pipeline
from toolkit.recipe import Command


def main(words: Sequence[str]) -> int:
    options = vars(arguments().parse_args(words))
    try:
        pipeline = Pipeline.read(options.pop("config"), **options)
        run_pipeline(pipeline)
    except ToolkitError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    report = pipeline.directory(pipeline.stages[-1]) / "report.txt"
    if report.is_file():
        print("\n" + report.read_text(encoding="utf-8"))
        print(f"Report: {report.with_name('report.md')} (plots and report.json beside it)")
    print(f"Chat:   {_toolkit()} app --runs {shlex.quote(str(pipeline.output_dir))}")
    return 0


def _toolkit() -> str:
    """The command `toolkit`, with its folder if the folder is inside the working directory."""
    script = Path(sys.executable).with_name("toolkit")
    return str(script.relative_to(Path.cwd())) if script.is_relative_to(Path.cwd()) else script.name


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="toolkit pipeline",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, help="YAML of the pipeline")
    parser.add_argument("--output_dir", help="directory of all stages (default: the YAML's)")
    parser.add_argument("--seed", type=int, help="seed of every stage (default: the YAML's seed)")
    pipeline_arguments(parser)
    return parser


COMMAND = Command("pipeline", __doc__, main)

if __name__ == "__main__":
    sys.exit(run_command(COMMAND))
