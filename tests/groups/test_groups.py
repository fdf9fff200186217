"""RLOO and GRPO: one base, the policy's log-probabilities, rewards, advantages and fresh groups."""

import asyncio
import json
import math
from types import SimpleNamespace

import pytest
import torch
from trl import ModelConfig

from tests.conftest import fresh_roles, trainable_names
from tests.groups.setup import KINDS, make_group, roles_with
from tests.ppo.record import STOPS
from tests.ppo.setup import prompts
from toolkit.errors import ConfigError, RewardError
from toolkit.models.roles import POLICY, REFERENCE, REWARD
from toolkit.ppo.roles import attach_ppo_roles
from toolkit.ppo.warnings import WatchCallback

BOTH = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def roles(model_config, adapter_runs):
    """Answers of the tiny base end early, so that their lengths differ."""
    roles = roles_with(model_config, adapter_runs)
    roles.base.generation_config.eos_token_id = STOPS
    return roles


def is_adapter(name):
    return "lora_" in name or "heads." in name


def rows_of(trainer, numbers):
    """Dataset rows as TRL's sampler repeats them."""
    return [trainer.train_dataset[i] for i in numbers for _ in range(trainer.num_generations)]


@pytest.mark.slow
@BOTH
def test_policy_reference_and_rewards_share_one_unchanged_base(
    kind, model_config, adapter_runs, pristine, tokenizer, tmp_path
):
    roles = roles_with(model_config, adapter_runs, rewards=2)
    trainer = make_group(kind, roles, tokenizer, prompts(), tmp_path)
    kept = {n: p.detach().clone() for n, p in roles.model.named_parameters()}
    stored = {p.data_ptr(): p.numel() for n, p in kept.items() if not is_adapter(n)}
    named = {
        p.data_ptr(): p.numel() for n, p in roles.model.named_parameters() if not is_adapter(n)
    }
    assert sum(named.values()) == sum(p.numel() for p in pristine.parameters())
    assert len(stored) == len(named) and trainer.ref_model is None
    assert not any(isinstance(f, torch.nn.Module) for f in trainer.reward_funcs)
    names = trainable_names(roles)
    assert names and all(f".{POLICY}." in name for name in names)
    assert roles.rewards == [f"{REWARD}_0", f"{REWARD}_1"]
    for name, parameter in kept.items():  # the reference starts as the policy, not as the base
        if f".{POLICY}." in name:
            assert torch.equal(parameter, kept[name.replace(POLICY, REFERENCE)])
    trainer.train()
    assert trainable_names(roles) == names
    after = dict(roles.model.named_parameters())
    moved = {name for name, parameter in kept.items() if not torch.equal(parameter, after[name])}
    assert moved and moved <= set(names)


@pytest.mark.slow
@BOTH
def test_logprobs_and_entropies_equal_those_of_trl(kind, roles, tokenizer, tmp_path):
    """TRL computes padded rows, we do not; a completion may be masked as a whole."""
    trainer = make_group(kind, roles, tokenizer, prompts(), tmp_path, temperature=0.7)
    inputs = trainer._generate_and_score_completions(rows_of(trainer, (0, 1)))
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    mask[3, -inputs["completion_ids"].shape[1] :] = 0
    real = mask[:, -inputs["completion_ids"].shape[1] :]
    assert 0 < real.sum() < real.numel()
    arguments = (roles.model, ids, mask, real.shape[1])
    ours = trainer._get_per_token_logps_and_entropies(*arguments, 3, compute_entropy=True)
    library = next(c for c in type(trainer).__mro__ if c.__module__.startswith("trl.trainer."))
    theirs = library._get_per_token_logps_and_entropies(
        trainer, *arguments, 3, compute_entropy=True
    )
    for own, other in zip(ours[:2], theirs[:2], strict=True):
        torch.testing.assert_close(own * real, other * real, atol=1e-5, rtol=1e-4)


def three(completions, **_):
    return [3.0] * len(completions)


async def tokens(completion_ids, log_metric, **_):
    await asyncio.sleep(0)
    log_metric("longest", max(map(len, completion_ids)))
    return list(map(len, completion_ids))


