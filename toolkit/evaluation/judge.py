"""Evaluates the reward model against labels, gold, demonstrations and length."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from toolkit.data.encoding import Prompt, encode_completion, encode_prompt
from toolkit.data.ranking import ranking_id
from toolkit.errors import DatasetError
from toolkit.evaluation.failures import reward_model_warnings
from toolkit.evaluation.metrics import (
    Floats,
    accuracy_by,
    calibration,
    clear_accuracy,
    correlation_within,
    kendall_tau,
    members_agreement,
    preferred,
    rounded,
    win_rate,
)
from toolkit.evaluation.plots import draw_calibration
from toolkit.evaluation.scoring import Pair, pad_id, score_ids
from toolkit.models.roles import REWARD, Roles
from toolkit.runs.run import write_json

COLUMNS = ("prompt", "chosen", "rejected")
SIDES = ("chosen", "rejected")
RUN_RESULTS = ["pairs", "pairwise_accuracy", "pairwise_accuracy_ci95", "length_correlation"]
RUN_RESULTS += ["members", "members_accuracy", "members_agreement"]

Scorer = Callable[[list[Pair]], list[float]]
Key = tuple[tuple[int, ...], tuple[int, ...]]


def judge_reward_model(
    roles: Roles,
    tokenizer: PreTrainedTokenizerBase,
    comparisons: Sequence[Mapping[str, Any]],
    *,
    rewards: Sequence[str] = (REWARD,),
    batch_size: int = 32,
    **options: Any,
) -> dict[str, Any]:
    """The report's section about a reward role, or about the mean score of several.

    Args:
        options: `demonstrations`, `labeler_agreement` and `seed` of `judge_scorer`.

    Returns: see `judge_scorer`; for several `rewards`, see `RewardJudge.mean_section`.
    """
    judge = RewardJudge(tokenizer, comparisons, **options)
    score = partial(score_ids, roles, pad_id=pad_id(tokenizer), batch_size=batch_size)
    sections = [judge.section(partial(score, reward=reward)) for reward in rewards]
    return sections[0] if len(sections) == 1 else judge.mean_section()


class RewardJudge:
    """Judges reward models on the same comparisons, with one model in memory at a time.

    Args:
        tokenizer: the tokenizer of the base.
        comparisons, demonstrations, options: see `judge_scorer`.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        comparisons: Sequence[Mapping[str, Any]],
        demonstrations: Sequence[tuple[Prompt, Prompt]] = (),
        **options: Any,
    ) -> None:
        self.tokenizer, self.comparisons = tokenizer, comparisons
        self.options = options | {"demonstrations": demonstrations}
        self.scores: list[dict[Key, float]] = []  # one entry per model judged so far

    def judge(self, scorer: Scorer, folder: Path | None) -> dict[str, Any]:
        """Judge one model, and write its report into any `folder`; return the main numbers."""
        section = self.section(scorer)
        return {} if folder is None else write_reward_report(section, folder)

    def judge_mean(self, folder: Path) -> dict[str, Any]:
        """Write the report on the mean score of all evaluated models; return the main numbers."""
        return write_reward_report(self.mean_section(), folder)

    def section(self, scorer: Scorer) -> dict[str, Any]:
        """`judge_scorer` for one model; keeps the scores for `mean_section`."""
        scores: dict[Key, float] = {}

        def keeping(pairs: list[Pair]) -> list[float]:
            values = scorer(pairs)
            scores.update(zip(map(_key, pairs), values, strict=True))
            return values

        section = judge_scorer(keeping, self.tokenizer, self.comparisons, **self.options)
        self.scores.append(scores)
        return section

    def mean_section(self) -> dict[str, Any]:
        """`judge_scorer` for the mean score of the models judged so far.

        Returns: also `members`, the number of models; `members_accuracy`, the `pairwise_accuracy`
        of each; and `members_agreement`, how often two models order a pair in the same way.
        """

        def mean(pairs: list[Pair]) -> list[float]:
            return [
                float(np.mean([scores[_key(pair)] for scores in self.scores])) for pair in pairs
            ]

        section = judge_scorer(mean, self.tokenizer, self.comparisons, **self.options)
        sides = _encode(self.tokenizer, self.comparisons)
        chosen, rejected = (
            np.array([[scores[_key(pair)] for pair in sides[side]] for scores in self.scores])
            for side in SIDES
        )
        return section | {
            "members": len(self.scores),
            "members_accuracy": [rounded(x) for x in preferred(chosen, rejected).mean(axis=1)],
            "members_agreement": members_agreement(chosen - rejected),
        }


