"""PPOTrainer on a tiny random base: what learns, what must not move, and what an episode is worth."""

import json

import pytest
import torch

from tests.conftest import fresh_roles, lora, randomise
from tests.ppo.setup import make, prompts
from toolkit.errors import ConfigError, RewardError
from toolkit.models.passes import completion_logprobs
from toolkit.models.roles import POLICY, REFERENCE, REWARD, VALUE
from toolkit.ppo.config import PPOConfig
from toolkit.ppo.prompts import RolloutSampler


@pytest.fixture
def dataset():
    return prompts()


def snapshot(roles):
    return {n: p.detach().clone() for n, p in roles.model.named_parameters()}


def changed(roles, before):
    now = roles.model.named_parameters()
    return {n for n, p in now if not torch.equal(p, before[n])}


def test_only_policy_and_value_move(ppo_roles, tokenizer, dataset, tmp_path):
    before = snapshot(ppo_roles)
    trainer = make(ppo_roles, tokenizer, dataset, tmp_path / "run")
    trainer.train()
    assert (
        trainer.state.global_step == 2 * 2 * 2
    )  # 16 episodes: 2 rollouts × 2 epochs × 2 minibatches
    moved = changed(ppo_roles, before)
    assert any(f".{POLICY}." in n for n in moved)
    assert any(f".{VALUE}." in n for n in moved)
    assert any(n.startswith("heads.value") for n in moved)
    fixed = (f".{REFERENCE}.", f".{REWARD}.", "heads.reward")
    assert not [n for n in moved if any(part in n for part in fixed)]
    assert all(".lora_" in n or n.startswith("heads.") for n in moved)  # the base, to the bit


