"""Learning rates of PPO's optimizer, and options of the library that PPO rejects."""

import copy

import pytest
from peft import LoraConfig
from transformers import BertConfig, BertLMHeadModel

from tests.conftest import trainable_names
from tests.ppo.setup import make, prompts
from toolkit.errors import ConfigError
from toolkit.models.roles import POLICY, VALUE, Roles, belongs_to
from toolkit.ppo.trainer import PPOTrainer

pytestmark = pytest.mark.slow


def weights_of(trainer, role):
    named = trainer.model.named_parameters()
    return {n: p.detach().clone() for n, p in named if p.requires_grad and belongs_to(n, role)}


def largest_change(before, after):
    return max(float((after[name] - weight).abs().max()) for name, weight in before.items())


def test_value_has_its_own_learning_rate(make_ppo_roles, tokenizer, tmp_path):
    changes = {}
    for rate in (None, 1e-4, 0.0):
        roles = make_ppo_roles()
        trainer = make(
            roles,
            tokenizer,
            prompts(),
            tmp_path / str(rate),
            total_episodes=8,
            max_grad_norm=0.0,  # no clipping, which would couple the roles
            value_learning_rate=rate,
            lr_scheduler_type="constant",
        )
        before = {role: weights_of(trainer, role) for role in (POLICY, VALUE)}
        trainer.train()
        changes[rate] = {
            role: largest_change(w, weights_of(trainer, role)) for role, w in before.items()
        }
    assert changes[None][POLICY] == changes[1e-4][POLICY] == changes[0.0][POLICY]
    assert changes[0.0][VALUE] == 0
    assert changes[1e-4][VALUE] == pytest.approx(changes[None][VALUE] / 100, rel=0.5)


def test_schedule_scales_both_learning_rates(make_ppo_roles, tokenizer, tmp_path):
    trainer = make(
        make_ppo_roles(), tokenizer, prompts(), tmp_path, value_learning_rate=1e-3, warmup_steps=0
    )
    trainer.create_optimizer_and_scheduler(8)
    trainer.optimizer.step()
    for _ in range(4):
        trainer.lr_scheduler.step()
    rates = {group["lr"] for group in trainer.optimizer.param_groups}
    assert sorted(rates) == pytest.approx([0.5e-3, 0.5e-2])  # linear, half way
    of_value = {n for n, p in trainer.model.named_parameters() if belongs_to(n, VALUE)}
    names = {id(p): n for n, p in trainer.model.named_parameters()}
    for group in trainer.optimizer.param_groups:
        slow = {names[id(p)] in of_value for p in group["params"]}
        assert slow <= {group["lr"] < 1e-3}


def test_trainer_does_not_change_its_config(make_ppo_roles, tokenizer, tmp_path):
    trainer = make(make_ppo_roles(), tokenizer, prompts(), tmp_path)
    config = copy.copy(trainer.args)
    config.max_steps = -1
    lengths = []
    for episodes in (16, 32):
        config.total_episodes = episodes
        second = PPOTrainer(
            make_ppo_roles(), config, processing_class=tokenizer, train_dataset=prompts()
        )
        lengths.append((second.args.max_steps, config.max_steps))
    assert lengths == [(8, -1), (16, -1)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optim": "schedule_free_adamw"}, "`optim` schedule_free_adamw is not supported"),
        ({"auto_find_batch_size": True}, "`auto_find_batch_size` True is not supported"),
        ({"torch_compile": True}, "`torch_compile` True is not supported"),
        (
            {"torch_empty_cache_steps": 3},
            "`torch_empty_cache_steps` 3 is not supported, because the trainer frees",
        ),
    ],
)
def test_options_that_ppo_ignores_are_rejected(ppo_roles, tokenizer, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        make(ppo_roles, tokenizer, prompts(), tmp_path, **options)


def test_layer_named_value_is_not_the_value_role(tmp_path):
    """BERT's layers are named query, key and value; the frozen reference must stay frozen."""
    config = BertConfig(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        is_decoder=True,
    )
    roles = Roles(BertLMHeadModel(config).requires_grad_(False), {})
    lora = {"r": 2, "target_modules": ["query", "value"], "task_type": "CAUSAL_LM"}
    for name in ("default", "ref", "value"):
        roles.create(name, LoraConfig(**lora))
        if name == "ref":
            for parameter in roles.parameters(name):
                parameter.requires_grad_(False)
    trained = trainable_names(roles)
    assert trained
    assert not [name for name in trained if belongs_to(name, "ref")]
    both = [n for n in trained if belongs_to(n, "value") and belongs_to(n, "default")]
    assert both == []
    assert sum(p.numel() for p in roles.parameters("value")) == 2 * 2 * (16 + 16)
    assert belongs_to("heads.value.weight", "value")
    assert not belongs_to("encoder.value.lora_A.ref.weight", "value")