def judge_scorer(
    scorer: Scorer,
    tokenizer: PreTrainedTokenizerBase,
    comparisons: Sequence[Mapping[str, Any]],
    *,
    demonstrations: Sequence[tuple[Prompt, Prompt]] = (),
    labeler_agreement: float | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare scores with labels, gold, demonstrations and length.

    Args:
        scorer: a function from token ids of prompts and completions to scores, in the same order.
        comparisons: preference rows with prompt, chosen and rejected. If all of them have
            `chosen_gold` and `rejected_gold`, the scores and the labels are compared with gold. The
            prompt and an optional `group_id` define which pairs belong together. A `margin`, or
            else the gold gap, measures how clear a pair is.
        demonstrations: (prompt, completion); their mean score should be about 0.
        labeler_agreement: the share of pairs on which two labelers agreed.

    Returns: `pairwise_accuracy` and its `pairwise_accuracy_ci95` against the labels; `kendall_tau`
        per prompt; `calibration`; `accuracy_by_margin` and `accuracy_by_length` (the chosen answer's
        tokens minus the rejected one's); `clear_gold_accuracy` on pairs with a gold gap of at least
        1.0; `ceiling`, how often gold agrees with the labels; `labeler_agreement`;
        `demonstration_mean`; `length_correlation` of score and tokens within a prompt;
        `length_accuracy`, the accuracy of "the longer answer is better". Ties count half; unknown
        values are None.
    Raises: DatasetError without rows or for a missing column.
    """
    _check(comparisons)
    groups = [ranking_id(row) for row in comparisons]
    sides = _encode(tokenizer, comparisons)
    # K answers make C(K, 2) pairs but need only K passes
    distinct = {_key(pair): pair for side in SIDES for pair in sides[side]}
    score = dict(zip(distinct, scorer(list(distinct.values())), strict=True))
    chosen, rejected = (np.array([score[_key(pair)] for pair in sides[side]]) for side in SIDES)
    longer, shorter = (np.array([len(ids) for _, ids in sides[side]]) for side in SIDES)
    accuracy = win_rate(chosen, rejected, seed=seed, groups=groups)
    margins = _margins(comparisons)
    # each answer counts once, even if it is in several pairs
    answers = {(g, _key(p)) for side in SIDES for g, p in zip(groups, sides[side], strict=True)}
    rows = [(score[key], len(key[1]), group) for group, key in sorted(answers)]
    shown = [_pair(tokenizer, *demonstration) for demonstration in demonstrations]
    return {
        "pairs": len(comparisons),
        "pairwise_accuracy": accuracy["mean"],
        "pairwise_accuracy_ci95": accuracy["ci95"],
        "kendall_tau": kendall_tau(chosen, rejected, seed=seed, groups=groups),
        "calibration": calibration(chosen, rejected),
        "accuracy_by_margin": None if margins is None else accuracy_by(margins, chosen, rejected),
        "accuracy_by_length": accuracy_by(longer - shorter, chosen, rejected),
        **_against_gold(comparisons, chosen - rejected),
        "labeler_agreement": labeler_agreement,
        "demonstration_mean": rounded(np.mean(scorer(shown))) if shown else None,
        "length_correlation": correlation_within(*zip(*rows, strict=True)),
        "length_accuracy": rounded(preferred(longer, shorter).mean()),
    }


def write_reward_report(section: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Write a section of `RewardJudge` into a reward run, and print the main numbers.

    Returns: the numbers for run.json.
    """
    write_json(folder / "reward_report.json", section)
    draw_calibration(section, folder / "calibration.png")
    for line in reward_model_warnings(dict(section)):
        print(f"warning: {line}")
    results: dict[str, Any] = {
        "kendall_tau": section["kendall_tau"]["mean"],
        "calibration_error": section["calibration"]["ece"],
    }
    results |= {name: section[name] for name in RUN_RESULTS if name in section}
    print(f"{folder}: " + ", ".join(f"{name} {value}" for name, value in results.items()))
    return results


def _margins(rows: Sequence[Mapping[str, Any]]) -> Floats | None:
    """How clear each pair is, `(N,)`: its `margin`, or else the gold gap; None if unknown."""
    if all(row.get("margin") is not None for row in rows):
        return np.array([float(row["margin"]) for row in rows])
    gold = _gold(rows)
    return None if gold is None else np.abs(gold[0] - gold[1])


def _gold(rows: Sequence[Mapping[str, Any]]) -> tuple[Floats, Floats] | None:
    """Gold utility of both sides, `(N,)` each; None if a row lacks it."""
    if any(row.get(f"{side}_gold") is None for row in rows for side in SIDES):
        return None
    chosen, rejected = (np.array([float(row[f"{side}_gold"]) for row in rows]) for side in SIDES)
    return chosen, rejected


def _against_gold(rows: Sequence[Mapping[str, Any]], score_gap: Floats) -> dict[str, float | None]:
    """Agreement of gold with the scores and with the labels."""
    gold = _gold(rows)
    if gold is None:
        return {"clear_gold_accuracy": None, "ceiling": None}
    return {
        "clear_gold_accuracy": clear_accuracy(score_gap, gold[0] - gold[1]),
        "ceiling": rounded(preferred(*gold).mean()),
    }


def _key(pair: Pair) -> Key:
    return tuple(pair[0]), tuple(pair[1])


def _encode(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Mapping[str, Any]]
) -> dict[str, list[Pair]]:
    """Token ids of each side of the comparisons."""
    return {side: [_pair(tokenizer, row["prompt"], row[side]) for row in rows] for side in SIDES}


def _pair(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, completion: Prompt) -> Pair:
    return encode_prompt(tokenizer, prompt), encode_completion(tokenizer, prompt, completion)


def _check(rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        raise DatasetError("the reward model cannot be evaluated without comparisons; got 0 rows")
    for number, row in enumerate(rows, 1):
        for column in COLUMNS:
            if column not in row:
                raise DatasetError(
                    f'comparisons row {number} of {len(rows)}: "{column}" is missing, '
                    f"got {', '.join(row)}"
                )
