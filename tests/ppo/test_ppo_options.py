"""PPO's options, each with a test of its effect."""

import json
import math
import re
import shutil

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback, set_seed

from tests.conftest import ROOT, fresh_roles, lora, randomise, trainable_names
from tests.ppo.setup import make, prompts
from toolkit.data.encoding import encode_prompt
from toolkit.errors import ConfigError
from toolkit.models.roles import POLICY, REWARD, VALUE
from toolkit.ppo.config import EVALUATED, PPOConfig
from toolkit.ppo.roles import attach_ppo_roles

pytestmark = pytest.mark.slow


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
    experience = trainer.make_experience(rows)
    assert len(experience) == 8
    assert experience.prompts[0] == experience.prompts[3] != experience.prompts[4]
    trainer.train()
    assert len(trainer.experience) == 8
    assert len({tuple(p) for p in trainer.experience.prompts}) == 2


def test_docs_explain_every_logged_metric(make_ppo_roles, reward_run, tokenizer, tmp_path):
    """With all options that log a metric of their own."""
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"`([a-z_]+/[\w/]+)`", text))
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
    metrics = {key for row in logged(tmp_path) for key in row if "/" in key}
    assert len(metrics) > 15
    assert metrics - documented == {"rewards/<lambda>/mean"}


def test_scores_are_clipped_and_penalised(ppo_roles, tokenizer, tmp_path):
    """Every score is 9, so the reward follows from lengths, ends and β·KL."""
    ppo_roles.heads[REWARD].weight.data.zero_()
    ppo_roles.heads[REWARD].bias.data.fill_(9.0)
    options = {"reward_clip": 2.0, "length_penalty": 0.1, "missing_eos_penalty": 0.5}
    make(ppo_roles, tokenizer, prompts(), tmp_path, max_steps=1, **options).train()
    row = logged(tmp_path)[0]
    assert row["objective/scores"] == 9.0
    left = 2.0 - 0.1 * row["objective/length"] - 0.5 * (1 - row["objective/ended"])
    expected = left + row["objective/non_score_reward"]
    assert row["objective/rlhf_reward"] == pytest.approx(expected, abs=1e-4)


def test_policy_learns_from_reward_function_only(model_config, sft_run, tokenizer, tmp_path):
    """Without a reward model the reward rises during training."""
    torch.manual_seed(0)
    roles = roles_with(model_config, sft_run, [], value="zero")
    arguments = {}

    def likes_even(prompts, completions, completion_ids, **columns):
        arguments.update(columns, prompt=prompts[0], completion=completions[0])
        return [sum(i % 2 == 0 for i in ids) / len(ids) for ids in completion_ids]

    data = prompts().add_column("answer", ["x"] * 16)
    trainer = make(
        roles,
        tokenizer,
        data,
        tmp_path,
        reward_funcs=[likes_even],
        reward_weights=[3.0],
        per_device_train_batch_size=16,
        num_mini_batches=1,
        num_ppo_epochs=4,
        total_episodes=160,
        missing_eos_penalty=0.0,
        learning_rate=0.1,
        kl_coef=0.0,
    )
    trainer.train()
    assert arguments["answer"] == ["x"] * 16
    assert arguments["prompt"][0]["role"] == "user"
    assert arguments["completion"][0]["role"] == "assistant"
    name = "rewards/likes_even/mean"
    means = [row[name] for row in logged(tmp_path) if name in row]
    assert len(means) == 10
    assert sum(means[-3:]) / 3 > sum(means[:3]) / 3 + 0.1


def test_ptx_without_texts_is_rejected(ppo_roles, tokenizer, tmp_path):
    with pytest.raises(ConfigError, match="no pretraining texts"):
        make(ppo_roles, tokenizer, prompts(), tmp_path, ptx_coef=1.0)


class Policies(TrainerCallback):
    """The policy's weights after every step."""

    def __init__(self, roles):
        self.roles, self.weights = roles, []

    def on_step_end(self, args, state, control, **kwargs):
        self.weights.append(
            [p.clone() for n, p in self.roles.model.named_parameters() if ".default." in n]
        )


