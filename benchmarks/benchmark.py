"""The benchmark: episodes per second and memory of ours and of TRL 1.12's PPOTrainer, in turn.

    make benchmark      # sets up the old trainer's environment, then:
    python benchmarks/benchmark.py --sft runs/quickstart/sft --reward runs/quickstart/reward

Reads   the quickstart's SFT and reward runs, for the case `world`.
Writes  benchmark.json and benchmark.md; with --growth also growth.json and growth.png, ours alone.
"""

import argparse
import datetime
import sys
from pathlib import Path

import toolkit  # noqa: F401  (turns telemetry off before any library is imported)
from benchmarks.cases import CASES, prepare
from benchmarks.compare import compare, machine, require_peer
from benchmarks.table import to_markdown
from toolkit.errors import ConfigError, ToolkitError
from toolkit.runs.run import write_json


def main(args: argparse.Namespace) -> None:
    import torch

    gpu = torch.cuda.is_available()
    chosen = args.cases or [name for name, case in CASES.items() if gpu or not case.cuda]
    unknown = [name for name in chosen if name not in CASES]
    if unknown:
        raise ConfigError(f"no case {unknown[0]!r}; there are {', '.join(CASES)}")
    peer = None if args.ours_alone else require_peer(args.peer)
    made = machine() | {"date": datetime.date.today().isoformat()}
    entries = []
    for name in chosen:
        folder = args.output_dir / name
        print(f"{name}", flush=True)
        prepare(CASES[name], folder, sft=args.sft, reward=args.reward)
        entries += compare(CASES[name], folder, peer=peer, rounds=args.rounds)
        found = {"schema": 1, "machine": made, "cases": entries}
        write_json(args.output_dir / "benchmark.json", found)  # a later case may fail
    table = to_markdown(entries)
    (args.output_dir / "benchmark.md").write_text(table, encoding="utf-8")
    print(table)
    if args.growth:
        from benchmarks.growth import measure_growth

        print(measure_growth(args.output_dir / "growth"))


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", help=f"of {', '.join(CASES)}")
    parser.add_argument("--rounds", type=int, default=3, help="how often each side runs, in turn")
    parser.add_argument("--sft", type=Path, help="the SFT run of the case world")
    parser.add_argument("--reward", type=Path, help="the reward run of the case world")
    parser.add_argument("--peer", type=Path, default=Path(".venv/peer/bin/python"))
    parser.add_argument("--ours_alone", action="store_true", help="do not run the old trainer")
    parser.add_argument("--growth", action="store_true", help="also how cost grows")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/benchmark"))
    return parser


if __name__ == "__main__":
    try:
        main(arguments().parse_args())
    except ToolkitError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(2)
