"""Run all stages on the embedded world: SFT, comparisons, reward model, PPO, DPO, report.

    toolkit quickstart

This is `toolkit pipeline --config world/pipeline`, and accepts that command's other options, such as
--output_dir. It needs no download and takes about five minutes on two CPU cores. It writes to
runs/quickstart.
"""

import sys
from collections.abc import Sequence

from toolkit.cli import run as run_command
from toolkit.recipe import Command, find


def main(words: Sequence[str]) -> int:
    if words and words[0] in ("-h", "--help"):
        print(__doc__.strip())
        return 0
    if any(word.split("=")[0] == "--config" for word in words):
        print("quickstart: --config is fixed; use toolkit pipeline for another", file=sys.stderr)
        return 2
    pipeline = find("pipeline")
    assert pipeline is not None
    return run_command(pipeline, ["--config", "world/pipeline", *words])


COMMAND = Command("quickstart", __doc__, main)

if __name__ == "__main__":
    sys.exit(run_command(COMMAND))
