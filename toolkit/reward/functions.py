"""Reward functions: a user's Python functions, loaded by name and called with TRL's signature."""

import asyncio
import copy
import functools
import importlib
import importlib.util
import inspect
import math
import os
import sys
import threading
import traceback
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from toolkit.errors import ConfigError, RewardError, exit_is_error

# f(prompts=…, completions=…, completion_ids=…, **columns) returns a number or None per completion
RewardFunction = Callable[..., Sequence[float | None] | Awaitable[Sequence[float | None]]]
FLOAT32_MAX = 3.4028234663852886e38


def load_reward_functions(names: Sequence[str]) -> list[RewardFunction]:
    """Import the functions that `--reward_funcs` names; importing runs their modules.

    Args:
        names: each is `FILE.py:FUNCTION` or `package.module:FUNCTION`.

    Raises: ConfigError if a name has another form, its module is missing or fails, or the object is
        not callable.
    """
    return [_load(name) for name in names]


def _split(name: str) -> tuple[str, str]:
    """The module and the function of a name, checked without running any code."""
    module, _, function = name.rpartition(":")
    if not module or not function:
        raise ConfigError(
            f"reward_funcs: expected FILE.py:FUNCTION or package.module:FUNCTION, got {name!r}"
        )
    if module.endswith(".py") and not Path(module).is_file():
        raise ConfigError(f"reward_funcs: the file {module} of {name!r} does not exist")
    if not function.isidentifier():
        raise ConfigError(f"reward_funcs: {function!r} in {name!r} is not a function name")
    return module, function


def _load(name: str) -> RewardFunction:
    path, attribute = _split(name)
    try:
        module = _import_file(Path(path)) if path.endswith(".py") else importlib.import_module(path)
    except (Exception, SystemExit) as error:  # a module may raise anything during its import
        reason = f"{type(error).__name__}: {error}{_line_of(error)}"
        raise ConfigError(f"reward_funcs: {path} cannot be imported ({reason})") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        available = ", ".join(n for n in vars(module) if callable(getattr(module, n))) or "none"
        raise ConfigError(
            f"reward_funcs: {path} has no function {attribute!r}; available: {available}"
        )
    reward_function: RewardFunction = function
    return reward_function


def _line_of(error: BaseException) -> str:
    """The line of the user's code that raised an error, without importlib's frames."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename != __file__ and "importlib" not in frame.filename
    ]
    return f", {frames[-1].filename}, line {frames[-1].lineno}" if frames else ""


def _import_file(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(file.stem, module)  # a dataclass reads its module from there
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Samples:
    """Completions in the form that reward functions read; `columns` are the dataset's other columns."""

    prompts: list[Any]
    completions: list[Any]
    completion_ids: list[list[int]]
    columns: dict[str, list[Any]]

    @classmethod
    def of(
        cls,
        prompts: list[Any],
        texts: Sequence[str],
        ids: list[list[int]],
        columns: dict[str, list[Any]],
    ) -> "Samples":
        """Samples from completions as text; a completion becomes a message if its prompt is messages."""
        completions = [
            text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
            for prompt, text in zip(prompts, texts, strict=True)
        ]
        return cls(prompts, completions, ids, columns)

    def copies(self) -> dict[str, list[Any]]:
        """Keyword arguments for one function, copied because the function may change them."""
        arguments = {"prompts": self.prompts, "completions": self.completions}
        arguments |= {"completion_ids": self.completion_ids} | self.columns
        return {name: [copy.deepcopy(x) for x in values] for name, values in arguments.items()}

    def describe(self, row: int) -> str:
        """One sample as text for an error message."""
        if not self.completions:
            return "none"
        return f"prompt {self.prompts[row]!r}, completion {self.completions[row]!r}"


@dataclass
class RewardContext:
    """Arguments that a reward function gets if it has parameters with these names, as in TRL.

    `trainer_state` is transformers' TrainerState; `log_metric(name, value)` logs a number, averaged over a
    rollout's calls; `log_extra(column, values)` stores one value per completion.
    """

    trainer_state: Any = None
    metrics: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    columns: dict[str, list[Any]] = field(default_factory=dict)

    def log_metric(self, name: str, value: float) -> None:
        """Add one value of a metric."""
        self.metrics[name].append(float(value))

    def log_extra(self, column: str, values: Sequence[Any]) -> None:
        """Store one value per completion."""
        self.columns[column] = [copy.deepcopy(value) for value in values]

    def arguments_for(self, function: RewardFunction) -> dict[str, Any]:
        """The arguments that are parameters of a function."""
        try:
            parameters = inspect.signature(function).parameters
        except (TypeError, ValueError):  # some built-in callables have no signature
            return {}
        names = ("trainer_state", "log_metric", "log_extra")
        arguments = {name: getattr(self, name) for name in names if name in parameters}
        if "trainer_state" in arguments:
            arguments["trainer_state"] = copy.deepcopy(self.trainer_state)
        return arguments


def name_of(function: RewardFunction) -> str:
    """The function's name; for a callable object, the name of its class."""
    return str(getattr(function, "__name__", type(function).__name__))


