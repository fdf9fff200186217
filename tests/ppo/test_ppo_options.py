"""What PPO can be asked for beyond the plain case, each option seen to do what it says."""

import json
import math
import re
import shutil

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback, set_seed

from tests.conftest import ROOT, fresh_roles, lora, randomise
from tests.ppo.setup import make, prompts
from toolkit.errors import ConfigError, RewardError
from toolkit.models.passes import collate, completion_logprobs
from toolkit.models.roles import POLICY, REWARD, VALUE
from toolkit.ppo.config import EVALUATED, PPOConfig
from toolkit.ppo.roles import attach_ppo_roles
from toolkit.sampling.generation import encode_prompt


def logged(folder):
    return [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]


def snapshot(roles):
    return {n: p.detach().clone() for n, p in roles.model.named_parameters()}


def moved(roles, before):
    return {n for n, p in roles.model.named_parameters() if not torch.equal(p, before[n])}


def roles_with(model_config, sft_run, rewards, **kwargs):
    roles = fresh_roles(model_config)
    attach_ppo_roles(roles, policy=str(sft_run), rewards=rewards, model=model_config, **kwargs)
    return roles


def test_several_completions_per_prompt_share_a_rollout(ppo_roles, tokenizer, tmp_path):
    trainer = make(ppo_roles, tokenizer, prompts(), tmp_path, num_generations=4)
    rows = list(trainer.train_dataset.select(range(2)))
    found = trainer.make_experience(rows)
    assert len(found) == 8
    assert found.prompts[0] == found.prompts[3] != found.prompts[4]
    trainer.train()
    assert len(trainer.experience) == 8
    assert len({tuple(p) for p in trainer.experience.prompts}) == 2


def test_generations_must_divide_a_rollout(ppo_roles, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="`num_generations` 3 must divide a rollout of 8"):
        make(ppo_roles, tokenizer, prompts(), tmp_path, num_generations=3)


def test_every_logged_number_is_explained(make_ppo_roles, reward_run, tokenizer, tmp_path):
    """With everything switched on that logs a number of its own."""
    explained = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    keys = set(re.findall(r"`([a-z_]+/[\w/]+)`", explained))
    roles = make_ppo_roles()
    roles.detach(REWARD)
    for number in range(2):
        roles.attach(f"{REWARD}_{number}", reward_run, head=True)
    trainer = make(
        roles,
        tokenizer,
        prompts(),
        tmp_path,
        ptx_texts=["some text"],
        ptx_coef=0.1,
        kl_target=1.0,
        kl_horizon=64,
        reward_funcs=[lambda completions, **_: [0.0] * len(completions)],
        max_steps=1,
    )
    trainer.train()
    seen = {key for row in logged(tmp_path) for key in row if "/" in key}
    assert len(seen) > 15
    assert seen - keys == {"rewards/<lambda>/mean"}


def test_an_ensemble_scores_by_its_mean_its_worst_or_its_certainty(
    model_config, sft_run, reward_run, tokenizer, tmp_path
):
    """Two members of which the second says one more: mean +½, min +0, mean − 2·std −½."""
    roles = roles_with(model_config, sft_run, [str(reward_run)] * 2)
    assert roles.rewards == ["reward_0", "reward_1"]
    with torch.no_grad():
        roles.heads["reward_1"].bias += 1.0
    found = {}
    for how in ("mean", "min", "mean_minus_std"):
        trainer = make(
            roles,
            tokenizer,
            prompts(),
            tmp_path / how,
            reward_aggregation=how,
            reward_std_coef=2.0,
        )
        torch.manual_seed(0)
        trainer.make_experience(list(trainer.train_dataset.select(range(8))))
        found[how] = trainer._metrics["objective/scores"][0]
        assert trainer._metrics["objective/ensemble_std"] == [pytest.approx(0.5, abs=1e-5)]
    assert found["mean"] - found["min"] == pytest.approx(0.5, abs=1e-5)
    assert found["mean"] - found["mean_minus_std"] == pytest.approx(1.0, abs=1e-5)


