"""The judge judged: the reward model against labels, gold, demonstrations and length."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from toolkit.data.ranking import ranking_id
from toolkit.errors import DatasetError
from toolkit.evaluation.metrics import (
    clear_accuracy,
    correlation_within,
    pairwise_accuracy,
    preferred,
)
from toolkit.evaluation.preferences import (
    accuracy_by,
    calibration,
    kendall_tau,
    members_agreement,
)
from toolkit.evaluation.scoring import Pair, pad_id, score_ids
from toolkit.models.roles import REWARD, Roles
from toolkit.sampling.generation import Prompt, encode_completion, encode_prompt

CLEAR_GOLD = 1.0  # gold utility between the sides of a pair that nobody should get wrong
COLUMNS = ("prompt", "chosen", "rejected")
SIDES = ("chosen", "rejected")


Scorer = Callable[[list[Pair]], list[float]]


def judge_reward_model(
    roles: Roles,
    tokenizer: PreTrainedTokenizerBase,
    comparisons: Sequence[Mapping[str, Any]],
    *,
    demonstrations: Sequence[tuple[Prompt, Prompt]] = (),
    labeler_agreement: float | None = None,
    rewards: Sequence[str] = (REWARD,),
    seed: int = 0,
    batch_size: int = 32,
) -> dict[str, Any]:
    """The report's section about the reward model in a role, or about the mean of an ensemble's.

    See `judge_scorer`, and for several `rewards` `judge_ensemble`.
    """

    def scorer(reward: str) -> Remembered:
        return Remembered(
            lambda pairs: score_ids(
                roles, pairs, reward=reward, pad_id=pad_id(tokenizer), batch_size=batch_size
            )
        )

    members = [scorer(reward) for reward in rewards]
    known: dict[str, Any] = {
        "demonstrations": demonstrations,
        "labeler_agreement": labeler_agreement,
        "seed": seed,
    }
    sections = [judge_scorer(member, tokenizer, comparisons, **known) for member in members]
    if len(members) == 1:
        return sections[0]
    return judge_ensemble(members, tokenizer, comparisons, **known)


class Remembered:
    """A scorer whose scores can be had again when its model has left the memory."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self.known: dict[tuple[tuple[int, ...], ...], float] = {}

    def __call__(self, pairs: list[Pair]) -> list[float]:
        """Score, and keep."""
        found = self.scorer(pairs)
        self.known |= {_key(pair): score for pair, score in zip(pairs, found, strict=True)}
        return found


def judge_ensemble(
    members: Sequence[Remembered],
    tokenizer: PreTrainedTokenizerBase,
    comparisons: Sequence[Mapping[str, Any]],
    **known: Any,
) -> dict[str, Any]:
    """`judge_scorer` for the mean of members that were judged on the same rows before.

    Returns: also `members`, how many; `members_accuracy`, each one's `pairwise_accuracy`; and
        `members_agreement`, how often two order a pair alike.
    """

    def mean(pairs: list[Pair]) -> list[float]:
        return [float(np.mean([m.known[_key(pair)] for m in members])) for pair in pairs]

    section = judge_scorer(mean, tokenizer, comparisons, **known)
    sides = [
        [_key(_encode(tokenizer, row["prompt"], row[side])) for row in comparisons]
        for side in SIDES
    ]
    chosen, rejected = (np.array([[m.known[k] for k in keys] for m in members]) for keys in sides)
    return section | {
        "members": len(members),
        "members_accuracy": [
            round(float(preferred(c, r).mean()), 6) for c, r in zip(chosen, rejected, strict=True)
        ],
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
    """Hold scores against labels, gold, demonstrations and length.

    Args:
        scorer: token ids of prompts and completions to scores, in order.
        comparisons: preference rows with prompt, chosen and rejected; where all of them have
            `chosen_gold` and `rejected_gold` the reward model and the labels are held against
            gold; prompt and `group_id`, if any, say which pairs belong together; a `margin`, or
            else gold's, says how clear a pair is.
        demonstrations: (prompt, completion); their mean score should be about 0.
        labeler_agreement: how often two labelers agree, as measured when they labelled.

    Returns: `pairwise_accuracy` and its `pairwise_accuracy_ci95` against the labels; `kendall_tau`
        per prompt; `calibration`; `accuracy_by_margin` and `accuracy_by_length` (the chosen answer's
        tokens minus the rejected one's); `clear_gold_accuracy` on pairs that gold sets apart by
        1.0; `ceiling`, how often gold agrees with the labels; `labeler_agreement`;
        `demonstration_mean`; `length_correlation` of score and tokens within a prompt;
        `length_accuracy`, what "the longer one is better" would reach. Ties count half; what
        cannot be known is None.
    Raises: DatasetError for no row or a missing column.
    """
    _check(comparisons)
    groups = [ranking_id(row) for row in comparisons]
    sides = {
        side: [_encode(tokenizer, row["prompt"], row[side]) for row in comparisons]
        for side in SIDES
    }
    score = _score_distinct(scorer, [*sides["chosen"], *sides["rejected"]])
    chosen, rejected = (np.array([score[_key(pair)] for pair in sides[side]]) for side in SIDES)
    longer, shorter = (np.array([len(said) for _, said in sides[side]]) for side in SIDES)
    accuracy = pairwise_accuracy(chosen, rejected, seed=seed, groups=groups)
    margins = _margins(comparisons)
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
        "demonstration_mean": _demonstration_mean(scorer, tokenizer, demonstrations),
        "length_correlation": _length_correlation(sides, groups, score),
        "length_accuracy": round(float(preferred(longer, shorter).mean()), 6),
    }