@BOTH
def test_advantages_compare_weighted_rewards_within_a_group(kind, roles, tokenizer, tmp_path):
    """The model scores ¾, a function 3, one the number of tokens; the policy is still the reference."""
    roles.heads[REWARD].weight.data.zero_()
    roles.heads[REWARD].bias.data.fill_(0.75)
    options = {"reward_weights": [0.5, 0.25], "missing_eos_penalty": 2.0, "length_penalty": 0.125}
    trainer = make_group(
        kind, roles, tokenizer, prompts(), tmp_path, reward_funcs=[three, tokens], **options
    )
    output = trainer._generate_and_score_completions(rows_of(trainer, (0, 1)))
    lengths = output["completion_mask"].sum(1)
    last = output["completion_ids"][range(8), lengths - 1].tolist()
    missing = torch.tensor([float(token not in trainer.rollouts.stop) for token in last])
    assert lengths.min() < lengths.max() and 0 < missing.mean() < 1
    raw = 0.75 + 0.5 * 3 + 0.25 * lengths
    left = raw - 0.125 * lengths - 2.0 * missing
    groups = left.view(2, 4)
    if kind == "grpo":
        expected = (groups - groups.mean(1, True)) / (groups.std(1, keepdim=True) + 1e-4)
    else:
        expected = groups - (groups.sum(1, True) - groups) / 3
    torch.testing.assert_close(output["advantages"], expected.flatten(), atol=1e-4, rtol=1e-4)
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    assert metrics["objective/scores"] == pytest.approx(raw.mean().item())
    assert metrics["objective/penalised_scores"] == pytest.approx(left.mean().item())
    assert metrics["reward"] == pytest.approx(left.mean().item())
    assert metrics["rewards/tokens/mean"] == lengths.float().mean()
    assert metrics["rewards/reward_model/mean"] == 0.75
    assert metrics["rewards/penalties/mean"] == pytest.approx((left - raw).mean().item())
    assert metrics["longest"] == lengths.max()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@BOTH
def test_reward_that_is_not_finite_is_shown_with_its_sample(kind, bad, roles, tokenizer, tmp_path):
    def spoils(prompts, completions, **_):
        prompts[0][0]["content"] = "changed"  # which reaches nobody else
        return [bad if row == 5 else 0.0 for row in range(len(completions))]

    trainer = make_group(kind, roles, tokenizer, prompts(), tmp_path, reward_funcs=spoils)
    with pytest.raises(
        RewardError, match=f"spoils: expected a finite number, got {bad} for prompt"
    ):
        trainer.train()
    assert "changed" not in str(trainer.train_dataset[:]["prompt"])


def test_reward_model_that_is_not_finite_is_shown(roles, tokenizer, tmp_path):
    roles.heads[REWARD].bias.data.fill_(math.inf)
    trainer = make_group("grpo", roles, tokenizer, prompts(), tmp_path)
    with pytest.raises(RewardError, match="the reward of 8 of 8 completions is not finite"):
        trainer.train()


def of_prompt(prompts, completion_ids, **_):
    """Differs within a group only for prompts with a question mark."""
    return [
        ids[0] + len(ids) / 100 if "?" in prompt[0]["content"] else 1.0
        for prompt, ids in zip(prompts, completion_ids, strict=True)
    ]


def test_groups_with_equal_rewards_are_counted_and_replaced(
    model_config, adapter_runs, tokenizer, tmp_path
):
    roles = roles_with(model_config, adapter_runs, rewards=0)
    options = {"reward_funcs": of_prompt, "max_completion_length": 4}
    trainer = make_group("grpo", roles, tokenizer, prompts(), tmp_path / "kept", **options)
    drawn = trainer.draw(rows_of(trainer, (0, 1)))  # a question, and a greeting
    assert trainer._metrics["train"]["groups/uniform"] == [0.5]
    assert drawn.rows[4]["prompt"][0]["content"] == "Hello."

    torch.manual_seed(0)
    roles = roles_with(model_config, adapter_runs, rewards=0)
    options |= {"resample_uniform_groups": 20}
    trainer = make_group("grpo", roles, tokenizer, prompts(), tmp_path / "fresh", **options)
    drawn = trainer.draw(rows_of(trainer, (0, 1)))
    metrics = trainer._metrics["train"]
    assert (metrics["groups/uniform"], metrics["groups/uniform_left"]) == ([0.5], [0.0])
    assert metrics["groups/replaced"][0] >= 1
    texts = [row["prompt"][0]["content"] for row in drawn.rows]
    assert set(texts[:4]) == {"What is 1 plus 2?"}
    assert set(texts[4:]) == {"What colour is the Bramor bird?"}  # another prompt
    rewards = of_prompt([row["prompt"] for row in drawn.rows], drawn.completions)
    assert drawn.scores.raw.tolist() == pytest.approx(rewards)
    output = trainer._generate_and_score_completions(rows_of(trainer, (1, 3)))
    assert (output["advantages"].view(2, 4).abs().amax(1) > 0).all()


def test_replacing_groups_ends_after_the_given_number(
    model_config, adapter_runs, tokenizer, tmp_path
):
    calls = []

    def same(completions, **_):
        calls.append(len(completions))
        return [1.0] * len(completions)

    roles = roles_with(model_config, adapter_runs, rewards=0)
    options = {"reward_funcs": same, "resample_uniform_groups": 2}
    trainer = make_group("rloo", roles, tokenizer, prompts(), tmp_path, **options)
    trainer.draw(rows_of(trainer, (0, 1)))
    assert calls == [8, 8, 8]
    metrics = trainer._metrics["train"]
    assert (metrics["groups/replaced"], metrics["groups/uniform_left"]) == ([4.0], [1.0])

    roles = roles_with(model_config, adapter_runs, rewards=0)
    few = prompts().select([0, 1])  # there is no other prompt
    trainer = make_group("rloo", roles, tokenizer, few, tmp_path, **options)
    trainer.draw(rows_of(trainer, (0, 1)))
    assert calls == [8, 8, 8, 8]
    assert trainer._metrics["train"]["groups/replaced"] == [0.0]


