"""`target_kl`: a rollout's updates end after the first minibatch whose logged KL is above it."""

import itertools

import pytest
import torch

from tests.ppo.record import record

pytestmark = pytest.mark.slow

SETTINGS = {
    "temperature": 0.8,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "num_ppo_epochs": 3,
    "total_episodes": 24,
    "learning_rate": 3e-3,
}
STEPS = 6  # per rollout
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


def test_target_kl_skips_the_rest_of_a_rollout(run):
    """The limit is just below the third minibatch's KL, then just above it.

    Below, the KL of its last micro-batch alone would not reach the limit. Above, the minibatches' sum
    would.
    """
    free = [step.logs[KL] for step in run(None).steps]
    for nearness in (0.999, 1.001):
        check_skips(run, free, nearness)


def check_skips(run, free, nearness):
    limit = free[2] * nearness
    assert max(free[:2]) < limit < sum(free[:3])
    recording = run(limit)
    assert [step.logs[KL] for step in recording.steps[:3]] == free[:3]
    stopped, expected = False, []
    for number, step in enumerate(recording.steps):
        stopped = stopped and number % STEPS != 0
        expected.append(stopped)
        assert (KL in step.logs) is not stopped
        stopped = stopped or step.logs[KL] > limit
    assert skips(recording) == expected
    assert moves(recording) == [not skipped for skipped in expected]
    assert expected[:4] == [False, False, False, nearness < 1]
    assert any(expected[:STEPS])
    assert not expected[STEPS] and not expected[2 * STEPS]
