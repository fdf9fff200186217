"""What a reward model's own run keeps of how it was judged: a report, a picture, and the main numbers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolkit.evaluation.failures import reward_model_warnings
from toolkit.evaluation.plots import draw_calibration
from toolkit.runs.run import write_json

FILES = ("reward_report.json", "calibration.png")
MAIN = ("pairs", "pairwise_accuracy", "pairwise_accuracy_ci95", "length_correlation")
OF_ENSEMBLES = ("members", "members_accuracy", "members_agreement")


def write_reward_report(section: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Write the section of `judge_scorer` or `judge_ensemble` into a run; say what matters.

    Returns: the numbers for run.json.
    """
    report, picture = FILES
    write_json(folder / report, section)
    draw_calibration(section, folder / picture)
    for line in reward_model_warnings(dict(section)):
        print(f"warning: {line}")
    found: dict[str, Any] = {
        "kendall_tau": section["kendall_tau"]["mean"],
        "calibration_error": section["calibration"]["ece"],
    }
    found |= {name: section[name] for name in (*MAIN, *OF_ENSEMBLES) if name in section}
    print(f"{folder}: " + ", ".join(f"{name} {value}" for name, value in found.items()))
    return found
