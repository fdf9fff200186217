"""PPOTrainer on a tiny random base: which weights change, and the experience by definition."""

import json

import pytest
import torch

from tests.conftest import fresh_roles, lora, randomise
from tests.ppo.setup import make, prompts
from toolkit.errors import ConfigError
from toolkit.models.passes import completion_logprobs
from toolkit.models.roles import POLICY, REFERENCE, REWARD, VALUE
from toolkit.ppo.config import PPOConfig
from toolkit.ppo.prompts import PromptSampler

pytestmark = pytest.mark.slow


@pytest.fixture
def dataset():
    return prompts()


def snapshot(roles):
    return {n: p.detach().clone() for n, p in roles.model.named_parameters()}


def changed(roles, before):
    now = roles.model.named_parameters()
    return {n for n, p in now if not torch.equal(p, before[n])}


def test_ppo_changes_only_policy_and_value(ppo_roles, tokenizer, dataset, tmp_path, capsys):
    before = snapshot(ppo_roles)
    trainer = make(ppo_roles, tokenizer, dataset, tmp_path / "run")
    trainer.train()
    # 16 episodes: 2 rollouts × 2 epochs × 2 minibatches
    assert trainer.state.global_step == 2 * 2 * 2
    changed_names = changed(ppo_roles, before)
    assert any(f".{POLICY}." in n for n in changed_names)
    assert any(f".{VALUE}." in n for n in changed_names)
    assert any(n.startswith("heads.value") for n in changed_names)
    fixed = (f".{REFERENCE}.", f".{REWARD}.", "heads.reward")
    assert not [n for n in changed_names if any(part in n for part in fixed)]
    # the base is bit-identical
    assert all(".lora_" in n or n.startswith("heads.") for n in changed_names)
    rows = [json.loads(r) for r in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["val/ratio"] == pytest.approx(1.0, abs=1e-4)
    assert rows[0]["policy/approxkl_avg"] == pytest.approx(0.0, abs=1e-8)
    assert rows[0]["objective/kl"] == pytest.approx(0.0, abs=1e-5)
    assert rows[-2]["val/ratio"] != 1.0
    penalty = 1.0 - rows[0]["objective/ended"]  # missing_eos_penalty is 1
    expected = rows[0]["objective/scores"] - penalty
    assert rows[0]["objective/rlhf_reward"] == pytest.approx(expected, abs=1e-4)
    assert {"loss/policy_avg", "loss/value_avg", "episode", "val/clipfrac_avg"} <= set(rows[0])
    sizes = "PPO: 2 rollouts of 8 episodes; 2 minibatches of 4 (4 at a time), 2 epochs: 8 optimizer"
    assert sizes in capsys.readouterr().out


def test_scoring_ignores_adapter_dropout(model_config, tokenizer, dataset, tmp_path, reward_run):
    start = fresh_roles(model_config)
    start.create(POLICY, lora(lora_dropout=0.5))
    randomise(start, POLICY, seed=1)
    start.save(POLICY, tmp_path / "sft")
    roles = fresh_roles(model_config)
    roles.attach(POLICY, tmp_path / "sft", trainable=True)
    roles.attach(REFERENCE, tmp_path / "sft")
    roles.attach(REWARD, reward_run, head=True)
    roles.attach(VALUE, reward_run, head=True, trainable=True)
    assert any(m.p == 0.5 for m in roles.model.modules() if isinstance(m, torch.nn.Dropout))
    trainer = make(roles, tokenizer, dataset, tmp_path / "run")
    trainer.rollouts.rescore = True
    experiences = []
    for _ in range(2):
        torch.manual_seed(0)
        roles.model.train()
        experiences.append(trainer.make_experience(list(trainer.train_dataset.select(range(4)))))
    assert experiences[0].completions == experiences[1].completions
    assert torch.equal(experiences[0].logprobs, experiences[1].logprobs)
    assert torch.equal(experiences[0].logprobs, experiences[0].ref_logprobs)
    batch, old = experiences[0].rows([0, 1], tokenizer.pad_token_id)
    roles.model.train()  # as in an update
    with roles.using(POLICY) as model:
        again, _ = completion_logprobs(model, batch, temperature=1.0)
    assert torch.allclose(again, old["logprobs"], atol=1e-5)


def test_prompt_without_room_for_completion_is_rejected(ppo_roles, tokenizer, dataset, tmp_path):
    longest = make(ppo_roles, tokenizer, dataset, tmp_path / "run", max_prompt_length=12)
    assert 0 < len(longest.train_dataset) < len(dataset)
    assert max(map(len, longest.train_dataset["prompt_ids"])) <= 12
    ppo_roles.base.config.max_position_embeddings = 20
    with pytest.raises(ConfigError, match=r"of 16 prompts leave no room for `response_length` 8"):
        make(ppo_roles, tokenizer, dataset, tmp_path / "run")


def test_several_processes_are_rejected(ppo_roles, tokenizer, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(PPOConfig, "world_size", property(lambda self: 2))
    with pytest.raises(ConfigError, match="one process"):
        make(ppo_roles, tokenizer, dataset, tmp_path / "run")


def test_experience_equals_its_definition(ppo_roles, tokenizer, dataset, tmp_path):
    trainer = make(ppo_roles, tokenizer, dataset, tmp_path / "run", gamma=1.0, lam=1.0)
    torch.manual_seed(0)
    experience = trainer.make_experience(list(trainer.train_dataset.select(range(8))))
    for row, completion in enumerate(experience.completions):
        assert experience.mask[row].sum() == len(completion)
        real = experience.mask[row]
        # with λ = γ = 1 the return at the first token is the whole reward: score − penalty − β·kl
        kl = (experience.logprobs - experience.ref_logprobs)[row][real].sum()
        score = score_of(ppo_roles, tokenizer, experience, row)
        ended = completion[-1] == tokenizer.eos_token_id
        expected = score - (0.0 if ended else 1.0) - 0.05 * kl.item()
        assert experience.returns[row, 0].item() == pytest.approx(expected, abs=1e-4)
    mask = experience.mask
    assert experience.advantages[mask].mean().item() == pytest.approx(0.0, abs=1e-5)
    assert experience.advantages[mask].std().item() == pytest.approx(1.0, abs=1e-4)
    assert experience.advantages[~mask].abs().sum() == 0


def score_of(roles, tokenizer, experience, row):
    """The reward model's score of one unpadded sequence."""
    ids = torch.tensor([experience.prompts[row] + experience.completions[row]])
    with torch.no_grad(), roles.using(REWARD) as model:
        hidden = model.get_base_model().model(input_ids=ids).last_hidden_state[0, -1]
    head = roles.heads[REWARD]
    return (head.weight[0] @ hidden + head.bias[0]).item()


def test_update_raises_probability_of_better_tokens(ppo_roles, tokenizer, dataset, tmp_path):
    """PPO maximises Σ advantage · Δ log π over its rollout."""
    trainer = make(
        ppo_roles,
        tokenizer,
        dataset,
        tmp_path / "run",
        per_device_train_batch_size=16,
        num_mini_batches=1,
        num_ppo_epochs=2,
        lr_scheduler_type="constant",
    )
    trainer.train()
    experience = trainer.experience
    batch, old = experience.rows(list(range(16)), tokenizer.pad_token_id)
    with ppo_roles.using(POLICY) as model, torch.no_grad():
        now, _ = completion_logprobs(model, batch, temperature=1.0)
    gain = (old["advantages"] * (now - old["logprobs"]))[batch.mask].mean().item()
    assert gain > 0.01


def test_missing_roles_and_empty_data_are_rejected(
    model_config, ppo_roles, tokenizer, dataset, tmp_path
):
    with pytest.raises(ConfigError, match="'default'"):
        make(fresh_roles(model_config), tokenizer, dataset, tmp_path / "run")
    with pytest.raises(ConfigError, match="empty"):
        make(ppo_roles, tokenizer, dataset.select([]), tmp_path / "run")


def test_adam_epsilon_reaches_the_optimizer(ppo_roles, tokenizer, dataset, tmp_path):
    trainer = make(ppo_roles, tokenizer, dataset, tmp_path / "run")
    trainer.create_optimizer()
    assert {group["eps"] for group in trainer.optimizer.param_groups} == {1e-5}


def test_sampler_repeats_rollouts_and_draws_all_prompts():
    drawn = list(PromptSampler(6, rollouts=3, batch=4, repeat=2, seed=0))
    assert len(drawn) == 24
    rollouts = [drawn[i * 8 : i * 8 + 4] for i in range(3)]
    assert drawn[:4] == drawn[4:8]
    flat = [row for rollout in rollouts for row in rollout]
    assert sorted(flat[:6]) == list(range(6))
    assert sorted(flat[6:]) == list(range(6))
    assert drawn != list(PromptSampler(6, rollouts=3, batch=4, repeat=2, seed=1))