def test_scores_are_clipped_and_pay_for_length_and_a_missing_end(ppo_roles, tokenizer, tmp_path):
    """Every score is 9, so what PPO maximises is known from lengths, ends and β·KL alone."""
    ppo_roles.heads[REWARD].weight.data.zero_()
    ppo_roles.heads[REWARD].bias.data.fill_(9.0)
    options = {"reward_clip": 2.0, "length_penalty": 0.1, "missing_eos_penalty": 0.5}
    make(ppo_roles, tokenizer, prompts(), tmp_path, max_steps=1, **options).train()
    row = logged(tmp_path)[0]
    assert row["objective/scores"] == 9.0
    left = 2.0 - 0.1 * row["objective/length"] - 0.5 * (1 - row["objective/ended"])
    expected = left + row["objective/non_score_reward"]
    assert row["objective/rlhf_reward"] == pytest.approx(expected, abs=1e-4)


def test_python_functions_alone_are_a_reward(model_config, sft_run, tokenizer, tmp_path):
    """No reward model; the policy learns to say what the function likes."""
    torch.manual_seed(0)
    roles = roles_with(model_config, sft_run, [], value="zero")
    seen = {}

    def likes_even(prompts, completions, completion_ids, **columns):
        seen.update(columns, prompt=prompts[0], completion=completions[0])
        return [sum(i % 2 == 0 for i in ids) / len(ids) for ids in completion_ids]

    data = prompts().add_column("answer", ["x"] * 16)
    trainer = make(
        roles,
        tokenizer,
        data,
        tmp_path,
        reward_funcs=[likes_even],
        reward_weights=[3.0],
        total_episodes=320,
        missing_eos_penalty=0.0,
        learning_rate=2e-2,
        kl_coef=0.0,
    )
    trainer.train()
    assert seen["answer"] == ["x"] * 8
    assert seen["prompt"][0]["role"] == "user"
    assert seen["completion"][0]["role"] == "assistant"
    name = "rewards/likes_even/mean"
    means = [row[name] for row in logged(tmp_path) if name in row]
    assert len(means) == 40
    assert sum(means[-10:]) / 10 > sum(means[:10]) / 10 + 0.1


def test_a_function_that_fails_leaves_the_last_checkpoint(ppo_roles, tokenizer, tmp_path):
    calls = []

    def fails_later(completions, **_):
        calls.append(1)
        return [float("nan") if len(calls) > 1 else 0.0] * len(completions)

    trainer = make(
        ppo_roles,
        tokenizer,
        prompts(),
        tmp_path,
        reward_funcs=[fails_later],
        save_strategy="steps",
        save_steps=2,
    )
    with pytest.raises(RewardError, match=r"fails_later: gave nan to prompt .*completion"):
        trainer.train()
    assert (tmp_path / "checkpoint-4" / "trainer_state.json").is_file()


def test_the_value_may_be_only_a_head_on_the_policys_trunk(
    model_config, sft_run, reward_run, tokenizer, tmp_path
):
    roles = roles_with(model_config, sft_run, [str(reward_run)], value="head")
    assert VALUE not in roles.model.peft_config
    before = snapshot(roles)
    options = {"save_strategy": "steps", "save_steps": 3}
    trainer = make(roles, tokenizer, prompts(), tmp_path / "run", **options)
    trainer.train()
    names = moved(roles, before)
    assert any(n.startswith("heads.value") for n in names)
    assert all(f".{POLICY}." in n or n.startswith("heads.value") for n in names)
    again = roles_with(model_config, sft_run, [str(reward_run)], value="head")
    trainer = make(again, tokenizer, prompts(), tmp_path / "again", **options)
    trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    for name, parameter in again.model.named_parameters():
        assert torch.equal(parameter, dict(roles.model.named_parameters())[name]), name


def test_the_value_heads_loss_moves_nothing_of_the_policy(
    model_config, sft_run, reward_run, tokenizer, tmp_path
):
    """Twice the value loss: the policy ends where it did."""
    ends = []
    for coef in (0.1, 0.2):
        roles = roles_with(model_config, sft_run, [str(reward_run)], value="head")
        trainer = make(
            roles,
            tokenizer,
            prompts(),
            tmp_path / str(coef),
            vf_coef=coef,
            max_steps=1,
            max_grad_norm=0.0,
        )
        trainer.train()
        ends.append({n: p for n, p in roles.model.named_parameters() if f".{POLICY}." in n})
    for name, parameter in ends[0].items():
        assert torch.equal(parameter, ends[1][name]), name