def score_rows(
    roles: Roles,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[tuple[Prompt, Prompt]],
    *,
    reward: str = REWARD,
    batch_size: int = 32,
) -> list[float]:
    """The reward role's score of each given (prompt, completion), in order."""
    pairs = [_encode(tokenizer, prompt, completion) for prompt, completion in rows]
    return score_ids(roles, pairs, reward=reward, pad_id=pad_id(tokenizer), batch_size=batch_size)


def _demonstration_mean(
    scorer: Scorer, tokenizer: PreTrainedTokenizerBase, rows: Sequence[tuple[Prompt, Prompt]]
) -> float | None:
    if not rows:
        return None
    found = scorer([_encode(tokenizer, prompt, completion) for prompt, completion in rows])
    return round(float(np.mean(found)), 6)


def _margins(rows: Sequence[Mapping[str, Any]]) -> Any:
    """How clear each pair is, `(N,)`: by its `margin`, or by gold; None where that is not known."""
    if all(row.get("margin") is not None for row in rows):
        return np.array([float(row["margin"]) for row in rows])
    if all(row.get(f"{side}_gold") is not None for row in rows for side in SIDES):
        return np.array([abs(row["chosen_gold"] - row["rejected_gold"]) for row in rows])
    return None


def _against_gold(rows: Sequence[Mapping[str, Any]], score_gap: Any) -> dict[str, float | None]:
    """Where the rows know gold: the reward model against it, and it against the labels."""
    if not all(row.get(f"{side}_gold") is not None for row in rows for side in SIDES):
        return {"clear_gold_accuracy": None, "ceiling": None}
    chosen, rejected = (np.array([float(row[f"{side}_gold"]) for row in rows]) for side in SIDES)
    return {
        "clear_gold_accuracy": clear_accuracy(score_gap, chosen - rejected, clear=CLEAR_GOLD),
        "ceiling": round(float(preferred(chosen, rejected).mean()), 6),
    }


def _length_correlation(
    sides: dict[str, list[Pair]],
    groups: Sequence[object],
    score: dict[tuple[tuple[int, ...], ...], float],
) -> float | None:
    """Each answer counts once, in however many pairs it stands."""
    answers = {
        (g, _key(pair)) for side in SIDES for g, pair in zip(groups, sides[side], strict=True)
    }
    rows = sorted(answers)
    return correlation_within(
        [score[key] for _, key in rows], [len(key[1]) for _, key in rows], [g for g, _ in rows]
    )


def _score_distinct(scorer: Scorer, pairs: list[Pair]) -> dict[tuple[tuple[int, ...], ...], float]:
    """K answers make C(K, 2) pairs, but need K passes."""
    distinct = {_key(pair): pair for pair in pairs}
    return dict(zip(distinct, scorer(list(distinct.values())), strict=True))


def _key(pair: Pair) -> tuple[tuple[int, ...], ...]:
    return tuple(pair[0]), tuple(pair[1])


def _encode(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, completion: Prompt) -> Pair:
    return encode_prompt(tokenizer, prompt), encode_completion(tokenizer, prompt, completion)


def _check(rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        raise DatasetError("the reward model cannot be judged without comparisons; got 0 rows")
    for number, row in enumerate(rows, 1):
        for column in COLUMNS:
            if column not in row:
                got = ", ".join(row)
                raise DatasetError(
                    f'comparisons row {number} of {len(rows)}: "{column}" is missing, got {got}'
                )
