"""PPO against TRL 1.12's PPOTrainer, and SFT, reward and DPO against TRL 1.16; both sides in turn.

    make benchmark      # creates the old trainer's environment and a quickstart, then runs:
    python benchmarks/benchmark.py --sft runs/quickstart/sft --reward runs/quickstart/reward --growth

    python benchmarks/benchmark.py --cases smollm2-fp32 smollm2-bf16 sft reward dpo

Reads   the quickstart's SFT and reward runs, for the case `world`; SmolLM2-135M-Instruct in build/ (it is
        obtained once), for the second command.
Writes  benchmark.json and benchmark.md: the tables of docs/performance.md, docs/results/benchmark-cpu.json.
        With --growth also growth.json and growth.png of our side alone: docs/results/growth.json.
"""

import argparse
import datetime
from pathlib import Path

from benchmarks.cases import CASES, prepare
from benchmarks.common import parser, require_known, run_main
from benchmarks.compare import compare, machine, require_peer, to_markdown
from toolkit.runs.run import write_json


def main(args: argparse.Namespace) -> None:
    """Measure the cases one after the other."""
    import torch

    gpu = torch.cuda.is_available()
    default = (name for name, case in CASES.items() if (gpu or not case.cuda) and not case.real)
    cases = args.cases or list(default)
    require_known("case", cases, CASES)
    is_alone = args.ours_alone or all(CASES[name].recipe != "ppo" for name in cases)
    peer = None if is_alone else require_peer(args.peer)
    head = {"schema": 1, "machine": machine() | {"date": datetime.date.today().isoformat()}}
    entries = []
    for name in cases:
        folder = args.output_dir / name
        print(name, flush=True)
        prepare(CASES[name], folder, sft=args.sft, reward=args.reward)
        entries += compare(CASES[name], folder, peer=peer, rounds=args.rounds)
        # written after every case, because a later one may fail
        write_json(args.output_dir / "benchmark.json", head | {"cases": entries})
    table = to_markdown(entries)
    (args.output_dir / "benchmark.md").write_text(table, encoding="utf-8")
    print(table)
    if args.growth:
        from benchmarks.growth import measure_growth

        print(measure_growth(args.output_dir / "growth"))


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    options = parser(__doc__)
    options.add_argument("--cases", nargs="+", help=f"some of {', '.join(CASES)}")
    options.add_argument("--rounds", type=int, default=3, help="runs of each side (3)")
    options.add_argument("--sft", type=Path, help="the SFT run of the case world")
    options.add_argument("--reward", type=Path, help="the reward run of the case world")
    options.add_argument(
        "--peer",
        type=Path,
        default=Path(".venv/peer/bin/python"),
        help="the Python with TRL 1.12 (.venv/peer/bin/python)",
    )
    options.add_argument("--ours_alone", action="store_true", help="do not run the old trainer")
    options.add_argument("--growth", action="store_true", help="also measure how cost grows")
    options.add_argument("--output_dir", type=Path, default=Path("runs/benchmark"))
    return options


if __name__ == "__main__":
    run_main(main, arguments().parse_args())