def call_reward_functions(
    functions: Sequence[RewardFunction], samples: Samples, context: RewardContext
) -> dict[str, list[float]]:
    """Call each function with all samples, as TRL's trainers do; async functions run concurrently.

    Each function gets copies, and its result is copied at once, so that its changes reach neither the
    trainer nor another function.

    Returns: function name -> rewards, one per completion, with NaN for None.
    Raises: RewardError for a wrong number of rewards, a reward that is not finite in float32 (with
        the sample), or a function that calls `sys.exit`.
    """
    rewards: dict[str, Any] = {}
    for function in functions:
        name = name_of(function)
        if name in rewards:  # two lambdas, or one function twice
            name = f"{name}_{len(rewards)}"
        with exit_is_error(f"reward function {name}", RewardError):
            result = function(**samples.copies() | context.arguments_for(function))
            if inspect.isawaitable(result):
                rewards[name] = _checked_later(result, name, samples)
            else:
                rewards[name] = _checked(result, name, samples)
    rewards |= _await_all({name: r for name, r in rewards.items() if inspect.isawaitable(r)})
    for column, values in context.columns.items():
        if len(values) != len(samples.completions):
            raise RewardError(
                f"log_extra: column {column!r} has {len(values)} values for "
                f"{len(samples.completions)} completions"
            )
    return rewards


def weighted_sum(
    rewards: Mapping[str, Sequence[float]], weights: Sequence[float] | None = None
) -> list[float]:
    """Σ weight · reward over reward functions, one number per completion.

    Args:
        rewards: the result of `call_reward_functions`; a NaN (the function returned None) adds 0.
        weights: one per function; by default 1.
    """
    rows = zip(*rewards.values(), strict=True)
    weights = weights or [1.0] * len(rewards)
    return [
        sum(w * r for w, r in zip(weights, row, strict=True) if not math.isnan(r)) for row in rows
    ]


def require_rewards(rewards: Mapping[str, Sequence[float]], samples: Samples) -> None:
    """Check that at least one function returned a number for each completion.

    Raises: RewardError with the first completion for which every function returned None.
    """
    rows = range(len(samples.completions))
    missing = [row for row in rows if all(math.isnan(r[row]) for r in rewards.values())]
    if missing:
        raise RewardError(
            f"{len(missing)} of {len(rows)} completions have no reward: {', '.join(rewards)} returned "
            f"None, and there is no reward model; the first: {samples.describe(missing[0])}"
        )


async def _checked_later(awaitable: Awaitable[Any], name: str, samples: Samples) -> list[float]:
    try:
        with exit_is_error(f"reward function {name}", RewardError):
            return _checked(await awaitable, name, samples)
    except KeyboardInterrupt as error:  # not Ctrl-C, which reaches the main thread only
        raise RewardError(f"reward function {name} raised KeyboardInterrupt") from error


def _await_all(pending: dict[str, Awaitable[list[float]]]) -> dict[str, list[float]]:
    """The results of async functions by name; the functions are awaited together."""
    if not pending:
        return {}

    async def gather() -> list[list[float]]:
        tasks = [asyncio.ensure_future(awaitable) for awaitable in pending.values()]
        try:
            return await asyncio.gather(*tasks)
        finally:  # one failed: cancel the others
            for task in tasks:
                task.cancel()

    # in another thread: a notebook's own thread already runs an event loop
    future = asyncio.run_coroutine_threadsafe(gather(), _event_loop())
    try:
        return dict(zip(pending, future.result(), strict=True))
    except BaseException:  # KeyboardInterrupt too
        future.cancel()
        raise


@functools.cache
def _event_loop() -> asyncio.AbstractEventLoop:
    """One event loop for the process, because clients and locks of functions are bound to a loop.

    The loop's thread is a daemon, so that a hanging reward function cannot keep the process alive.
    """
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return loop


if hasattr(os, "register_at_fork"):  # a forked child inherits the loop but not its thread
    os.register_at_fork(after_in_child=_event_loop.cache_clear)


def _checked(result: Any, name: str, samples: Samples) -> list[float]:
    """Check a function's result: finite numbers, with NaN in place of None."""
    expected = len(samples.completions)
    values = result.tolist() if hasattr(result, "tolist") else result  # an array or a tensor
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Sequence):
        values = None
    if values is None or len(values) != expected:
        got = type(result).__name__ if values is None else f"{len(values)} rewards"
        raise RewardError(
            f"reward function {name}: expected a list of {expected} rewards, one per completion, "
            f"got {got}; the first sample: {samples.describe(0)}"
        )
    numbers = []
    for row, value in enumerate(values):
        try:
            number = math.nan if value is None else float(value + 0)  # "2.0" + 0 is a TypeError
        except OverflowError:  # an integer that is too large for a float
            number = math.inf
        except (TypeError, ValueError) as error:
            raise RewardError(
                f"reward function {name}: expected a number or None, got {value!r} for "
                f"{samples.describe(row)}"
            ) from error
        if value is not None and not abs(number) <= FLOAT32_MAX:  # true for NaN, too
            raise RewardError(
                f"reward function {name}: expected a finite number, got {number} for "
                f"{samples.describe(row)}"
            )
        numbers.append(number)
    return numbers
