"""Look before you train: config, data and model together, and whether they fit, with nothing trained.

    python recipes/check.py --config recipes/configs/world/sft.yaml
    python recipes/check.py --config recipes/configs/qwen3-0.6b/pipeline.yaml --card_memory_gb 8

Takes the YAML of any training recipe, with its options, or a pipeline's. Prints rows, lengths, samples
as the trainer reads them, and the memory predicted from the shapes of the model; a GPU is not touched.
Exit code 2 where the run would fail.
"""

import argparse
import math
import os
import sys

import toolkit  # noqa: F401  (turns telemetry off before any library is imported)
from toolkit.errors import ToolkitError
from toolkit.preflight.gpu import card_memory_gb


def main(config: str, words: list[str], recipe: str | None, card_memory_gb: float | None) -> int:
    from toolkit.preflight.check import check_stage
    from toolkit.preflight.stages import find_stages

    failed = 0
    for stage in find_stages(config, words, recipe=recipe):
        print(f"=== {stage.name or stage.recipe} ({stage.recipe})", flush=True)
        try:
            found = check_stage(stage, card_memory_gb=card_memory_gb)
        except ToolkitError as error:
            failed += 1
            print(f"error: {type(error).__name__}: {error}")
            continue
        except Exception as error:  # a model or a row that nobody thought of
            failed += 1
            print(f"error: cannot be checked ({type(error).__name__}: {error})")
            continue
        failed += bool(found.errors)
        lines = [("note", found.notes), ("warning", found.warnings), ("error", found.errors)]
        for kind, said in lines:
            for line in said:
                print(f"{kind}: {line}")
        print("would fail" if found.errors else "nothing stands against it")
    return 2 if failed else 0


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog="Any other option is the recipe's own and overrides the YAML.",
    )
    parser.add_argument("--config", required=True, help="YAML of a recipe or of a pipeline")
    parser.add_argument(
        "--recipe",
        choices=["sft", "reward", "ppo", "dpo", "kto"],
        help="which recipe the YAML is for",
    )
    parser.add_argument(
        "--card_memory_gb", type=float, help="predict for a card of so much memory (1 GB = 2^30)"
    )
    return parser


if __name__ == "__main__":
    asked, others = arguments().parse_known_args()
    if asked.card_memory_gb is not None and not 0 < asked.card_memory_gb < math.inf:
        arguments().error(f"--card_memory_gb must be above 0, got {asked.card_memory_gb}")
    memory_gb = asked.card_memory_gb or card_memory_gb()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # what is checked runs nowhere
    try:
        sys.exit(main(asked.config, others, asked.recipe, memory_gb))
    except ToolkitError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(2)