def test_ptx_keeps_the_pretraining_loss_down(make_ppo_roles, tokenizer, tmp_path):
    texts = ["The Bramor bird is red. The Tadfin bird is blue."] * 4
    loss = {}
    for coef in (0.0, 5.0):
        roles = make_ppo_roles()
        folder = tmp_path / str(coef)
        trainer = make(
            roles,
            tokenizer,
            prompts(),
            folder,
            ptx_coef=coef,
            ptx_texts=texts,
            total_episodes=64,
        )
        trainer.train()
        ids = tokenizer(texts[0])["input_ids"]
        batch = collate([ids[:1]], [ids[1:]], tokenizer.pad_token_id)
        with roles.using(POLICY) as model, torch.no_grad():
            loss[coef] = -completion_logprobs(model, batch, temperature=1.0)[0].sum().item()
        assert ("loss/ptx_avg" in logged(folder)[0]) is (coef > 0)
    assert loss[5.0] < loss[0.0] - 1.0


def test_ptx_without_texts_is_refused(ppo_roles, tokenizer, tmp_path):
    with pytest.raises(ConfigError, match="no pretraining texts"):
        make(ppo_roles, tokenizer, prompts(), tmp_path, ptx_coef=1.0)


def test_a_steered_kl_coefficient_is_logged_saved_and_resumed(make_ppo_roles, tokenizer, tmp_path):
    options = {
        "kl_target": 0.001,
        "kl_horizon": 40,
        "total_episodes": 32,
        "save_strategy": "steps",
        "save_steps": 6,
    }
    whole = make_ppo_roles()
    make(whole, tokenizer, prompts(), tmp_path / "whole", **options).train()
    rows = [r for r in logged(tmp_path / "whole") if "objective/kl_coef" in r]
    coefs = [r["objective/kl_coef"] for r in rows]
    assert coefs[0] == pytest.approx(0.05)
    assert len(set(coefs)) > 2
    again = make_ppo_roles()
    trainer = make(again, tokenizer, prompts(), tmp_path / "again", **options)
    trainer.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-6"))
    resumed = [r for r in logged(tmp_path / "again") if "objective/kl_coef" in r]
    assert [r["objective/kl_coef"] for r in resumed] == coefs[-len(resumed) :]
    for name, parameter in again.model.named_parameters():
        assert torch.equal(parameter, dict(whole.model.named_parameters())[name]), name


class Policies(TrainerCallback):
    """The policy's weights after every step."""

    def __init__(self, roles):
        self.roles, self.seen = roles, []

    def on_step_end(self, args, state, control, **kwargs):
        self.seen.append(
            [p.clone() for n, p in self.roles.model.named_parameters() if ".default." in n]
        )


def test_updates_stop_once_the_policy_is_far_from_the_rollouts(ppo_roles, tokenizer, tmp_path):
    """The first minibatch has approx_kl 0; the second is above the tiny limit, the rest skipped."""
    trainer = make(ppo_roles, tokenizer, prompts(), tmp_path, target_kl=1e-9, total_episodes=8)
    steps = Policies(ppo_roles)
    trainer.add_callback(steps)
    trainer.train()
    assert len(steps.seen) == 4
    same = [
        all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        for before, after in zip(steps.seen, steps.seen[1:], strict=False)
    ]
    assert same == [False, True, True]


def test_the_entropy_bonus_keeps_the_policy_undecided(make_ppo_roles, tokenizer, tmp_path):
    entropy = {}
    for coef in (0.0, 1.0):
        folder = tmp_path / str(coef)
        make(
            make_ppo_roles(), tokenizer, prompts(), folder, ent_coef=coef, total_episodes=64
        ).train()
        entropy[coef] = [r["policy/entropy_avg"] for r in logged(folder) if "episode" in r][-1]
    assert entropy[1.0] > entropy[0.0]


