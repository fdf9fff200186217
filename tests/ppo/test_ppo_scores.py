"""The score of a completion: ensembles of reward adapters, functions beside them, penalties."""

import math

import pytest
import torch
from transformers import set_seed

from tests.conftest import fresh_roles, lora, randomise
from tests.ppo.separate_models import lengths_of, make_ragged, scores_of
from tests.ppo.setup import make, prompts
from toolkit.models.heads import ScalarHead
from toolkit.models.roles import REWARD
from toolkit.ppo.roles import attach_ppo_roles
from toolkit.ppo.rollout import aggregate, penalties
from toolkit.reward.functions import weighted_sum

pytestmark = pytest.mark.slow

# with these the return at the first token is the completion's whole score
PLAIN = {"kl_coef": 0.0, "gamma": 1.0, "lam": 1.0, "missing_eos_penalty": None}


@pytest.mark.parametrize(
    ("how", "expected"),
    [("mean", [2.0, 2.0]), ("min", [1.0, 2.0]), ("mean_minus_std", [1.5, 2.0])],
)
def test_ensemble_scores_by_hand(how, expected):
    scores = torch.tensor([[1.0, 2.0], [3.0, 2.0]])  # two adapters, two completions
    assert aggregate(scores, how=how, std_coef=0.5).tolist() == expected


def test_weighted_sum_counts_none_as_zero():
    rewards = {"f": [2.0, 3.0], "g": [1.0, math.nan]}
    assert weighted_sum(rewards, [0.5, 10.0]) == [0.5 * 2 + 10, 0.5 * 3]


def test_penalties_by_hand():
    lengths, ended = torch.tensor([10, 20, 30]), torch.tensor([True, False, False])
    both = penalties(lengths, ended, missing_eos=1.0, per_token=0.01)
    torch.testing.assert_close(both, torch.tensor([0.1, 0.2 + 1.0, 0.3 + 1.0]))
    assert penalties(lengths, ended, missing_eos=None, per_token=0.0).tolist() == [0.0, 0.0, 0.0]


def rollout_of(trainer):
    """Experience of eight rows, and its metrics."""
    torch.manual_seed(0)
    experience = trainer.make_experience(list(trainer.train_dataset.select(range(8))))
    return experience, {name: values[0] for name, values in trainer.open_rollout.metrics.items()}


def test_functions_are_added_once_to_the_reward_models_score(ppo_roles, tokenizer, tmp_path):
    """The model scores ¾, one function 3, and one the number of tokens: ¾ + ½·3 + ¼·length."""
    make_ragged(ppo_roles)
    ppo_roles.heads[REWARD].weight.data.zero_()
    ppo_roles.heads[REWARD].bias.data.fill_(0.75)

    def three(completions, **_):
        return [3.0] * len(completions)

    def tokens(completion_ids, **_):
        return list(map(len, completion_ids))

    options = {"reward_funcs": [three, tokens], "reward_weights": [0.5, 0.25]}
    trainer = make(ppo_roles, tokenizer, prompts(), tmp_path, **options, **PLAIN)
    experience, metrics = rollout_of(trainer)
    lengths = lengths_of(experience)
    assert lengths.min() < lengths.max()
    expected = 0.75 + 0.5 * 3 + 0.25 * lengths
    torch.testing.assert_close(experience.returns[:, 0], expected, atol=1e-5, rtol=0)
    assert metrics["objective/scores"] == expected.mean()  # sums of eighths are exact
    assert metrics["objective/scores_std"] == pytest.approx(expected.std(unbiased=False).item())
    assert metrics["rewards/three/mean"] == 3.0
    assert metrics["rewards/tokens/mean"] == lengths.mean()


def test_training_logs_the_sum_of_model_and_function(ppo_roles, tokenizer, tmp_path):
    ppo_roles.heads[REWARD].weight.data.zero_()
    ppo_roles.heads[REWARD].bias.data.fill_(0.75)

    def three(completions, **_):
        return [3.0] * len(completions)

    options = {"reward_funcs": three, "reward_weights": [0.5], "num_ppo_epochs": 1}
    trainer = make(ppo_roles, tokenizer, prompts(), tmp_path, **options)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "objective/scores" in row]
    assert [row["objective/scores"] for row in rows] == [2.25, 2.25]


@pytest.fixture
def members(model_config, reward_run, tmp_path):
    """Runs of two unrelated reward models."""
    other = fresh_roles(model_config)
    other.create(REWARD, lora())
    randomise(other, REWARD, seed=21, scale=0.1)
    set_seed(22)
    other.heads[REWARD] = ScalarHead(64)
    other.save(REWARD, tmp_path / "other")
    return [str(reward_run), str(tmp_path / "other")]


def test_each_ensemble_member_scores_with_its_own_adapter(
    model_config, sft_run, members, tokenizer, tmp_path
):
    """Each is loaded alone on a base of its own; of two members a and b the deviation is |a − b| / 2."""
    roles = fresh_roles(model_config)
    attach_ppo_roles(roles, policy=str(sft_run), rewards=members, model=model_config)
    make_ragged(roles)
    alone = [fresh_roles(model_config) for _ in members]
    for single, run in zip(alone, members, strict=True):
        single.attach(REWARD, run, head=True)
    for how in ("mean", "min", "mean_minus_std"):
        options = {"reward_aggregation": how, "reward_std_coef": 1.5}
        batches = {"local_rollout_forward_batch_size": 3}
        trainer = make(roles, tokenizer, prompts(), tmp_path / how, **options, **batches, **PLAIN)
        experience, metrics = rollout_of(trainer)
        if how == "mean":
            both = [scores_of(single, REWARD, experience).tolist() for single in alone]
            pairs = list(zip(*both, strict=True))
            assert {a < b for a, b in pairs} == {True, False}
            assert min(abs(a - b) for a, b in pairs) > 1e-3
        expected = {
            "mean": [(a + b) / 2 for a, b in pairs],
            "min": [a if a < b else b for a, b in pairs],
            "mean_minus_std": [(a + b) / 2 - 1.5 * abs(a - b) / 2 for a, b in pairs],
        }[how]
        assert experience.returns[:, 0].tolist() == pytest.approx(expected, abs=1e-4)
        assert metrics["objective/scores"] == pytest.approx(sum(expected) / 8, abs=1e-5)
        deviation = sum(abs(a - b) / 2 for a, b in pairs) / 8
        assert metrics["objective/ensemble_std"] == pytest.approx(deviation, abs=1e-5)
