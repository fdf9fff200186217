"""Reward functions by name: found, refused with the reason, and never named by a file."""

import pytest

from toolkit.errors import ConfigError
from toolkit.options.arguments import PPOArguments
from toolkit.options.config import read_config
from toolkit.reward.functions import check_names, load_reward_functions

CODE = """
from dataclasses import dataclass

@dataclass
class Weights:
    each: float = 0.5

def short(completions, **_):
    return [-Weights().each * len(c) for c in completions]

NUMBER = 3
"""


@pytest.fixture
def file(tmp_path):
    found = tmp_path / "my_rewards.py"
    found.write_text(CODE)
    return found


def test_functions_come_from_a_file_or_a_module(file):
    ours, theirs = load_reward_functions([f"{file}:short", "operator:length_hint"])
    assert ours(completions=["abcd"]) == [-2.0]
    assert theirs([1, 2]) == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("short", r"expected FILE.py:FUNCTION or package.module:FUNCTION, got 'short'"),
        ("nowhere.py:short", "nowhere.py is no file"),
        ("no_such_module:f", r"no_such_module cannot be imported \(ModuleNotFoundError"),
        ("operator:a b", "'a b' cannot be a function's name"),
        ("{file}:NUMBER", "has no function 'NUMBER'; it has .*short"),
        ("{file}:long", "has no function 'long'; it has .*short"),
    ],
)
def test_what_is_no_function_is_refused(file, name, message):
    with pytest.raises(ConfigError, match=message):
        load_reward_functions([name.format(file=file)])


def test_a_file_that_fails_is_named_with_its_reason(tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0")
    check_names([f"{broken}:f"])  # runs nothing
    said = (
        r"broken.py cannot be imported \(ZeroDivisionError: division by zero, .*broken.py, line 1\)"
    )
    with pytest.raises(ConfigError, match=said):
        load_reward_functions([f"{broken}:f"])


@pytest.mark.parametrize("text", ["reward_funcs: [x:f]", "ppo: {reward_funcs: [x:f]}"])
def test_a_config_file_cannot_name_code(tmp_path, text):
    config = tmp_path / "c.yaml"
    config.write_text(text)
    with pytest.raises(ConfigError, match="`reward_funcs` is not read from a file"):
        read_config(str(config), [PPOArguments])