@pytest.mark.parametrize("value", ["adapter", "zero", "head"])
@pytest.mark.parametrize("peft", ["use_rslora", "use_dora"])
def test_rslora_and_dora_train_and_resume_exactly(
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
    assert of_policy | of_value == set(trainable_names(roles))
    assert any("magnitude" in n for n in of_policy) is (peft == "use_dora")
    assert any("lora_" in n for n in of_value) is (value != "head")
    first = logged(tmp_path / "run")[0]
    assert first["val/ratio"] == pytest.approx(1.0, abs=1e-4)
    assert first["objective/kl"] == pytest.approx(0.0, abs=1e-5)
    set_seed(1)
    again, _ = trained(tmp_path / "again", str(tmp_path / "run" / "checkpoint-3"))
    for name, parameter in again.model.named_parameters():
        assert torch.equal(parameter, dict(roles.model.named_parameters())[name]), name


@pytest.mark.parametrize("value", ["adapter", "zero", "head"])
def test_gradient_checkpointing_changes_no_gradient(
    model_config, sft_run, reward_run, tokenizer, tmp_path, value
):
    """With SGD: Adam would amplify a gradient's rounding to a whole step."""
    ends, bound = [], {"atol": 1e-6, "rtol": 1e-5}
    for on in (False, True):
        set_seed(0)  # a new adapter has a random matrix A
        roles = roles_with(model_config, sft_run, [str(reward_run)], value=value)
        trainer = make(
            roles,
            tokenizer,
            prompts(),
            tmp_path / str(on),
            gradient_checkpointing=on,
            max_steps=2,
            value_role=value,
            optim="sgd",
            learning_rate=1.0,
        )
        start = snapshot(roles)
        trainer.train()
        ends.append(snapshot(roles))
    for name, tensor in ends[0].items():
        torch.testing.assert_close(tensor, ends[1][name], **bound)
    far = [(tensor - start[name]).abs().max().item() for name, tensor in ends[0].items()]
    assert max(far) > 1000 * bound["atol"]  # otherwise the bound would prove nothing


def test_evaluation_during_training_chooses_best_checkpoint(make_ppo_roles, tokenizer, tmp_path):
    """Metrics and samples are logged, training does not change, and the best checkpoint is loaded."""
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
    assert all(torch.equal(a, b) for a, b in zip(steps.weights[-1], undisturbed, strict=True))
    rows = [r for r in logged(tmp_path / "run") if "eval_objective/scores" in r]
    assert [r["step"] for r in rows] == [0, 3, 6, 9, 12]
    best = max(rows[1:], key=lambda r: r["eval_objective/rlhf_reward"])["step"]
    assert trainer.state.best_model_checkpoint == str(tmp_path / "run" / f"checkpoint-{best}")
    final = [p for n, p in roles.model.named_parameters() if ".default." in n]
    assert all(torch.equal(a, b) for a, b in zip(final, steps.weights[best - 1], strict=True))
    samples = [json.loads(r) for r in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 5 * 4
    assert {"step", "prompt", "completion", "score"} == set(samples[0])
    for checkpoint in (tmp_path / "run").glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    evaluated = {"held_out": prompts().select(range(4)), "eval_strategy": "steps", "eval_steps": 4}
    again = make(
        make_ppo_roles(), tokenizer, prompts(), tmp_path / "run", total_episodes=8, **evaluated
    )
    again.train()
    assert len((tmp_path / "run" / "samples.jsonl").read_text().splitlines()) == 2 * 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kl_target": 0.0}, "`kl_target` must be above 0"),
        ({"kl_target": 1.0, "kl_coef": 0.0}, "must be above 0 with `kl_target`"),
        ({"kl_target": 1.0, "kl_horizon": 1}, "at least a rollout's 64 episodes"),
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
        ({"gamma": 1.5}, r"`gamma` must be in \[0, 1\], got 1.5"),
        ({"kl_estimator": "k2"}, "`kl_estimator` must be k1 or k3, got 'k2'"),
        ({"value_role": "trunk"}, "must be adapter or zero or head"),
        ({"num_generations": 3}, "`num_generations` 3 must divide a rollout of 64"),
        ({"ptx_max_length": 1}, "`ptx_max_length` must be at least 2"),
        ({"ema_decay": 0.0}, "`ema_decay` must be between 0 and 1"),
        ({"ema_decay": 1.0}, "`ema_decay` must be between 0 and 1"),
        ({"ema_decay": -0.5}, "`ema_decay` must be between 0 and 1"),
        ({"value_learning_rate": -1.0}, "`value_learning_rate` must be at least 0"),
    ],
)
def test_settings_out_of_range_are_rejected(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        PPOConfig(str(tmp_path), use_cpu=True, bf16=False, **changes)


@pytest.fixture
def make_choosing(make_ppo_roles, tokenizer, tmp_path):
    """A short run that loads the best of two checkpoints at the end."""
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


def test_unmeasured_best_metric_is_rejected_before_training(make_choosing, tmp_path):
    """The default metric is the held-out reward."""
    with pytest.raises(ConfigError, match=r"'eval_scores', which.*objective/scores, objective/kl"):
        make_choosing(metric_for_best_model="eval_scores")
    trainer = make_choosing()
    trainer.train()
    assert trainer.args.metric_for_best_model == "objective/rlhf_reward"
    rows = [r for r in logged(tmp_path) if "eval_objective/scores" in r]
    measured = {n.removeprefix("eval_") for n in rows[0] if n.startswith("eval_")}
    assert measured == set(EVALUATED)
    best = max(rows[1:], key=lambda r: r["eval_objective/rlhf_reward"])["step"]
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")


def test_best_checkpoint_by_own_metric(make_choosing, tmp_path):
    def shortness(completions, **_):
        return {"shortness": -len(str(completions))}

    make_choosing(metric_for_best_model="shortness", eval_metrics=shortness).train()
    with pytest.raises(ConfigError, match=r"ended, or a metric of `eval_metrics`"):
        make_choosing(metric_for_best_model="objective/score", eval_metrics=shortness)
    choice = {"metric_for_best_model": "length", "eval_metrics": shortness}
    unknown = make_choosing(tmp_path / "other", **choice)
    with pytest.raises(ConfigError, match=r"'length', which this evaluation.*ended, shortness"):
        unknown.train()


def test_default_best_metric(tmp_path):
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
    steered = {"kl_target": 2.0}  # β differs between checkpoints
    assert chosen(**best, **steered) == ("objective/scores", True)
    assert chosen(**best, metric_for_best_model="eval_objective/kl")[1] is False


def test_unusable_data_is_rejected(ppo_roles, tokenizer, tmp_path):
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
    with pytest.raises(ConfigError, match="prompt 1 of 2 is empty"):
        make(ppo_roles, tokenizer, Dataset.from_dict({"prompt": ["a", ""]}), tmp_path)
    with pytest.raises(ConfigError, match="must be functions, got 'length'"):
        make(ppo_roles, tokenizer, prompts(), tmp_path, reward_funcs=["length"])
    for epochs in (0, -1):
        options = {"total_episodes": None, "num_train_epochs": epochs}
        with pytest.raises(ConfigError, match="so nothing would be trained"):
            make(ppo_roles, tokenizer, prompts(), tmp_path, **options)
    with pytest.raises(ConfigError, match="none of 1 pretraining texts has two tokens"):
        make(ppo_roles, tokenizer, prompts(), tmp_path, ptx_texts=[""], ptx_coef=0.1)
    trainer = make(ppo_roles, tokenizer, prompts(), tmp_path)
    with pytest.raises(ConfigError, match="pass an `eval_dataset` to PPOTrainer"):
        trainer.evaluate()
    assert "eval_objective/scores" in trainer.evaluate(prompts().select(range(2)))


def test_tokenizer_needs_eos_and_template(ppo_roles, tiny_base, tokenizer, tmp_path):
    """A tokenizer from transformers, not from our loader."""
    plain = AutoTokenizer.from_pretrained(tiny_base)
    plain.pad_token = None
    make(ppo_roles, plain, prompts(), tmp_path, max_steps=1).train()
    assert plain.pad_token == plain.eos_token
    plain.chat_template = None
    with pytest.raises(ConfigError, match="there is no chat template"):
        make(ppo_roles, plain, prompts(), tmp_path)
    plain.eos_token = None
    with pytest.raises(ConfigError, match="the tokenizer has no EOS token"):
        make(ppo_roles, plain, prompts(), tmp_path)


def test_small_dataset_and_partial_rollouts(make_ppo_roles, tokenizer, tmp_path):
    """One prompt for eight episodes, five episodes per rollout, a run of three of four steps."""

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


def test_episodes_are_counted_without_dropped_prompts(ppo_roles, tokenizer, tmp_path):
    """Eight of sixteen prompts are short enough; one epoch of them is one rollout."""
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
    assert trainer.num_rollouts == math.ceil(len(trainer.train_dataset) / 8)
    assert len(trainer.train_dataset) < len(prompts())


def test_smaller_value_replaces_saved_adapter(
    make_ppo_roles, model_config, sft_run, reward_run, tokenizer, tmp_path
):
    trainer = make(make_ppo_roles(), tokenizer, prompts(), tmp_path, max_steps=1)
    trainer.save_model()
    assert (tmp_path / "value" / "adapter_model.safetensors").is_file()
    roles = roles_with(model_config, sft_run, [str(reward_run)], value="head")
    make(roles, tokenizer, prompts(), tmp_path, max_steps=1, value_role="head").save_model()
    assert [f.name for f in (tmp_path / "value").iterdir()] == ["head.safetensors"]
    assert not (tmp_path / "last").exists()  # it holds the policy beside its average


def test_function_that_returns_none_adds_nothing(ppo_roles, tokenizer, tmp_path):
    def silent(completions, **_):
        return [None] * len(completions)

    make(ppo_roles, tokenizer, prompts(), tmp_path, reward_funcs=[silent]).train()
    row = logged(tmp_path)[0]
    assert row["rewards/silent/mean"] is None
    assert row["objective/scores"] is not None


def test_function_metrics_and_columns_are_logged(ppo_roles, tokenizer, tmp_path):
    steps = []

    def judge(completions, trainer_state, log_metric, log_extra, **_):
        steps.append(trainer_state.global_step)
        log_metric("judged/share", 0.25)
        log_metric("judged/share", 0.75)
        log_extra("letters", [len(texts[0]["content"]) for texts in completions])
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
        reward_funcs=judge,
        **settings,
    )
    trainer.train()
    assert steps == [0, 0, 4, 8]  # an evaluation, two rollouts, and an evaluation
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["judged/share"] for row in rows if "judged/share" in row] == [0.5, 0.5]
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    texts = [row["completion"][0]["content"] for row in samples]
    assert [row["letters"] for row in samples] == list(map(len, texts))
    assert all(isinstance(row["score"], float) for row in samples)
    assert {row["step"] for row in samples} == {0, 8}
    assert max(row["step"] for row in rows) == 8