@pytest.mark.parametrize("value", ["adapter", "zero", "head"])
@pytest.mark.parametrize("peft", ["use_rslora", "use_dora"])
def test_rslora_and_dora_policies_train_and_resume_to_the_bit(
    model_config, reward_run, tokenizer, tmp_path, peft, value
):
    start = fresh_roles(model_config)
    start.create(POLICY, lora(**{peft: True}))
    randomise(start, POLICY, seed=1)
    start.save(POLICY, tmp_path / "sft")

    def trained(folder, resume=None):
        roles = roles_with(model_config, tmp_path / "sft", [str(reward_run)], value=value)
        before = snapshot(roles)
        options = {"value_role": value, "save_strategy": "steps", "save_steps": 3}
        make(roles, tokenizer, prompts(), folder, **options).train(resume_from_checkpoint=resume)
        return roles, moved(roles, before)

    set_seed(0)
    roles, names = trained(tmp_path / "run")
    assert getattr(roles.model.peft_config[POLICY], peft)
    of_policy = {n for n in names if f".{POLICY}." in f".{n}."}
    of_value = {n for n in names if f".{VALUE}." in f".{n}."}
    assert names == of_policy | of_value
    assert of_policy | of_value == set(roles.trainable_names())
    assert any("magnitude" in n for n in of_policy) is (peft == "use_dora")
    assert any("lora_" in n for n in of_value) is (value != "head")
    first = logged(tmp_path / "run")[0]
    assert first["val/ratio"] == pytest.approx(1.0, abs=1e-4)
    assert first["objective/kl"] == pytest.approx(0.0, abs=1e-5)
    set_seed(1)
    again, _ = trained(tmp_path / "again", str(tmp_path / "run" / "checkpoint-3"))
    for name, parameter in again.model.named_parameters():
        assert torch.equal(parameter, dict(roles.model.named_parameters())[name]), name


# Adam makes a step of any gradient's rounding, and SGD a large step of a large gradient only
ADAM = {"learning_rate": 1e-2}, {"atol": 1e-5, "rtol": 1e-4}
SGD = {"learning_rate": 1.0, "optim": "sgd"}, {"atol": 1e-6, "rtol": 1e-5}


@pytest.mark.parametrize(
    ("value", "steps", "bound"),
    [("adapter", *ADAM), ("adapter", *SGD), ("zero", *SGD), ("head", *SGD)],
    ids=["adapter-adam", "adapter-sgd", "zero-sgd", "head-sgd"],
)
def test_gradient_checkpointing_changes_no_gradient(
    model_config, sft_run, reward_run, tokenizer, tmp_path, value, steps, bound
):
    ends = []
    for on in (False, True):
        set_seed(0)  # an adapter that starts as nothing has a random half
        roles = roles_with(model_config, sft_run, [str(reward_run)], value=value)
        trainer = make(
            roles,
            tokenizer,
            prompts(),
            tmp_path / str(on),
            gradient_checkpointing=on,
            max_steps=2,
            value_role=value,
            **steps,
        )
        start = snapshot(roles)
        trainer.train()
        ends.append(snapshot(roles))
    for name, tensor in ends[0].items():
        torch.testing.assert_close(tensor, ends[1][name], **bound)
    far = [(tensor - start[name]).abs().max().item() for name, tensor in ends[0].items()]
    assert max(far) > 1000 * bound["atol"]  # or the bound would hold of anything


