"""Rewards of a completion: ensembles, Python functions, penalties; bad ones are shown."""

import asyncio

import numpy as np
import pytest
import torch

from toolkit.errors import RewardError
from toolkit.reward.rewards import (
    Answers,
    Aside,
    aggregate,
    function_rewards,
    penalise,
    refuse_unjudged,
)

SCORES = torch.tensor([[1.0, 2.0], [3.0, 2.0]])  # two adapters, two completions
ANSWERS = Answers(["p0", "p1"], ["good", "bad"], [[5, 2], [6, 7, 2]], {"answer": ["x", "y"]})


@pytest.mark.parametrize(
    ("how", "expected"),
    [("mean", [2.0, 2.0]), ("min", [1.0, 2.0]), ("mean_minus_std", [1.5, 2.0])],
)
def test_ensembles_by_hand(how, expected):
    assert aggregate(SCORES, how=how, std_coef=0.5).tolist() == expected


def test_functions_are_called_as_trl_calls_them_weighted_and_summed():
    def length(prompts, completions, completion_ids, **columns):
        assert prompts == ANSWERS.prompts
        assert columns == {"answer": ["x", "y"]}
        return [float(len(ids)) for ids in completion_ids]

    def only_good(completions, **_):
        return [1.0 if text == "good" else None for text in completions]

    total, each = function_rewards([length, only_good], [0.5, 10.0], ANSWERS)
    assert total.tolist() == [0.5 * 2 + 10, 0.5 * 3]
    assert each["length"].tolist() == [2.0, 3.0]
    assert each["only_good"].isnan().tolist() == [False, True]


def test_what_trls_trainers_hand_over_is_given_to_those_who_name_it():
    aside = Aside(trainer_state="the state")

    def asks(completions, trainer_state, log_metric, log_extra, **columns):
        assert trainer_state == "the state"
        assert columns.keys() == {"prompts", "completion_ids", "answer"}
        log_metric("long", 1)
        log_metric("long", 2)
        log_extra("letters", (len(text) for text in completions))
        return [1.0, 2.0]

    class Judge:
        def __call__(self, *, trainer_state, **_):
            return [10.0, 20.0] if trainer_state else [None, None]

    total, _ = function_rewards([asks, Judge()], [1.0, 1.0], ANSWERS, aside)
    assert total.tolist() == [11.0, 22.0]
    assert aside.metrics == {"long": [1.0, 2.0]}
    assert aside.columns == {"letters": [4, 3]}


def test_a_noted_column_of_a_wrong_length_is_named():
    def asks(log_extra, **_):
        log_extra("letters", [1])
        return [1.0, 2.0]

    with pytest.raises(RewardError, match="column 'letters' has 1 values for 2 completions"):
        function_rewards([asks], [1.0], ANSWERS)


@pytest.mark.parametrize("inside", [False, True])
def test_async_functions_wait_side_by_side_also_where_a_loop_runs(inside):
    """As in a notebook. Each waits for the other, so that one after the other would never end."""
    met = {"a": asyncio.Event, "b": asyncio.Event}

    def judge(own, other, worth):
        async def judged(completions, **_):
            met[own].set()
            await asyncio.wait_for(met[other].wait(), 10)
            return [worth] * len(completions)

        return judged

    def plain(completions, **_):
        met.update(a=asyncio.Event(), b=asyncio.Event())
        return [1.0] * len(completions)

    functions = [plain, judge("a", "b", 10.0), judge("b", "a", 100.0)]

    async def notebook():
        return function_rewards(functions, [1.0] * 3, ANSWERS)

    total, _ = (
        asyncio.run(notebook()) if inside else function_rewards(functions, [1.0] * 3, ANSWERS)
    )
    assert total.tolist() == [111.0, 111.0]


