"""Untrusted values of a request are clamped or rejected."""

import math
from typing import Any

import pytest

from toolkit.app.answering import request as module
from toolkit.app.answering.request import checked_request
from toolkit.errors import ConfigError


def check(**kwargs: Any) -> module.Request:
    known = {"base": 0, "run_1": 0, "run_2": 0}
    request = {"prompt": "Hi", "checkpoints": ["base"]} | kwargs
    return checked_request(**request, known_checkpoints=known, known_rewards={"run_3"})


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.7, 0.7),
        (math.nan, 0.7),
        ("NaN", 0.7),
        (None, 0.7),
        ({}, 0.7),
        (-1, 0.0),
        (1e-9, 0.0),
        (math.inf, 2.0),
        (10**400, 0.7),
    ],
)
def test_temperature_is_clamped(value: object, expected: float) -> None:
    assert check(temperature=value).sampling.temperature == expected


@pytest.mark.parametrize(
    ("value", "expected"), [(5, 5), (0, 1), (-3, 1), (10**9, 512), (math.nan, 128), (math.inf, 512)]
)
def test_max_new_tokens_is_clamped(value: object, expected: int) -> None:
    tokens = check(max_new_tokens=value).sampling.max_new_tokens
    assert tokens == expected and isinstance(tokens, int)


@pytest.mark.parametrize(
    ("value", "expected"), [(5, 5), (-1, 0), (2**80, 2**31 - 1), (math.nan, 0), ("", 0), (None, 0)]
)
def test_seed_is_clamped(value: object, expected: int) -> None:
    assert check(seed=value).sampling.seed == expected


@pytest.mark.parametrize("value", ["", " \n", None, 5, [], [{"role": "user"}]])
def test_empty_prompt_is_rejected(value: object) -> None:
    with pytest.raises(ConfigError, match="write a prompt"):
        check(prompt=value)


@pytest.mark.parametrize("value", [["Hi"], [{"role": "tool", "content": "x"}], [None], [[]]])
def test_invalid_messages_are_rejected(value: object) -> None:
    with pytest.raises(ConfigError, match="must be one of system, user, assistant"):
        check(prompt=value)


def test_long_conversation_is_rejected() -> None:
    message = {"role": "user", "content": "Hi"}
    with pytest.raises(ConfigError, match="at most 64 messages, got 65"):
        check(prompt=[message] * 65)
    with pytest.raises(ConfigError, match="36000 characters, at most 32000"):
        check(prompt=[message | {"content": "x" * 6000}] * 6)
    with pytest.raises(ConfigError, match="write a prompt"):
        check(prompt=[message, {"role": "assistant", "content": "Hello"}])


def test_nul_is_replaced() -> None:
    assert check(prompt="a\0b").conversations[0][0]["content"] == "a\ufffdb"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("beams", 100, 8),
        ("beams", -1, 1),
        ("beams", "x", 1),
        ("top_k", 10**9, 1000),
        ("top_k", -4, 0),
        ("top_k", math.nan, 0),
        ("top_p", 7, 1.0),
        ("top_p", 0, 0.01),
        ("top_p", math.nan, 1.0),
        ("top_p", "../../etc", 1.0),
    ],
)
def test_other_settings_are_clamped(name: str, value: object, expected: float) -> None:
    assert getattr(check(**{name: value}).sampling, name) == expected


def test_long_prompt_is_rejected() -> None:
    with pytest.raises(ConfigError, match="8001 characters, at most 8000"):
        check(prompt="x" * 8001)


@pytest.mark.parametrize("value", [[], None, {}, 3])
def test_no_checkpoint_is_rejected(value: object) -> None:
    with pytest.raises(ConfigError, match="at least one"):
        check(checkpoints=value)


def test_checkpoints_are_unique_and_ordered() -> None:
    assert check(checkpoints=["run_2", "base", "run_2"]).checkpoints == ("run_2", "base")


def test_too_many_checkpoints_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_COLUMNS", 2)
    with pytest.raises(ConfigError, match="at most 2"):
        check(checkpoints=["base", "run_1", "run_2"])


def test_kl_temperature_of_greedy_answers_is_one() -> None:
    assert check(temperature=0).kl_temperature == 1.0
    assert check(temperature=0.5).kl_temperature == 0.5