def test_evaluation_while_training_and_the_best_checkpoint(make_ppo_roles, tokenizer, tmp_path):
    """Held-out numbers and samples are logged, training is not disturbed, the best is kept."""
    plain = make_ppo_roles()
    make(plain, tokenizer, prompts(), tmp_path / "plain", total_episodes=24).train()
    roles = make_ppo_roles()
    trainer = make(
        roles,
        tokenizer,
        prompts(),
        tmp_path / "run",
        held_out=prompts().select(range(4)),
        total_episodes=24,
        eval_strategy="steps",
        eval_steps=3,
        save_strategy="steps",
        save_steps=3,
        load_best_model_at_end=True,
        metric_for_best_model="eval_objective/rlhf_reward",
        greater_is_better=True,
    )
    steps = Policies(roles)
    trainer.add_callback(steps)
    trainer.train()
    undisturbed = [p for n, p in plain.model.named_parameters() if ".default." in n]
    assert all(torch.equal(a, b) for a, b in zip(steps.seen[-1], undisturbed, strict=True))
    rows = [r for r in logged(tmp_path / "run") if "eval_objective/scores" in r]
    assert [r["step"] for r in rows] == [3, 6, 9, 12]
    best = max(rows, key=lambda r: r["eval_objective/rlhf_reward"])["step"]
    assert trainer.state.best_model_checkpoint == str(tmp_path / "run" / f"checkpoint-{best}")
    kept = [p for n, p in roles.model.named_parameters() if ".default." in n]
    assert all(torch.equal(a, b) for a, b in zip(kept, steps.seen[best - 1], strict=True))
    samples = [json.loads(r) for r in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 4 * 4
    assert {"step", "prompt", "completion", "score"} == set(samples[0])
    for checkpoint in (tmp_path / "run").glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    anew = {"held_out": prompts().select(range(4)), "eval_strategy": "steps", "eval_steps": 4}
    again = make(make_ppo_roles(), tokenizer, prompts(), tmp_path / "run", total_episodes=8, **anew)
    again.train()
    assert len((tmp_path / "run" / "samples.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kl_target": 0.0}, "`kl_target` must be above 0"),
        ({"kl_target": 1.0, "kl_coef": 0.0}, "must not start at 0"),
        ({"kl_target": 1.0, "kl_horizon": 1}, "at least a rollout's 8 episodes"),
        ({"reward_clip": -1.0}, "`reward_clip` must be above 0"),
        ({"cliprange": -0.1}, "`cliprange` must be above 0"),
        ({"target_kl": -1.0}, "`target_kl` must be above 0"),
        ({"ptx_coef": -1.0}, "`ptx_coef` must be at least 0"),
        ({"ptx_batch_size": 0}, "`ptx_batch_size` must be at least 1"),
        ({"vf_coef": float("nan")}, "`vf_coef` must be a finite number, got nan"),
        ({"missing_eos_penalty": math.nan}, "`missing_eos_penalty` must be a finite number"),
        ({"length_penalty": -math.inf}, "`length_penalty` must be a finite number, got -inf"),
        ({"reward_weights": [1.0, math.nan]}, "`reward_weights` must be a finite number, got nan"),
        ({"kl_coef": math.inf}, "`kl_coef` must be a finite number, got inf"),
        ({"learning_rate": math.nan}, "`learning_rate` must be a finite number, got nan"),
        ({"temperature": 0.0}, "`temperature` must be above 0"),
        ({"num_ppo_epochs": 0}, "`num_ppo_epochs` must be at least 1"),
        ({"gamma": 1.5}, r"`gamma` must be in \[0, 1\]"),
    ],
)
def test_settings_that_cannot_work_are_refused(ppo_roles, tokenizer, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        make(ppo_roles, tokenizer, prompts(), tmp_path, **changes)


@pytest.fixture
def make_choosing(make_ppo_roles, tokenizer, tmp_path):
    """A short run that keeps the best of two checkpoints."""
    held_out = prompts().select(range(2))
    evaluated = {"held_out": held_out, "eval_strategy": "steps", "eval_steps": 2}
    saved = {"save_strategy": "steps", "save_steps": 2, "load_best_model_at_end": True}
    return lambda folder=tmp_path, **options: make(
        make_ppo_roles(),
        tokenizer,
        prompts(),
        folder,
        total_episodes=8,
        **evaluated,
        **saved,
        **options,
    )


def test_a_best_checkpoint_is_chosen_by_a_name_that_an_evaluation_has(make_choosing, tmp_path):
    """Not found out at the first evaluation, which would end the run; and by reward if none is given."""
    with pytest.raises(ConfigError, match=r"'eval_scores', which.*objective/scores, objective/kl"):
        make_choosing(metric_for_best_model="eval_scores")
    trainer = make_choosing()
    trainer.train()
    assert trainer.args.metric_for_best_model == "objective/rlhf_reward"
    rows = [r for r in logged(tmp_path) if "eval_objective/scores" in r]
    found = {n.removeprefix("eval_") for n in rows[0] if n.startswith("eval_")}
    assert found == set(EVALUATED)
    best = max(rows, key=lambda r: r["eval_objective/rlhf_reward"])["step"]
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")


def test_a_best_checkpoint_may_be_chosen_by_a_number_of_ones_own(make_choosing, tmp_path):
    def shortness(completions, **_):
        return {"shortness": -len(str(completions))}

    make_choosing(metric_for_best_model="shortness", eval_metrics=shortness).train()
    with pytest.raises(ConfigError, match=r"ended, and what `eval_metrics` adds"):
        make_choosing(metric_for_best_model="objective/score", eval_metrics=shortness)
    choice = {"metric_for_best_model": "length", "eval_metrics": shortness}
    unknown = make_choosing(tmp_path / "other", **choice)
    with pytest.raises(ConfigError, match=r"'length', which this evaluation.*ended, shortness"):
        unknown.train()


def test_the_default_of_the_best_checkpoint(tmp_path):
    def chosen(**options):
        kept = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "use_cpu": True}
        config = PPOConfig(str(tmp_path), bf16=False, **kept | options)
        return config.metric_for_best_model, config.greater_is_better

    assert chosen() == (None, None)
    best = {"load_best_model_at_end": True}
    assert chosen(**best) == ("objective/rlhf_reward", True)
    assert chosen(save_strategy="best") == ("objective/rlhf_reward", True)
    for schedule in ("reduce_lr_on_plateau", "greedy"):
        assert chosen(lr_scheduler_type=schedule) == ("objective/rlhf_reward", True)
    steered = {"kl_target": 2.0}  # β is not the same for all checkpoints
    assert chosen(**best, **steered) == ("objective/scores", True)
    assert chosen(**best, metric_for_best_model="eval_objective/kl")[1] is False


