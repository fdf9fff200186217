"""What a visitor sends is clamped or refused."""

import math
from typing import Any

import pytest

from toolkit.app.answering import request as module
from toolkit.app.answering.request import checked_request
from toolkit.errors import ConfigError


def check(**kwargs: Any) -> module.Request:
    known = {"base": 0, "run_1": 0, "run_2": 0}
    asked = {"prompt": "Hi", "checkpoints": ["base"]} | kwargs
    return checked_request(**asked, known_checkpoints=known, known_rewards={"run_3"})


@pytest.mark.parametrize(
    ("sent", "used"),
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
def test_temperature(sent: object, used: float) -> None:
    assert check(temperature=sent).sampling.temperature == used


@pytest.mark.parametrize(
    ("sent", "used"), [(5, 5), (0, 1), (-3, 1), (10**9, 512), (math.nan, 128), (math.inf, 512)]
)
def test_tokens(sent: object, used: int) -> None:
    tokens = check(max_new_tokens=sent).sampling.max_new_tokens
    assert tokens == used and isinstance(tokens, int)


@pytest.mark.parametrize(
    ("sent", "used"), [(5, 5), (-1, 0), (2**80, 2**31 - 1), (math.nan, 0), ("", 0), (None, 0)]
)
def test_seed(sent: object, used: int) -> None:
    assert check(seed=sent).seed == used


@pytest.mark.parametrize("sent", ["", " \n", None, 5, [], [{"role": "user"}]])
def test_no_prompt(sent: object) -> None:
    with pytest.raises(ConfigError, match="write a prompt"):
        check(prompt=sent)


@pytest.mark.parametrize("sent", [["Hi"], [{"role": "tool", "content": "x"}], [None], [[]]])
def test_messages_that_are_none(sent: object) -> None:
    with pytest.raises(ConfigError, match="needs a role out of system, user, assistant"):
        check(prompt=sent)


def test_conversations_have_limits() -> None:
    said = {"role": "user", "content": "Hi"}
    with pytest.raises(ConfigError, match="65 messages; the limit is 64"):
        check(prompt=[said] * 65)
    with pytest.raises(ConfigError, match="36000 characters; the limit is 32000"):
        check(prompt=[said | {"content": "x" * 6000}] * 6)
    with pytest.raises(ConfigError, match="write a prompt"):
        check(prompt=[said, {"role": "assistant", "content": "Hello"}])


def test_a_nul_byte_is_no_text() -> None:
    assert check(prompt="a\0b").conversations[0][0]["content"] == "a\ufffdb"


@pytest.mark.parametrize(
    ("name", "sent", "used"),
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
def test_other_settings(name: str, sent: object, used: float) -> None:
    assert getattr(check(**{name: sent}).sampling, name) == used


def test_prompt_too_long() -> None:
    with pytest.raises(ConfigError, match="8001 characters; the limit is 8000"):
        check(prompt="x" * 8001)


@pytest.mark.parametrize("sent", [[], None, {}, 3])
def test_no_checkpoint(sent: object) -> None:
    with pytest.raises(ConfigError, match="at least one"):
        check(checkpoints=sent)


def test_a_checkpoint_is_asked_once_and_in_order() -> None:
    assert check(checkpoints=["run_2", "base", "run_2"]).checkpoints == ("run_2", "base")


def test_too_many_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_COLUMNS", 2)
    with pytest.raises(ConfigError, match="at most 2"):
        check(checkpoints=["base", "run_1", "run_2"])


def test_greedy_answers_are_measured_at_temperature_one() -> None:
    assert check(temperature=0).kl_temperature == 1.0
    assert check(temperature=0.5).kl_temperature == 0.5
