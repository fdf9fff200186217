"""What a completion is worth: reward adapters, Python functions, their sum, and what is taken off."""

import asyncio
import functools
import inspect
import math
import os
import threading
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from toolkit.errors import RewardError

# (prompts=…, completions=…, completion_ids=…, **columns) -> a number or None per completion
RewardFunction = Callable[..., Sequence[float | None] | Awaitable[Sequence[float | None]]]
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


def name_of(function: RewardFunction) -> str:
    """Its name, or its class's."""
    return str(getattr(function, "__name__", type(function).__name__))


@dataclass
class Aside:
    """What TRL's trainers hand to a reward function that has a parameter of that name.

    `trainer_state` is transformers' TrainerState; `log_metric(name, value)` notes a number for the log,
    where those of a rollout are averaged; `log_extra(column, values)` notes a value per completion.
    """

    trainer_state: Any = None
    metrics: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    columns: dict[str, list[Any]] = field(default_factory=dict)

    def log_metric(self, name: str, value: float) -> None:
        """Note a number."""
        self.metrics[name].append(float(value))

    def log_extra(self, column: str, values: Sequence[Any]) -> None:
        """Note a value per completion."""
        self.columns[column] = list(values)

    def asked_by(self, function: RewardFunction) -> dict[str, Any]:
        """Of the three, those that a function names among its parameters."""
        try:
            named = inspect.signature(function).parameters
        except (TypeError, ValueError):  # of some callables nobody knows
            return {}
        offered = ("trainer_state", "log_metric", "log_extra")
        return {name: getattr(self, name) for name in offered if name in named}


def function_rewards(
    functions: Sequence[RewardFunction],
    weights: Sequence[float],
    answers: Answers,
    aside: Aside | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of what Python functions say, as TRL's trainers call them.

    A function that has nothing to say of a completion returns None for it, which counts as 0. Async
    functions run concurrently.

    Returns: `(B,)`, and each function's own rewards by its name, NaN where it said None.
    Raises: RewardError for a wrong number of rewards or one that is not finite, showing the sample.
    """
    total = torch.zeros(len(answers.completions))
    each: dict[str, Tensor] = {}
    aside = aside or Aside()
    said = [
        function(
            prompts=answers.prompts,
            completions=answers.completions,
            completion_ids=answers.completion_ids,
            **answers.columns | aside.asked_by(function),
        )
        for function in functions
    ]
    for function, weight, given in zip(functions, weights, _awaited(said), strict=True):
        name = name_of(function)
        if name in each:  # two lambdas, or one function twice
            name = f"{name}_{len(each)}"
        numbers = _checked(given, name, answers)
        each[name] = numbers
        total += weight * torch.where(numbers.isnan(), 0.0, numbers)
    for column, values in aside.columns.items():
        if len(values) != len(total):
            raise RewardError(
                f"log_extra: column {column!r} has {len(values)} values for {len(total)} completions"
            )
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


def _awaited(said: list[Any]) -> list[Any]:
    """What functions said, with the answers of those that are async, asked for side by side."""
    waiting = [at for at, given in enumerate(said) if inspect.isawaitable(given)]
    if not waiting:
        return said

    async def answer(given: Any) -> Any:
        try:
            return await given
        except SystemExit as error:  # it would end the loop, and this would wait for ever
            raise RuntimeError(f"a reward function asked to exit: {error}") from error

    async def together() -> list[Any]:
        asked = [asyncio.ensure_future(answer(said[at])) for at in waiting]
        try:
            return await asyncio.gather(*asked)
        finally:  # where one failed nobody waits for the others
            for task in asked:
                task.cancel()

    answers = _run_apart(together())
    found = list(said)
    for at, given in zip(waiting, answers, strict=True):
        found[at] = given
    return found


def _run_apart(work: Coroutine[Any, Any, list[Any]]) -> list[Any]:
    """Its result, from a loop in a thread of its own: in a notebook this one has a loop already."""
    waiting = asyncio.run_coroutine_threadsafe(work, _loop())
    try:
        return waiting.result()
    except BaseException:  # Ctrl-C, too: nobody is asked for what nobody waits for
        waiting.cancel()
        raise


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    """One for the whole process, since clients and locks that functions keep belong to their loop.

    The thread is a daemon, so that a judge that hangs cannot keep the process alive.
    """
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return loop


if hasattr(os, "register_at_fork"):  # a child has the loop, but not its thread
    os.register_at_fork(after_in_child=_loop.cache_clear)


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
