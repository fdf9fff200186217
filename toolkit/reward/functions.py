"""Reward functions by name: Python of the user's own, named on the command line."""

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from toolkit.errors import ConfigError

if TYPE_CHECKING:
    from toolkit.reward.rewards import RewardFunction


def load_reward_functions(names: Sequence[str]) -> "list[RewardFunction]":
    """Import what `--reward_funcs` names; their code runs.

    Args:
        names: `FILE.py:FUNCTION` or `package.module:FUNCTION` each.

    Raises: ConfigError for a name of another form, a module that is not there or fails, and what
        is no function.
    """
    return [_load(name) for name in names]


def check_names(names: Sequence[str]) -> None:
    """As `load_reward_functions`, without running anything.

    Raises: ConfigError for a name of another form, or of a file that is not there.
    """
    for name in names:
        place, function = _parts(name)
        if place.endswith(".py") and not Path(place).is_file():
            raise ConfigError(f"reward_funcs: {place} is no file (of {name!r})")
        if not function.isidentifier():
            raise ConfigError(
                f"reward_funcs: {function!r} cannot be a function's name, in {name!r}"
            )


def _parts(name: str) -> tuple[str, str]:
    place, colon, function = name.rpartition(":")
    if not colon or not place or not function:
        raise ConfigError(
            f"reward_funcs: expected FILE.py:FUNCTION or package.module:FUNCTION, got {name!r}"
        )
    return place, function


def _load(name: str) -> "RewardFunction":
    check_names([name])
    place, wanted = _parts(name)
    try:
        module = (
            _from_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
        )
    except Exception as error:  # whatever a module may raise while it is imported
        reason = f"{type(error).__name__}: {error}{_line_of(error)}"
        raise ConfigError(f"reward_funcs: {place} cannot be imported ({reason})") from error
    function = getattr(module, wanted, None)
    if not callable(function):
        there = ", ".join(n for n in vars(module) if callable(getattr(module, n))) or "none"
        raise ConfigError(f"reward_funcs: {place} has no function {wanted!r}; it has {there}")
    found: RewardFunction = function
    return found


def _line_of(error: BaseException) -> str:
    """Where the user's own code raised it; importlib's frames tell nobody anything."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename != __file__ and "importlib" not in frame.filename
    ]
    return f", {frames[-1].filename}, line {frames[-1].lineno}" if frames else ""


def _from_file(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(file.stem, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
