"""Where a completion's score comes from: reward adapters, functions beside them, ensembles of adapters."""

import pytest
import torch
from transformers import set_seed

from tests.conftest import fresh_roles, lora, randomise
from tests.ppo.separate_models import lengths_of, make_ragged, scores_of
from tests.ppo.setup import make, prompts
from toolkit.models.heads import ScalarHead
from toolkit.models.roles import REWARD
from toolkit.ppo.roles import attach_ppo_roles

# with these a return at the first token is the completion's whole score
PLAIN = {"kl_coef": 0.0, "gamma": 1.0, "lam": 1.0, "missing_eos_penalty": None}


def rollout_of(trainer):
    """Experience of eight rows, and its notes."""
    torch.manual_seed(0)
    return trainer.maker.make(list(trainer.train_dataset.select(range(8))))


def test_functions_are_added_once_to_the_reward_models_score(ppo_roles, tokenizer, tmp_path):
    """A model that says ¾, one function that says 3, and one that counts tokens: ¾ + ½·3 + ¼·length."""
    make_ragged(ppo_roles)
    ppo_roles.heads[REWARD].weight.data.zero_()
    ppo_roles.heads[REWARD].bias.data.fill_(0.75)

    def three(completions, **_):
        return [3.0] * len(completions)

    def tokens(completion_ids, **_):
        return list(map(len, completion_ids))

    options = {"reward_funcs": [three, tokens], "reward_weights": [0.5, 0.25]}
    trainer = make(ppo_roles, tokenizer, prompts(), tmp_path, **options, **PLAIN)
    found, notes = rollout_of(trainer)
    lengths = lengths_of(found)
    assert lengths.min() < lengths.max()
    expected = 0.75 + 0.5 * 3 + 0.25 * lengths
    torch.testing.assert_close(found.returns[:, 0], expected, atol=1e-5, rtol=0)
    assert notes["objective/scores"] == expected.mean()  # sums of eighths are exact
    assert notes["objective/scores_std"] == pytest.approx(expected.std(unbiased=False).item())
    assert notes["rewards/three/mean"] == 3.0
    assert notes["rewards/tokens/mean"] == lengths.mean()


def test_a_trainings_log_has_the_sum(ppo_roles, tokenizer, tmp_path):
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
    """Runs of two reward models that have nothing in common."""
    other = fresh_roles(model_config)
    other.create(REWARD, lora())
    randomise(other, REWARD, seed=21, scale=0.1)
    set_seed(22)
    other.heads[REWARD] = ScalarHead(64)
    other.save(REWARD, tmp_path / "other")
    return [str(reward_run), str(tmp_path / "other")]


def alone(model_config, run, found):
    """Scores of a reward model that is on a base of its own, `(B,)`."""
    roles = fresh_roles(model_config)
    roles.attach(REWARD, run, head=True)
    return scores_of(roles, REWARD, found)


@pytest.mark.parametrize("how", ["mean", "min", "mean_minus_std"])
def test_each_member_of_an_ensemble_scores_with_its_own_adapter(
    model_config, sft_run, members, tokenizer, tmp_path, how
):
    """Of two members a and b the standard deviation is |a − b| / 2."""
    roles = fresh_roles(model_config)
    attach_ppo_roles(roles, policy=str(sft_run), rewards=members, model=model_config)
    make_ragged(roles)
    options = {"reward_aggregation": how, "reward_std_coef": 1.5}
    batches = {"local_rollout_forward_batch_size": 3}
    trainer = make(roles, tokenizer, prompts(), tmp_path / "run", **options, **batches, **PLAIN)
    found, notes = rollout_of(trainer)
    pairs = list(zip(*(alone(model_config, run, found).tolist() for run in members), strict=True))
    assert {a < b for a, b in pairs} == {True, False}
    assert min(abs(a - b) for a, b in pairs) > 1e-3
    expected = {
        "mean": [(a + b) / 2 for a, b in pairs],
        "min": [a if a < b else b for a, b in pairs],
        "mean_minus_std": [(a + b) / 2 - 1.5 * abs(a - b) / 2 for a, b in pairs],
    }[how]
    assert found.returns[:, 0].tolist() == pytest.approx(expected, abs=1e-4)
    assert notes["objective/scores"] == pytest.approx(sum(expected) / 8, abs=1e-5)
    spread = sum(abs(a - b) / 2 for a, b in pairs) / 8
    assert notes["objective/ensemble_std"] == pytest.approx(spread, abs=1e-5)
