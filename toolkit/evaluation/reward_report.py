"""What a reward model's own run keeps of how it was judged: a report, a picture, and the main numbers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from toolkit.evaluation.failures import reward_model_warnings
from toolkit.evaluation.judge import Remembered, Scorer, judge_ensemble, judge_scorer
from toolkit.evaluation.plots import draw_calibration
from toolkit.runs.run import write_json
from toolkit.sampling.generation import Prompt

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


class RewardJudge:
    """Judges reward models on held-out comparisons, one model in memory at a time; writes reports.

    Args:
        tokenizer: the base's.
        comparisons: held-out preference rows; see `judge_scorer`.
        demonstrations: (prompt, completion) rows whose mean score should be 0.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        comparisons: Sequence[Mapping[str, Any]],
        demonstrations: Sequence[tuple[Prompt, Prompt]],
    ) -> None:
        self.tokenizer, self.comparisons = tokenizer, comparisons
        self.demonstrations = demonstrations
        self.members: list[Remembered] = []

    def judge(self, scorer: Scorer, folder: Path | None) -> dict[str, Any]:
        """Score the comparisons with one model and write its report; returns the main numbers.

        Without a folder the scores are only kept for `judge_mean`.
        """
        member = Remembered(scorer)
        section = judge_scorer(
            member, self.tokenizer, self.comparisons, demonstrations=self.demonstrations
        )
        self.members.append(member)
        return {} if folder is None else write_reward_report(section, folder)

    def judge_mean(self, folder: Path) -> dict[str, Any]:
        """Write the report on the mean of the models judged so far; returns the main numbers."""
        section = judge_ensemble(self.members, self.tokenizer, self.comparisons)
        return write_reward_report(section, folder)
