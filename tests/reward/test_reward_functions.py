"""Reward functions: loading by name, calling as TRL calls them, and errors that show the sample."""

import asyncio
import dataclasses
import math

import numpy as np
import pytest
import torch

from toolkit.errors import ConfigError, RewardError
from toolkit.options.arguments import PPOArguments
from toolkit.options.config import read_config
from toolkit.reward.functions import (
    RewardContext,
    Samples,
    call_reward_functions,
    load_reward_functions,
    require_rewards,
)

CODE = """
from dataclasses import dataclass

@dataclass
class Weights:
    each: float = 0.5

def short(completions, **_):
    return [-Weights().each * len(c) for c in completions]

NUMBER = 3
"""
SAMPLES = Samples(["p0", "p1"], ["good", "bad"], [[5, 2], [6, 7, 2]], {"answer": ["x", "y"]})


def call(*functions, context=None):
    return list(call_reward_functions(functions, SAMPLES, context or RewardContext()).values())


# ---- loading


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my_rewards.py"
    path.write_text(CODE)
    return path


def test_functions_load_from_file_and_module(file):
    ours, theirs = load_reward_functions([f"{file}:short", "operator:length_hint"])
    assert ours(completions=["abcd"]) == [-2.0]
    assert theirs([1, 2]) == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("short", r"expected FILE.py:FUNCTION or package.module:FUNCTION, got 'short'"),
        ("nowhere.py:short", "the file nowhere.py of 'nowhere.py:short' does not exist"),
        ("no_such_module:f", r"no_such_module cannot be imported \(ModuleNotFoundError"),
        ("operator:a b", "'a b' in 'operator:a b' is not a function name"),
        ("{file}:NUMBER", "has no function 'NUMBER'; available: .*short"),
        ("{file}:long", "has no function 'long'; available: .*short"),
    ],
)
def test_unusable_function_name_is_rejected(file, name, message):
    with pytest.raises(ConfigError, match=message):
        load_reward_functions([name.format(file=file)])