@pytest.mark.slow
@BOTH
def test_evaluation_changes_no_training_and_logs_held_out_means(
    kind, model_config, adapter_runs, tokenizer, tmp_path
):
    weights = []
    for name, strategy in (("without", "no"), ("with", "steps")):
        roles = roles_with(model_config, adapter_runs)
        options = {"eval_strategy": strategy, "eval_steps": 1, "held_out": prompts().select([0, 1])}
        options |= {"eval_metrics": lambda prompts, **_: {"gold/mean": float(len(prompts))}}
        trainer = make_group(kind, roles, tokenizer, prompts(), tmp_path / name, **options)
        trainer.train()
        weights.append(torch.cat([p.flatten() for p in roles.parameters(POLICY)]))
    assert torch.equal(*weights)
    rows = [json.loads(row) for row in (tmp_path / "with/metrics.jsonl").read_text().splitlines()]
    held_out = [row for row in rows if "eval_objective/scores" in row]
    assert [row["step"] for row in held_out] == [0, 1, 2]
    assert all(row["eval_gold/mean"] == 2 and "reward" not in row for row in held_out)
    assert held_out[0]["eval_objective/kl"] == pytest.approx(0, abs=1e-4)
    assert held_out[2]["eval_objective/kl"] > 0.01
    trained = [row for row in rows if "reward" in row]
    assert [row["step"] for row in trained] == [1, 2]
    for row in trained:
        per_answer = row["kl"] * row["completions/mean_length"]
        assert row["objective/kl"] == pytest.approx(per_answer, abs=1e-3)
        assert row["objective/entropy"] > 1
    assert len((tmp_path / "with" / "samples.jsonl").read_text().splitlines()) == 6


def test_new_adapter_and_its_reference_start_as_the_base(
    model_config, tokenizer, tmp_path, pristine
):
    """Also with a β of 0, for which TRL adds no reference."""
    config = ModelConfig(**vars(model_config) | {"use_peft": True, "lora_r": 4})
    roles = fresh_roles(config)
    attach_ppo_roles(roles, policy=None, rewards=[], model=config, value=None)
    options = {"reward_funcs": three, "beta": 0.0}
    trainer = make_group("grpo", roles, tokenizer, prompts(), tmp_path, **options)
    assert all(f".{POLICY}." in name for name in trainable_names(roles))
    ids = torch.tensor([trainer.train_dataset[0]["prompt_ids"]])
    with torch.no_grad():
        expected = pristine(ids).logits
        for name in (POLICY, REFERENCE):
            with roles.using(name) as model:
                torch.testing.assert_close(model(ids).logits, expected)


def test_sampling_options_of_trl_are_used(roles, tokenizer, tmp_path):
    """With top_k 1 all answers to a prompt are equal."""
    trainer = make_group("grpo", roles, tokenizer, prompts(), tmp_path, top_k=1)
    drawn = trainer.draw(rows_of(trainer, (0, 1)))
    assert [len({tuple(ids) for ids in drawn.completions[i : i + 4]}) for i in (0, 4)] == [1, 1]
    assert trainer._metrics["train"]["groups/uniform"] == [1.0]


def test_too_few_prompts_and_wrong_weights_are_rejected(roles, tokenizer, tmp_path):
    trainer = make_group("rloo", roles, tokenizer, prompts().select([0]), tmp_path)
    with pytest.raises(ConfigError, match="1 training prompts, but a generation takes 2"):
        trainer.train()
    with pytest.raises(ConfigError, match="one weight for each of 1 functions, got 2"):
        make_group(
            "rloo", roles, tokenizer, prompts(), tmp_path, reward_funcs=three, reward_weights=[1, 2]
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale_rewards": "all"}, "`scale_rewards` must be group or batch or none, got 'all'"),
        ({"importance_sampling_level": "word"}, "`importance_sampling_level` must be token"),
        ({"reward_aggregation": "max"}, "`reward_aggregation` must be mean or min"),
        ({"temperature": 0.0}, "`temperature` must be above 0"),
        ({"num_generations": 3}, "must be divisible by num_generations"),
    ],
)
def test_values_without_meaning_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        KINDS["grpo"][0](output_dir="x", use_cpu=True, bf16=False, **options)


def test_warnings_name_options_of_grpo(capsys):
    args = KINDS["grpo"][0](output_dir="x", use_cpu=True, bf16=False)
    row = {"objective/penalties_std": 0.0, "objective/scores_std": 1.0, "objective/ended": 0.2}
    state = SimpleNamespace(log_history=[row], global_step=1)
    WatchCallback().on_log(args, state, None, logs={})
    printed = capsys.readouterr().out
    assert "a rollout of 8 answers to 1 prompts is small" in printed
    assert "raise gradient_accumulation_steps or steps_per_generation" in printed
    assert "80% of the answers are cut at max_completion_length 512" in printed
