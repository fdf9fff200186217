"""`target_kl`: a rollout's updates end after the first minibatch whose logged KL is above it."""

import itertools

import pytest
import torch

from tests.trainers.ppo_record import record

SETTINGS = {
    "temperature": 0.8,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "num_ppo_epochs": 3,
    "total_episodes": 24,
    "learning_rate": 3e-3,
}
STEPS = 6  # of a rollout
KL = "policy/approxkl_avg"


@pytest.fixture
def run(make_ppo_roles, tokenizer, tmp_path, monkeypatch):
    """Three rollouts of six minibatches, each in two micro-batches."""

    def go(limit):
        folder = tmp_path / str(limit)
        options = SETTINGS | {"target_kl": limit}
        recording = record(make_ppo_roles(), tokenizer, folder, monkeypatch, **options)
        assert len(recording.steps) == 3 * STEPS
        return recording

    return go


def moves(recording):
    """Whether each step changed any weight."""
    now = dict(recording.roles.model.named_parameters())
    ends = [*(step.weights for step in recording.steps), now]
    return [
        any(not torch.equal(after[name], tensor) for name, tensor in before.items())
        for before, after in itertools.pairwise(ends)
    ]


def skips(recording):
    return [bool(step.logs["policy/updates_skipped"]) for step in recording.steps]


def test_the_rest_of_a_rollout_is_skipped_and_the_next_one_moves_again(run):
    """The limit is a hair below what the third minibatch has; its last micro-batch alone has less."""
    free = [step.logs[KL] for step in run(None).steps]
    at = 2
    limit = free[at] * 0.999
    assert max(free[:at]) < limit
    recording = run(limit)
    assert [step.logs[KL] for step in recording.steps[: at + 1]] == free[: at + 1]
    stopped, expected = False, []
    for number, step in enumerate(recording.steps):
        stopped = stopped and number % STEPS != 0
        expected.append(stopped)
        assert (KL in step.logs) is not stopped
        stopped = stopped or step.logs[KL] > limit
    assert skips(recording) == expected
    assert moves(recording) == [not skipped for skipped in expected]
    assert expected[: STEPS + 1] == [False] * 3 + [True] * 3 + [False]
    assert not expected[2 * STEPS]


def test_a_limit_just_above_every_minibatchs_kl_skips_nothing(run):
    """Neither a sum over minibatches nor a multiple of one counts."""
    free = run(None)
    kls = [step.logs[KL] for step in free.steps]
    limit = max(kls) * 1.001
    assert sum(kls[:STEPS]) > limit
    held = run(limit)
    assert [step.logs[KL] for step in held.steps] == kls
    assert not any(skips(held)) and all(moves(held))
    ends = zip(free.roles.model.parameters(), held.roles.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in ends)