def test_failing_file_is_reported_with_its_line(tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0")
    message = (
        r"broken.py cannot be imported \(ZeroDivisionError: division by zero, .*broken.py, line 1\)"
    )
    with pytest.raises(ConfigError, match=message):
        load_reward_functions([f"{broken}:f"])


@pytest.mark.parametrize("text", ["reward_funcs: [x:f]", "ppo: {reward_funcs: [x:f]}"])
def test_config_file_cannot_name_reward_functions(tmp_path, text):
    config = tmp_path / "c.yaml"
    config.write_text(text)
    with pytest.raises(ConfigError, match="`reward_funcs` cannot be set in a file"):
        read_config(str(config), [PPOArguments])


# ---- calling


def test_functions_get_samples_columns_and_context():
    context = RewardContext(trainer_state="the state")

    def length(prompts, completions, completion_ids, **columns):
        assert prompts == SAMPLES.prompts
        assert columns == {"answer": ["x", "y"]}
        return [float(len(ids)) for ids in completion_ids]

    def only_good(completions, **_):
        return [1.0 if text == "good" else None for text in completions]

    def with_context(completions, trainer_state, log_metric, log_extra, **columns):
        assert trainer_state == "the state"
        assert columns.keys() == {"prompts", "completion_ids", "answer"}
        log_metric("long", 1)
        log_metric("long", 2)
        log_extra("letters", (len(text) for text in completions))
        return [1.0, 2.0]

    class Judge:
        def __call__(self, *, trainer_state, **_):
            return [10.0, 20.0] if trainer_state else [None, None]

    functions = [length, only_good, with_context, Judge()]
    rewards = call_reward_functions(functions, SAMPLES, context)
    assert list(rewards) == ["length", "only_good", "with_context", "Judge"]
    assert rewards["length"] == [2.0, 3.0]
    assert rewards["only_good"][0] == 1.0 and math.isnan(rewards["only_good"][1])
    assert (rewards["with_context"], rewards["Judge"]) == ([1.0, 2.0], [10.0, 20.0])
    assert context.metrics == {"long": [1.0, 2.0]}
    assert context.columns == {"letters": [4, 3]}


def test_stored_column_of_wrong_length_is_rejected():
    def stores_one(log_extra, **_):
        log_extra("letters", [1])
        return [1.0, 2.0]

    with pytest.raises(RewardError, match="column 'letters' has 1 values for 2 completions"):
        call(stores_one)


@pytest.mark.parametrize("inside_loop", [False, True])
def test_async_functions_run_concurrently(inside_loop):
    """Also where a loop runs, as in a notebook. Each waits for the other, so sequential calls hang."""
    events = {}

    def judge(own, other, reward):
        async def judged(completions, **_):
            events[own].set()
            await asyncio.wait_for(events[other].wait(), 10)
            return [reward] * len(completions)

        return judged

    def plain(completions, **_):
        events.update(a=asyncio.Event(), b=asyncio.Event())
        return [1.0] * len(completions)

    functions = [plain, judge("a", "b", 10.0), judge("b", "a", 100.0)]

    async def notebook():
        return call(*functions)

    rewards = asyncio.run(notebook()) if inside_loop else call(*functions)
    assert rewards == [[1.0, 1.0], [10.0, 10.0], [100.0, 100.0]]


def test_async_function_may_keep_a_lock():
    """A lock, like a client's connections, belongs to the event loop that first used it."""
    one_at_a_time = asyncio.Semaphore(1)

    async def judged(completions, **_):
        async def one(text):
            async with one_at_a_time:
                await asyncio.sleep(0)
                return float(len(text))

        return await asyncio.gather(*map(one, completions))

    for _ in range(2):
        assert call(judged) == [[4.0, 3.0]]


def test_failing_async_function_cancels_the_others():
    cancelled = []

    async def exits(**_):
        await asyncio.sleep(0)
        raise SystemExit("no API key")

    async def fails(**_):
        raise ConnectionError("no judge")

    async def waits(**_):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    with pytest.raises(RewardError, match=r"reward function exits called sys\.exit: no API key"):
        call(waits, exits)
    with pytest.raises(ConnectionError, match="no judge"):  # the event loop still runs
        call(fails)
    assert cancelled == [True]


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ([1.0], "expected a list of 2 rewards.*got 1 rewards.*'p0'"),
        (0.5, "got float"),
        ([1.0, float("nan")], "got nan for prompt 'p1', completion 'bad'"),
        ([float("inf"), 0.0], "got inf for prompt 'p0', completion 'good'"),
        ([1.0, "high"], "got 'high' for prompt 'p1'"),
        ([1.0, "2.0"], "expected a number or None, got '2.0' for prompt 'p1'"),
        ([10**400, 1.0], "got inf for prompt 'p0'"),
        ([1.0, 1e39], "got 1e\\+39 for prompt 'p1'"),  # infinite in float32
        (torch.tensor(1.0), "got Tensor"),
        ({"a": 1.0, "b": 2.0}, "got dict"),
    ],
)
def test_bad_reward_is_shown_with_its_sample(rewards, message):
    with pytest.raises(RewardError, match=message):
        call(lambda **_: rewards)


@pytest.mark.parametrize("rewards", [np.array([1.0, 2.5]), torch.tensor([1.0, 2.5]), (1, 2.5)])
def test_arrays_and_tensors_are_accepted(rewards):
    assert call(lambda **_: rewards) == [[1.0, 2.5]]


def test_completion_without_any_reward_is_shown():
    rewards = {"f": [1.0, math.nan], "g": [math.nan, 0.0]}
    require_rewards(rewards, SAMPLES)
    rewards["g"][1] = math.nan
    message = r"1 of 2 completions.*f, g returned None.*completion 'bad'"
    with pytest.raises(RewardError, match=message):
        require_rewards(rewards, SAMPLES)