def test_first_step_has_ratio_one_and_no_kl(ppo_roles, tokenizer, dataset, tmp_path):
    trainer = make(ppo_roles, tokenizer, dataset, tmp_path / "run")
    trainer.train()
    rows = [json.loads(r) for r in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["val/ratio"] == pytest.approx(1.0, abs=1e-4)
    assert rows[0]["policy/approxkl_avg"] == pytest.approx(0.0, abs=1e-8)
    assert rows[0]["objective/kl"] == pytest.approx(0.0, abs=1e-5)
    assert rows[-2]["val/ratio"] != 1.0
    penalty = 1.0 - rows[0]["objective/ended"]  # missing_eos_penalty is 1
    expected = rows[0]["objective/scores"] - penalty
    assert rows[0]["objective/rlhf_reward"] == pytest.approx(expected, abs=1e-4)
    assert {"loss/policy_avg", "loss/value_avg", "episode", "val/clipfrac_avg"} <= set(rows[0])


def test_accumulation_changes_no_gradient(tokenizer, dataset, tmp_path, make_ppo_roles):
    """One minibatch of 8 and the same in 4 micro-batches end in the same weights."""
    ended = []
    for size, pieces in ((8, 1), (2, 4)):
        roles = make_ppo_roles()
        trainer = make(
            roles,
            tokenizer,
            dataset,
            tmp_path / str(pieces),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=pieces,
            num_mini_batches=1,
            num_ppo_epochs=1,
            total_episodes=8,
            max_grad_norm=0.0,
            optim="sgd",
            learning_rate=1.0,
        )
        trainer.train()
        ended.append(snapshot(roles))
    assert set(ended[0]) == set(ended[1])
    for name in ended[0]:
        assert torch.allclose(ended[0][name], ended[1][name], atol=2e-5), name


def test_scoring_twice_is_identical_though_the_adapters_have_dropout(
    model_config, tokenizer, dataset, tmp_path, reward_run
):
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
    trainer.maker.rescore = True
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        roles.model.train()
        found.append(trainer.make_experience(list(trainer.train_dataset.select(range(4)))))
    assert found[0].completions == found[1].completions
    assert torch.equal(found[0].logprobs, found[1].logprobs)
    assert torch.equal(found[0].logprobs, found[0].ref_logprobs)
    batch, old = found[0].rows([0, 1], tokenizer.pad_token_id)
    roles.model.train()  # as in an update
    with roles.using(POLICY) as model:
        again, _ = completion_logprobs(model, batch, temperature=1.0)
    assert torch.allclose(again, old["logprobs"], atol=1e-5)


def test_a_prompt_without_room_for_an_answer_is_refused(ppo_roles, tokenizer, dataset, tmp_path):
    longest = make(ppo_roles, tokenizer, dataset, tmp_path / "run", max_prompt_length=12)
    assert 0 < len(longest.train_dataset) < len(dataset)
    assert max(map(len, longest.train_dataset["prompt_ids"])) <= 12
    ppo_roles.base.config.max_position_embeddings = 20
    with pytest.raises(ConfigError, match=r"of 16 prompts leave no room for `response_length` 8"):
        make(ppo_roles, tokenizer, dataset, tmp_path / "run")


def test_more_than_one_process_is_refused(ppo_roles, tokenizer, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(PPOConfig, "world_size", property(lambda self: 2))
    with pytest.raises(ConfigError, match="one process"):
        make(ppo_roles, tokenizer, dataset, tmp_path / "run")


def test_experience_is_what_the_definitions_say(ppo_roles, tokenizer, dataset, tmp_path):
    trainer = make(ppo_roles, tokenizer, dataset, tmp_path / "run", gamma=1.0, lam=1.0)
    torch.manual_seed(0)
    found = trainer.make_experience(list(trainer.train_dataset.select(range(8))))
    for row, completion in enumerate(found.completions):
        assert found.mask[row].sum() == len(completion)
        real = found.mask[row]
        # with λ = γ = 1 the return at the first token is the whole reward: score − penalty − β·kl
        kl = (found.logprobs - found.ref_logprobs)[row][real].sum()
        score = score_of(ppo_roles, tokenizer, found, row)
        ended = completion[-1] == tokenizer.eos_token_id
        expected = score - (0.0 if ended else 1.0) - 0.05 * kl.item()
        assert found.returns[row, 0].item() == pytest.approx(expected, abs=1e-4)
    mask = found.mask
    assert found.advantages[mask].mean().item() == pytest.approx(0.0, abs=1e-5)
    assert found.advantages[mask].std().item() == pytest.approx(1.0, abs=1e-4)
    assert found.advantages[~mask].abs().sum() == 0


def score_of(roles, tokenizer, experience, row):
    """The reward model on one unpadded sequence, by hand."""
    ids = torch.tensor([experience.prompts[row] + experience.completions[row]])
    with torch.no_grad(), roles.using(REWARD) as model:
        hidden = model.get_base_model().model(input_ids=ids).last_hidden_state[0, -1]
    head = roles.heads[REWARD]
    return (head.weight[0] @ hidden + head.bias[0]).item()


def test_an_update_makes_better_tokens_likelier(ppo_roles, tokenizer, dataset, tmp_path):
    """Σ advantage · Δ log π over the rollout that was learnt from is what PPO climbs."""
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
    learnt = trainer.experience
    batch, old = learnt.rows(list(range(16)), tokenizer.pad_token_id)
    with ppo_roles.using(POLICY) as model, torch.no_grad():
        now, _ = completion_logprobs(model, batch, temperature=1.0)
    climbed = (old["advantages"] * (now - old["logprobs"]))[batch.mask].mean().item()
    assert climbed > 0.01


def test_a_score_that_is_not_finite_stops_with_the_sample(ppo_roles, tokenizer, dataset, tmp_path):
    trainer = make(ppo_roles, tokenizer, dataset, tmp_path / "run")
    with torch.no_grad():
        ppo_roles.heads[REWARD].bias.fill_(float("nan"))
    with pytest.raises(RewardError, match="is not finite: nan for the first, "):
        trainer.train()


def test_resumed_training_ends_where_an_uninterrupted_one_does(
    make_ppo_roles, tokenizer, dataset, tmp_path
):
    """Also in the middle of a rollout: step 3 of 4 minibatches."""
    options = {"save_strategy": "steps", "save_steps": 3, "total_episodes": 24}
    whole = make_ppo_roles()
    make(whole, tokenizer, dataset, tmp_path / "whole", **options).train()
    checkpoint = tmp_path / "whole" / "checkpoint-3"
    again = make_ppo_roles()
    make(again, tokenizer, dataset, tmp_path / "again", **options).train(
        resume_from_checkpoint=str(checkpoint)
    )
    expected = snapshot(whole)
    assert not changed(again, expected)


def test_missing_roles_and_empty_data_are_refused(
    model_config, ppo_roles, tokenizer, dataset, tmp_path
):
    with pytest.raises(ConfigError, match="'default'"):
        make(fresh_roles(model_config), tokenizer, dataset, tmp_path / "run")
    with pytest.raises(ConfigError, match="empty"):
        make(ppo_roles, tokenizer, dataset.select([]), tmp_path / "run")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"kl_estimator": "k2"}, "k1 or k3"),
        ({"gamma": 1.5}, "gamma"),
        ({"value_role": "trunk"}, "adapter or zero or head"),
    ],
)
def test_bad_settings_name_the_option(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        PPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **wrong)


def test_adams_epsilon_reaches_the_optimizer(ppo_roles, tokenizer, dataset, tmp_path):
    trainer = make(ppo_roles, tokenizer, dataset, tmp_path / "run")
    trainer.create_optimizer()
    assert {group["eps"] for group in trainer.optimizer.param_groups} == {1e-5}


def test_sampler_repeats_rollouts_and_covers_all_prompts():
    drawn = list(RolloutSampler(6, rollouts=3, batch=4, repeat=2, seed=0))
    assert len(drawn) == 24
    rollouts = [drawn[i * 8 : i * 8 + 4] for i in range(3)]
    assert drawn[:4] == drawn[4:8]
    flat = [row for rollout in rollouts for row in rollout]
    assert sorted(flat[:6]) == list(range(6))
    assert sorted(flat[6:]) == list(range(6))
    assert drawn != list(RolloutSampler(6, rollouts=3, batch=4, repeat=2, seed=1))