def test_a_lock_that_an_async_function_keeps_serves_every_rollout():
    """As a client's pool of connections does: it belongs to the loop that it first met."""
    one_at_a_time = asyncio.Semaphore(1)

    async def judged(completions, **_):
        async def one(text):
            async with one_at_a_time:
                await asyncio.sleep(0)
                return float(len(text))

        return await asyncio.gather(*map(one, completions))

    for _ in range(2):
        total, _ = function_rewards([judged], [1.0], ANSWERS)
        assert total.tolist() == [float(len(text)) for text in ANSWERS.completions]


def test_an_async_function_that_exits_or_fails_ends_the_wait_for_all():
    stopped = []

    async def exits(**_):
        await asyncio.sleep(0)
        raise SystemExit("no API key")

    async def waits(**_):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            stopped.append(True)
            raise

    with pytest.raises(RuntimeError, match="asked to exit: no API key"):
        function_rewards([waits, exits], [1.0, 1.0], ANSWERS)
    test_what_an_async_function_raises_is_raised()  # the loop goes on
    assert stopped == [True]


def test_what_an_async_function_raises_is_raised():
    async def judged(**_):
        raise ConnectionError("no judge")

    with pytest.raises(ConnectionError, match="no judge"):
        function_rewards([judged], [1.0], ANSWERS)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([1.0], "expected a list of 2 rewards.*got 1 rewards.*'p0'"),
        (0.5, "got float"),
        ([1.0, float("nan")], "gave nan to prompt 'p1', completion 'bad'"),
        ([float("inf"), 0.0], "gave inf to prompt 'p0', completion 'good'"),
        ([1.0, "high"], "got 'high' for prompt 'p1'"),
        ([1.0, "2.0"], "expected a number or None, got '2.0' for prompt 'p1'"),
        ([10**400, 1.0], "gave inf to prompt 'p0'"),
        ([1.0, 1e39], "gave 1e\\+39 to prompt 'p1'"),  # infinite in float32
        (torch.tensor(1.0), "got Tensor"),
        ({"a": 1.0, "b": 2.0}, "got dict"),
    ],
)
def test_a_bad_reward_shows_the_sample(given, message):
    with pytest.raises(RewardError, match=message):
        function_rewards([lambda **_: given], [1.0], ANSWERS)


@pytest.mark.parametrize("given", [np.array([1.0, 2.5]), torch.tensor([1.0, 2.5]), (1, 2.5)])
def test_arrays_and_tensors_of_one_dimension_are_lists(given):
    total, _ = function_rewards([lambda **_: given], [2.0], ANSWERS)
    assert total.tolist() == [2.0, 5.0]


def test_a_completion_that_no_function_judges_is_shown():
    answers = Answers(["a", "b"], ["x", "y"], [[1], [2]], {})
    nan = float("nan")
    judged = {"f": torch.tensor([1.0, nan]), "g": torch.tensor([nan, 0.0])}
    refuse_unjudged(judged, answers)
    judged["g"][1] = nan
    with pytest.raises(RewardError, match=r"1 of 2 completions.*f, g said None.*completion 'y'"):
        refuse_unjudged(judged, answers)


def test_two_functions_of_one_name_are_both_logged():
    answers = Answers(["a"], ["x"], [[1]], {})
    functions = [lambda **_: [1.0], lambda **_: [2.0]]
    total, each = function_rewards(functions, [1.0, 10.0], answers)
    assert total.tolist() == [21.0]
    assert [numbers.item() for numbers in each.values()] == [1.0, 2.0]


def test_penalties_by_hand():
    found = penalise(
        torch.tensor([5.0, -5.0, 0.5]),
        torch.tensor([10, 20, 30]),
        torch.tensor([True, False, False]),
        clip=2.0,
        missing_eos=1.0,
        per_token=0.01,
    )
    expected = torch.tensor([2.0 - 0.1, -2.0 - 0.2 - 1.0, 0.5 - 0.3 - 1.0])
    torch.testing.assert_close(found, expected)