class Messages:
    """Two rows of messages, and functions that change whatever they get or returned."""

    def __init__(self):
        turns = [[{"role": "user", "content": text}] for text in ("p0", "p1")]
        answers = [[{"role": "assistant", "content": text}] for text in ("good", "bad")]
        shared = ["a", "tag"]  # one object in two rows, as equal prompts of a dataset may have
        self.samples = Samples(turns, answers, [[5, 2], [6, 7, 2]], {"tags": [shared, shared]})
        self.kept = {}

    def spoils(self, prompts, completions, completion_ids, tags, **_):
        self.kept = {"lists": (prompts, completions, completion_ids, tags)}
        for prompt, completion, ids, tag in zip(
            prompts, completions, completion_ids, tags, strict=True
        ):
            assert tag == ["a", "tag"]
            prompt[0]["content"] = completion[0]["content"] = "spoiled"
            ids.append(9)
            tag.clear()
        for values in self.kept["lists"]:
            values.clear()
        return [0.0, 0.0]

    async def spoils_later(self, prompts, completions, completion_ids, tags, **_):
        await asyncio.sleep(0)
        return self.spoils(prompts, completions, completion_ids, tags)

    def judge(self, prompts, completions, completion_ids, tags, **_):
        texts = [turn[0]["content"] for turn in (*prompts, *completions)]
        assert texts == ["p0", "p1", "good", "bad"]
        assert (completion_ids, tags) == ([[5, 2], [6, 7, 2]], [["a", "tag"]] * 2)
        return [1.0, 2.0]


@pytest.mark.parametrize("spoils", ["spoils", "spoils_later"])
def test_functions_cannot_change_samples_of_others(spoils):
    given, expected = Messages(), Messages().samples
    call_reward_functions([getattr(given, spoils), given.judge], given.samples, RewardContext())
    rewards = call_reward_functions([given.judge], given.samples, RewardContext())
    assert rewards == {"judge": [1.0, 2.0]}
    assert given.samples == expected


def test_functions_cannot_change_trainer_state_and_stored_values():
    context, values = RewardContext(trainer_state={"log": [1]}), [["x"], ["y"]]

    def stores(trainer_state, log_extra, **_):
        trainer_state["log"].clear()
        log_extra("letters", values)
        values[0].append("later")
        return [1.0, 1.0]

    call(stores, context=context)
    assert context.trainer_state == {"log": [1]}
    assert context.columns == {"letters": [["x"], ["y"]]}


@pytest.mark.parametrize("buffer", [[0.0, 0.0], np.zeros(2), torch.zeros(2)], ids=type)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_rewards_are_read_before_another_function_runs(buffer, asynchronous):
    """Two functions return the same object, filled anew by each."""

    def fill(value):
        for row in range(2):
            buffer[row] = value
        return buffer

    async def fill_later(value):
        return fill(value)

    f = fill_later if asynchronous else fill
    assert call(lambda **_: f(1.0), lambda **_: f(2.0)) == [[1.0, 1.0], [2.0, 2.0]]


def test_function_may_return_an_input_column():
    samples = dataclasses.replace(SAMPLES, columns={"score": [1.0, 2.0]})
    functions = [lambda score, **_: score, lambda score, **_: score.clear() or [0.0, 0.0]]
    rewards = call_reward_functions(functions, samples, RewardContext())
    assert list(rewards.values()) == [[1.0, 2.0], [0.0, 0.0]]


@pytest.mark.parametrize("code", [0, None, 1, "no API key"])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_exit_in_a_function_is_an_error(code, asynchronous):
    def ends(**_):
        raise SystemExit(code)

    async def ends_later(**_):
        ends()

    f = ends_later if asynchronous else ends
    with pytest.raises(
        RewardError, match=rf"reward function {f.__name__} called sys\.exit: {code}"
    ):
        call(f)


def test_keyboard_interrupt_in_async_function_is_an_error():
    async def ends(**_):
        raise KeyboardInterrupt

    with pytest.raises(RewardError, match="reward function ends raised KeyboardInterrupt"):
        call(ends)
    assert call(lambda **_: [1, 2]) == [[1.0, 2.0]]


def test_file_that_calls_exit_is_rejected(tmp_path):
    (tmp_path / "ends.py").write_text("import sys\nsys.exit(0)")
    with pytest.raises(ConfigError, match=r"cannot be imported \(SystemExit: 0, .*line 2\)"):
        load_reward_functions([f"{tmp_path / 'ends.py'}:f"])


def test_functions_of_the_same_name_are_both_kept():
    assert call(lambda **_: [1.0, 1.0], lambda **_: [2.0, 2.0]) == [[1.0, 1.0], [2.0, 2.0]]
