"""What a completion is worth: reward adapters, Python functions, their sum, and what is taken off."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from toolkit.errors import RewardError

# (prompts=…, completions=…, completion_ids=…, **columns) -> a number or None per completion
RewardFunction = Callable[..., Sequence[float | None]]
LARGEST = torch.finfo(torch.float32).max
# (prompts=…, completions=…, **columns) -> numbers by name; None is left out of the log
EvalMetrics = Callable[..., Mapping[str, float | None]]


def aggregate(scores: Tensor, *, how: str, std_coef: float) -> Tensor:
    """One score per completion from an ensemble's.

    Args:
        scores: `(M, B)`, one row per reward adapter, reward units.
        how: "mean", "min", or "mean_minus_std".
        std_coef: λ of mean − λ·std (population standard deviation).

    Returns: `(B,)`.
    Source: Coste et al. 2024, arXiv:2310.02743 (worst case and uncertainty-weighted optimization).
    """
    if how == "mean":
        return scores.mean(0)
    if how == "min":
        return scores.amin(0)
    if how == "mean_minus_std":
        return scores.mean(0) - std_coef * scores.std(0, unbiased=False)
    raise ValueError(f"how must be mean, min or mean_minus_std, got {how!r}")


@dataclass(frozen=True)
class Answers:
    """A rollout as a reward function sees it; `columns` are the dataset's others, a list each."""

    prompts: list[Any]
    completions: list[Any]
    completion_ids: list[list[int]]
    columns: dict[str, list[Any]]


def function_rewards(
    functions: Sequence[RewardFunction], weights: Sequence[float], answers: Answers
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of what Python functions say, as TRL's trainers call them.

    A function that has nothing to say of a completion returns None for it, which counts as 0.

    Returns: `(B,)`, and each function's own rewards by its name, NaN where it said None.
    Raises: RewardError for a wrong number of rewards or one that is not finite, showing the sample.
    """
    total = torch.zeros(len(answers.completions))
    each: dict[str, Tensor] = {}
    for function, weight in zip(functions, weights, strict=True):
        name = getattr(function, "__name__", type(function).__name__)
        if name in each:  # two lambdas, or one function twice
            name = f"{name}_{len(each)}"
        given = function(
            prompts=answers.prompts,
            completions=answers.completions,
            completion_ids=answers.completion_ids,
            **answers.columns,
        )
        numbers = _checked(given, name, answers)
        each[name] = numbers
        total += weight * torch.where(numbers.isnan(), 0.0, numbers)
    return total, each


def refuse_unjudged(each: dict[str, Tensor], answers: Answers) -> None:
    """Where functions are all there is of a reward, one of them must have an opinion.

    Args:
        each: functions' rewards `(B,)` by name, NaN where they said None.

    Raises: RewardError showing a completion of which every function said None.
    """
    silent = torch.stack([numbers.isnan() for numbers in each.values()]).all(0)  # (B,)
    if bool(silent.any()):
        row = int(silent.nonzero()[0])
        raise RewardError(
            f"{int(silent.sum())} of {len(silent)} completions have no reward: {', '.join(each)} said "
            f"None, and there is no reward model; the first: {_sample(answers, row)}"
        )


def _checked(given: Any, name: str, answers: Answers) -> Tensor:
    expected = len(answers.completions)
    rewards = _as_list(given)
    if rewards is None or len(rewards) != expected:
        got = f"{type(given).__name__}" if rewards is None else f"{len(rewards)} rewards"
        raise RewardError(
            f"reward function {name}: expected a list of {expected} rewards, one per completion, "
            f"got {got}; the first sample: {_sample(answers, 0)}"
        )
    numbers = []
    for row, value in enumerate(rewards):
        if value is None:
            numbers.append(math.nan)
            continue
        number = _as_number(value)
        if number is None:
            raise RewardError(
                f"reward function {name}: expected a number or None, got {value!r} for "
                f"{_sample(answers, row)}"
            )
        if not abs(number) <= LARGEST:  # NaN is not either
            raise RewardError(f"reward function {name}: gave {number} to {_sample(answers, row)}")
        numbers.append(number)
    return torch.tensor(numbers)


def _as_list(given: Any) -> list[Any] | None:
    """Rewards as a list: a sequence, or an array or tensor of one dimension; None for anything else."""
    if isinstance(given, str | bytes | Mapping):
        return None
    found = given.tolist() if hasattr(given, "tolist") else given
    return list(found) if isinstance(found, Sequence) else None


def _as_number(value: Any) -> float | None:
    """None for what is no number; one that no float can hold is infinite."""
    if isinstance(value, str | bytes):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf
    except (TypeError, ValueError):
        return None


def _sample(answers: Answers, row: int) -> str:
    if not answers.completions:
        return "none"
    return f"prompt {answers.prompts[row]!r}, completion {answers.completions[row]!r}"


def penalise(
    scores: Tensor,
    lengths: Tensor,
    ended: Tensor,
    *,
    clip: float | None,
    missing_eos: float | None,
    per_token: float,
) -> Tensor:
    """Scores as PPO uses them: clipped to ±clip, less what is taken for length and a missing end.

    Args:
        scores: `(B,)`, reward units.
        lengths: `(B,)`, tokens.
        ended: `(B,)` bool.
        clip: largest absolute score; None leaves scores as they are.
        missing_eos: taken from a completion that did not end; None takes nothing.
        per_token: taken per token.
    """
    found = scores if clip is None else scores.clamp(-clip, clip)
    found = found - per_token * lengths
    if missing_eos is not None:
        found = found - missing_eos * (~ended).float()
    return found