def test_data_that_cannot_work_is_refused(ppo_roles, tokenizer, tmp_path):
    named = prompts().add_column("completions", ["so"] * len(prompts()))
    with pytest.raises(ConfigError, match=r"a column `completions`.*rename the column"):
        make(ppo_roles, tokenizer, named, tmp_path, reward_funcs=[lambda **_: []])
    with pytest.raises(ConfigError, match=r"needs a column `prompt`.*got input_ids"):
        make(ppo_roles, tokenizer, Dataset.from_dict({"input_ids": [[1, 2]]}), tmp_path)
    for other in (list(prompts()), {"train": prompts()}, prompts().to_iterable_dataset()):
        with pytest.raises(ConfigError, match=r"needs a datasets\.Dataset of prompts, got"):
            make(ppo_roles, tokenizer, other, tmp_path)
    for wrong in (None, [], 7, [1, 2]):
        data = Dataset.from_dict({"prompt": [wrong]})
        with pytest.raises(ConfigError, match=r"prompt 0 must be text or messages, got"):
            make(ppo_roles, tokenizer, data, tmp_path)
    with pytest.raises(ConfigError, match="prompt 1 of 2 has no token"):
        make(ppo_roles, tokenizer, Dataset.from_dict({"prompt": ["a", ""]}), tmp_path)
    with pytest.raises(ConfigError, match="must be functions, got 'length'"):
        make(ppo_roles, tokenizer, prompts(), tmp_path, reward_funcs=["length"])
    for epochs in (0, -1):
        options = {"total_episodes": None, "num_train_epochs": epochs}
        with pytest.raises(ConfigError, match="so there is nothing to train"):
            make(ppo_roles, tokenizer, prompts(), tmp_path, **options)
    with pytest.raises(ConfigError, match="none of the 1 pretraining texts has two tokens"):
        make(ppo_roles, tokenizer, prompts(), tmp_path, ptx_texts=[""], ptx_coef=0.1)
    trainer = make(ppo_roles, tokenizer, prompts(), tmp_path)
    with pytest.raises(ConfigError, match="give PPOTrainer an `eval_dataset`"):
        trainer.evaluate()
    assert "eval_objective/scores" in trainer.evaluate(prompts().select(range(2)))


def test_a_tokenizer_needs_an_end_a_template_and_no_pad_token(
    ppo_roles, tiny_base, tokenizer, tmp_path
):
    """One straight from transformers, and not by our own loader."""
    plain = AutoTokenizer.from_pretrained(tiny_base)
    plain.pad_token = None
    make(ppo_roles, plain, prompts(), tmp_path, max_steps=1).train()
    assert plain.pad_token == plain.eos_token
    plain.chat_template = None
    with pytest.raises(ConfigError, match="the tokenizer has no chat template"):
        make(ppo_roles, plain, prompts(), tmp_path)
    plain.eos_token = None
    with pytest.raises(ConfigError, match="the tokenizer has no EOS token"):
        make(ppo_roles, plain, prompts(), tmp_path)


