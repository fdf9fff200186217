"""The numbers of several pipelines side by side, as a Markdown table and summary.json.

    python recipes/seeds.py runs/seeds/0 runs/seeds/1 runs/seeds/2

Reads   report.json of each directory.
Writes  summary.json beside them; prints the table.
"""

import argparse
import json
import sys
from pathlib import Path

from toolkit.runs import write_json

ROWS = ("base", "sft", "ppo", "dpo")


def main(folders: list[Path]) -> None:
    reports = {folder.name: json.loads((folder / "report.json").read_text()) for folder in folders}
    print("| seed | model | gold win rate over SFT | mean gold | correct | hallucinated "
          "| harmful compliance | over-refusal | KL | ended |")  # fmt: skip
    print("|---" * 10 + "|")
    summary: dict[str, dict] = {}
    for seed, report in reports.items():
        summary[seed] = {"reward_model": report["reward_model"], "timings_s": report["timings_s"]}
        for name in ROWS:
            entry = report["checkpoints"][name]
            win, rates = entry["win_rate_vs_sft"]["gold"], entry["rates"]
            low, high = win["ci95"]
            cells = [
                seed,
                name,
                f"{win['mean']:.2f} [{low:.2f}, {high:.2f}]",
                f"{entry['gold']['mean']:.2f}",
                *(f"{rates[r]:.2f}" for r in ("correct", "hallucinated", "harmful_compliance")),
                f"{rates['over_refusal']:.2f}",
                f"{entry['kl_to_sft']:.1f}",
                f"{entry['ended']:.2f}",
            ]
            print("| " + " | ".join(cells) + " |")
            summary[seed][name] = {"gold_win_rate": win["mean"], "ci95": win["ci95"]} | rates
    print("\n| seed | reward model: accuracy | ceiling | on clear pairs | mean of demonstrations "
          "| labelers agree | seconds | peak MB |")  # fmt: skip
    print("|---" * 8 + "|")
    for seed, report in reports.items():
        found = report["reward_model"]
        stages = json.loads((folders[0].parent / seed / "pipeline.json").read_text()).values()
        seconds, peak = sum(s["seconds"] for s in stages), max(s["peak_mb"] for s in stages)
        summary[seed] |= {"seconds": seconds, "peak_mb": peak}
        print(f"| {seed} | {found['pairwise_accuracy']:.3f} | {found['ceiling']:.3f} "
              f"| {found['clear_gold_accuracy']:.3f} | {found['demonstration_mean']:+.3f} "
              f"| {found['labeler_agreement']:.3f} "
              f"| {seconds:.0f} | {peak} |")  # fmt: skip
    write_json(folders[0].parent / "summary.json", {"schema": 1, "seeds": summary})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, help="pipelines' directories")
    sys.exit(main(parser.parse_args().folders))
