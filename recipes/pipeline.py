"""The whole job from one YAML: SFT, comparisons, reward model, PPO, DPO, report.

    python recipes/pipeline.py --config recipes/configs/world/pipeline.yaml

Calls the other recipes as you would, one line per stage; their output goes to a log per stage.
Started again it continues where it stopped; a stage whose config you changed runs again.
"""

import argparse
import sys
from pathlib import Path

from toolkit.errors import ToolkitError
from toolkit.pipeline import Pipeline, run_pipeline


def main(pipeline: Pipeline) -> None:
    run_pipeline(pipeline)
    report = pipeline.directory(pipeline.stages[-1]) / "report.txt"
    if report.is_file():
        print("\n" + report.read_text(encoding="utf-8"))
        print(f"Report: {report.with_name('report.md')} (plots and report.json beside it)")
    python = Path(sys.executable)
    if python.is_relative_to(Path.cwd()):
        python = python.relative_to(Path.cwd())
    print(f"Chat:   {python} app.py --runs {pipeline.output_dir}")


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, help="the pipeline's YAML")
    parser.add_argument("--output_dir", help="directory of all stages (default: the YAML's)")
    parser.add_argument("--seed", type=int, help="seed of every stage (default: the YAML's)")
    parser.add_argument(
        "--trust_remote_code", action="store_true", help="run Python that comes with the model"
    )
    return parser


if __name__ == "__main__":
    args = arguments().parse_args()
    try:
        asked = vars(args)
        main(Pipeline.read(asked.pop("config"), **asked))
    except ToolkitError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(2)