def test_little_data_fills_a_rollout_and_a_run_may_end_inside_of_one(
    make_ppo_roles, tokenizer, tmp_path
):
    """One prompt for eight episodes; five episodes are a rollout; three steps of four; one function."""

    def one(completions, **_):
        return [1] * len(completions)

    for name, data, options, steps in (
        ("one", prompts().select([0]), {"total_episodes": None, "num_train_epochs": 1}, 4),
        ("five", prompts(), {"total_episodes": 5}, 4),
        ("three", prompts(), {"max_steps": 3}, 3),
    ):
        trainer = make(
            make_ppo_roles(), tokenizer, data, tmp_path / name, reward_funcs=one, **options
        )
        trainer.train()
        assert trainer.state.global_step == steps
        assert len(trainer.experience) == 8


def test_episodes_are_counted_after_long_prompts_are_left_out(ppo_roles, tokenizer, tmp_path):
    """Of sixteen prompts the eight short ones are left, of which one epoch is one rollout."""
    trainer = make(
        ppo_roles,
        tokenizer,
        prompts(),
        tmp_path,
        total_episodes=None,
        num_train_epochs=1,
        max_prompt_length=max(
            len(encode_prompt(tokenizer, row["prompt"]))
            for row in prompts()
            if "Hello" in row["prompt"][0]["content"] or "1 plus" in row["prompt"][0]["content"]
        ),
    )
    assert trainer.rollouts == math.ceil(len(trainer.train_dataset) / 8)
    assert len(trainer.train_dataset) < len(prompts())


def test_a_later_run_with_a_smaller_value_leaves_nothing_of_the_first(
    make_ppo_roles, model_config, sft_run, reward_run, tokenizer, tmp_path
):
    trainer = make(make_ppo_roles(), tokenizer, prompts(), tmp_path, max_steps=1)
    trainer.save_model()
    assert (tmp_path / "value" / "adapter_model.safetensors").is_file()
    roles = roles_with(model_config, sft_run, [str(reward_run)], value="head")
    make(roles, tokenizer, prompts(), tmp_path, max_steps=1, value_role="head").save_model()
    assert [f.name for f in (tmp_path / "value").iterdir()] == ["head.safetensors"]


def test_a_function_that_never_says_anything_adds_nothing(ppo_roles, tokenizer, tmp_path):
    def silent(completions, **_):
        return [None] * len(completions)

    make(ppo_roles, tokenizer, prompts(), tmp_path, reward_funcs=[silent]).train()
    row = logged(tmp_path)[0]
    assert row["rewards/silent/mean"] is None
    assert row["objective/scores"] is not None


def test_what_reward_functions_note_is_logged_and_stands_beside_held_out_answers(
    ppo_roles, tokenizer, tmp_path
):
    steps = []

    def judged(completions, trainer_state, log_metric, log_extra, **_):
        steps.append(trainer_state.global_step)
        log_metric("judged/share", 0.25)
        log_metric("judged/share", 0.75)
        log_extra("letters", [len(said[0]["content"]) for said in completions])
        log_extra("score", ["not ours"] * len(completions))
        log_extra("step", ["nor this"] * len(completions))
        log_metric("step", 1000)
        return [0.0] * len(completions)

    held_out = prompts().select(range(3))
    settings = {"eval_strategy": "steps", "eval_steps": 8, "total_episodes": 16}
    trainer = make(
        ppo_roles,
        tokenizer,
        prompts(),
        tmp_path,
        held_out=held_out,
        reward_funcs=judged,
        **settings,
    )
    trainer.train()
    assert steps == [0, 4, 8]  # two rollouts, and an evaluation
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["judged/share"] for row in rows if "judged/share" in row] == [0.5, 0.5]
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    said = [row["completion"][0]["content"] for row in samples]
    assert [row["letters"] for row in samples] == list(map(len, said))
    assert all(isinstance(row["score"], float) for row in samples)
    assert {row["step"] for row in samples} == {8}
    assert max(row["step"] for row in rows) == 8
