"""Known mistakes of PPO implementations (docs/ppo.md, Traps), each with its test."""

import json

import pytest
import torch
from datasets import Dataset
from transformers import GenerationConfig
from trl import SFTConfig

from tests.conftest import fresh_roles, randomise
from tests.ppo.record import STOPS
from tests.ppo.setup import make, prompts
from toolkit.data.encoding import encode_completion, encode_prompt
from toolkit.errors import CheckpointError, ConfigError, DatasetError
from toolkit.models.base import load_base
from toolkit.models.passes import collate, completion_logprobs, state_values
from toolkit.models.roles import POLICY, REFERENCE, REWARD, VALUE
from toolkit.models.tokenizer import load_tokenizer
from toolkit.options.command_line import parse
from toolkit.ppo import experience as experience_module
from toolkit.ppo import rollout
from toolkit.ppo import updates as updates_module
from toolkit.ppo.config import PPOConfig
from toolkit.ppo.roles import attach_ppo_roles
from toolkit.reward.adapter import tokenize_pairs
from toolkit.sampling.decoding import Decoded, decode
from toolkit.trainers.callbacks import SAMPLES_FILE

pytestmark = pytest.mark.slow

EOS = 2
ONE_STEP = {"per_device_train_batch_size": 8, "num_mini_batches": 1, "num_ppo_epochs": 1}
ONE_STEP |= {"total_episodes": 8, "max_grad_norm": 0.0, "kl_coef": 0.0}


def logged(folder):
    return [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]


def say(monkeypatch, completions):
    """Replace the policy's samples."""
    monkeypatch.setattr(
        rollout,
        "sample",
        lambda model, prompts, **_: Decoded([list(c) for c in completions][: len(prompts)]),
    )


def rollout_of(trainer, rows=8):
    torch.manual_seed(0)
    return trainer.make_experience(list(trainer.train_dataset.select(range(rows))))


def trainable(roles):
    return {n: p.detach().clone() for n, p in roles.model.named_parameters() if p.requires_grad}


# ---- where the policy starts


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_policy_starts_as_reference_and_not_as_base(ppo_roles, tokenizer, tmp_path, temperature):
    """One pass each is bit-identical; log-probabilities of sampling differ by rounding."""
    ppo_roles.base.generation_config.eos_token_id = STOPS
    experience = rollout_of(
        make(ppo_roles, tokenizer, prompts(), tmp_path, temperature=temperature)
    )
    batch, _ = experience.rows(list(range(8)), tokenizer.pad_token_id)
    logprobs = {}
    for name in (POLICY, REFERENCE, None):
        with torch.no_grad(), ppo_roles.using(name) as model:
            logprobs[name], _ = completion_logprobs(model, batch, temperature=temperature)
    assert torch.equal(logprobs[POLICY], logprobs[REFERENCE])
    torch.testing.assert_close(experience.logprobs, logprobs[POLICY], atol=2e-5, rtol=0)
    torch.testing.assert_close(experience.ref_logprobs, logprobs[REFERENCE], atol=2e-5, rtol=0)
    assert (logprobs[POLICY] - logprobs[None])[experience.mask].abs().mean() > 0.01


@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_ratio_is_one_in_first_minibatch(
    ppo_roles, tokenizer, tmp_path, monkeypatch, checkpointing
):
    """The rollout is padded otherwise. The model is in train mode, and its attention has dropout as a
    number, which is no module that eval mode switches off."""
    for layer in ppo_roles.base.model.layers:
        layer.self_attn.attention_dropout = 0.5
    ppo_roles.base.generation_config.eos_token_id = STOPS
    deviations, loss = [], updates_module.policy_loss
    trainer = make(
        ppo_roles,
        tokenizer,
        prompts(),
        tmp_path,
        temperature=0.7,
        local_rollout_forward_batch_size=3,
        gradient_checkpointing=checkpointing,
        max_steps=1,
    )

    def watched_loss(new, old, advantages, mask, **options):
        deviations.append(((new - old).exp() - 1)[mask].abs().max().item())
        return loss(new, old, advantages, mask, **options)

    monkeypatch.setattr(updates_module, "policy_loss", watched_loss)
    trainer.train()
    assert len({len(c) for c in trainer.experience.completions}) > 2
    assert max(deviations) < 1e-4


@pytest.mark.parametrize("value", ["adapter", "zero", "head"])
def test_value_starts_as_reward_model_or_zero(
    model_config, sft_run, reward_run, tokenizer, tmp_path, value
):
    roles = fresh_roles(model_config)
    attach_ppo_roles(
        roles, policy=str(sft_run), rewards=[str(reward_run)], model=model_config, value=value
    )
    batch = collate([[1, 20, 30], [1, 25]], [[50, EOS], [70, 80, EOS]], pad_id=0)
    if value == "adapter":
        found = []
        for name in (VALUE, REWARD):
            with torch.no_grad(), roles.using(name) as model:
                found.append(state_values(model, roles.heads[name], batch))
        torch.testing.assert_close(*found, atol=1e-6, rtol=1e-6)
        assert found[0].abs().max() > 0.1
        weights = dict(roles.model.named_parameters())
        copied = {n: n.replace(f".{VALUE}.", f".{REWARD}.") for n in weights if f".{VALUE}." in n}
        assert all(torch.equal(weights[n], weights[copied[n]]) for n in copied if "lora_" in n)
        return
    assert not roles.heads[VALUE].weight.any() and not roles.heads[VALUE].bias.any()
    found = rollout_of(make(roles, tokenizer, prompts(), tmp_path))
    assert not found.values.any()
    if value == "zero":  # LoRA's identity: the bare base's states
        hidden = []
        for name in (VALUE, None):
            with torch.no_grad(), roles.using(name) as model:
                hidden.append(model(input_ids=batch.input_ids).logits)
        assert torch.equal(*hidden)


# ---- sampled and scored distribution are the same


@pytest.mark.parametrize("option", ["top_p", "top_k", "min_p", "repetition_penalty"])
def test_no_option_changes_the_sampled_distribution(tmp_path, option):
    file = tmp_path / "ppo.yaml"
    file.write_text(f"{option}: 1", encoding="utf-8")
    with pytest.raises(ConfigError, match=f"unknown option `{option}`"):
        parse((PPOConfig,), [f"--config={file}", "--output_dir", str(tmp_path)])
    with pytest.raises(TypeError, match=option):
        PPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **{option: 1})


def test_sampling_defaults_are_dropped_and_stop_tokens_kept(tiny_base, model_config, tmp_path):
    base, tokenizer = load_base(model_config)
    base.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    GenerationConfig(
        do_sample=True, top_k=1, top_p=0.1, repetition_penalty=5.0, eos_token_id=[7, EOS]
    ).save_pretrained(tmp_path)
    model_config.model_name_or_path = str(tmp_path)
    loaded, _ = load_base(model_config)
    plain = GenerationConfig()
    for name in ("do_sample", "top_k", "top_p", "repetition_penalty"):
        assert getattr(loaded.generation_config, name) == getattr(plain, name)
    assert sorted(loaded.generation_config.eos_token_id) == [EOS, 7]


def test_sampled_kl_estimates_exact_kl(ppo_roles):
    """With a truncated distribution the mean log-ratio would be no KL, and could be negative."""
    randomise(ppo_roles, POLICY, seed=11)
    prompt, temperature, draws = [1, 20, 30], 0.8, 1000
    exact = {}
    for name in (POLICY, REFERENCE):
        with torch.no_grad(), ppo_roles.using(name) as model:
            logits = model(input_ids=torch.tensor([prompt])).logits[0, -1].double()
        exact[name] = (logits / temperature).log_softmax(-1)
    p, difference = exact[POLICY].exp(), exact[POLICY] - exact[REFERENCE]
    expected = (p * difference).sum()
    deviation = (p * (difference - expected) ** 2).sum().sqrt()
    torch.manual_seed(0)
    with ppo_roles.merged(POLICY) as model:
        completions = decode(
            model, [prompt] * draws, max_new_tokens=1, temperature=temperature, stop=[], pad_id=0
        ).completions
    batch = collate([prompt] * draws, completions, pad_id=0)
    logprobs = []
    for name in (POLICY, REFERENCE):
        with torch.no_grad(), ppo_roles.using(name) as model:
            logprobs.append(completion_logprobs(model, batch, temperature=temperature)[0])
    mean = (logprobs[0] - logprobs[1]).mean().item()
    assert expected > 0.1
    assert mean > 0
    assert abs(mean - expected) < 4 * deviation / draws**0.5


# ---- ends, lengths, padding


def test_end_token_is_trained(ppo_roles, tokenizer, tmp_path, monkeypatch):
    """Only the last real token has an advantage; one step raises its probability."""
    completions = [[50, 60, EOS], [70, EOS], [EOS], [80, 81, 82, 83, EOS]] * 2
    say(monkeypatch, completions)

    def only_the_last(advantages, mask, **_):
        last = torch.zeros_like(advantages)
        last[range(len(mask)), mask.sum(1) - 1] = 1.0
        return last

    monkeypatch.setattr(experience_module, "whiten", only_the_last)
    trainer = make(ppo_roles, tokenizer, prompts(), tmp_path, learning_rate=1e-3, **ONE_STEP)
    trainer.train()
    experience = trainer.experience
    last = experience.mask.sum(1) - 1
    rows = torch.arange(8)
    assert experience.mask[rows, last].all()
    assert [c[-1] for c in experience.completions] == [EOS] * 8
    batch, old = experience.rows(list(range(8)), tokenizer.pad_token_id)
    with torch.no_grad(), ppo_roles.using(POLICY) as model:
        now, _ = completion_logprobs(model, batch, temperature=1.0)
    assert ((now - old["logprobs"])[rows, last] > 1e-3).all()


def test_missing_end_is_penalised_and_stop_token_is_not(
    make_ppo_roles, tokenizer, tmp_path, monkeypatch
):
    """The model declares token 7 as a stop token beside EOS."""
    completions = [
        [50, 7],
        [50, EOS],
        [50, 60],
        [7],
        [60],
        [50, 60, 70, 7],
        [50, 60, 70, 80],
        [EOS],
    ]
    ended = torch.tensor([True, True, False, True, False, True, False, True])
    say(monkeypatch, completions)
    first_returns = {}
    for penalty in (None, 0.75):
        roles = make_ppo_roles()
        roles.base.generation_config.eos_token_id = [EOS, 7]
        trainer = make(
            roles,
            tokenizer,
            prompts(),
            tmp_path / str(penalty),
            missing_eos_penalty=penalty,
            lam=1.0,
            kl_coef=0.0,
        )
        first_returns[penalty] = rollout_of(trainer).returns[:, 0]
        assert trainer.open_rollout.metrics["val/num_eos_tokens"] == [5.0]
    penalties = first_returns[None] - first_returns[0.75]
    torch.testing.assert_close(penalties, 0.75 * ~ended, atol=1e-5, rtol=0)


def test_sampling_stops_at_the_models_stop_tokens(ppo_roles, tokenizer, tmp_path):
    ppo_roles.base.generation_config.eos_token_id = STOPS
    trainer = make(ppo_roles, tokenizer, prompts(), tmp_path, missing_eos_penalty=None)
    experience = rollout_of(trainer)
    ends = [c[-1] in STOPS for c in experience.completions]
    assert sum(ends) > 2
    for completion, end in zip(experience.completions, ends, strict=True):
        assert not set(completion[:-1]) & {EOS, *STOPS}
        assert end or len(completion) == 8
    assert trainer.open_rollout.metrics["objective/ended"] == [pytest.approx(sum(ends) / 8)]


EXTREMES = {
    "one token each": [[EOS]] * 8,
    "one token, of which half no end": [[EOS], [50]] * 4,
    "all of full length": [[50 + i] * 8 for i in range(8)],
    "full length, one token, nothing": [[50] * 8, [EOS], [], [60] * 7 + [EOS]] * 2,
}


@pytest.mark.parametrize("completions", EXTREMES.values(), ids=EXTREMES)
def test_extreme_lengths_train_without_nan(
    ppo_roles, tokenizer, tmp_path, monkeypatch, completions
):
    say(monkeypatch, completions)
    before = trainable(ppo_roles)
    make(ppo_roles, tokenizer, prompts(), tmp_path, num_mini_batches=2).train()
    for row in logged(tmp_path):
        assert None not in row.values(), row  # what is not finite is written as null
    after = trainable(ppo_roles)
    assert all(torch.isfinite(p).all() for p in after.values())
    assert any(not torch.equal(after[n], p) for n, p in before.items())


def test_empty_completion_gets_no_reward_or_advantage(ppo_roles, tokenizer, tmp_path, monkeypatch):
    say(monkeypatch, EXTREMES["full length, one token, nothing"])
    experience = rollout_of(make(ppo_roles, tokenizer, prompts(), tmp_path))
    for row in (2, 6):
        for name in ("mask", "logprobs", "ref_logprobs", "values", "advantages", "returns"):
            assert not getattr(experience, name)[row].any(), name


def test_accumulation_of_ragged_micro_batches_changes_nothing(
    make_ppo_roles, tokenizer, tmp_path, monkeypatch
):
    """Lengths are 1 to 8: a mean of micro-batch means would weigh one token like eight."""
    completions = [[50 + i] * i + [EOS] for i in range(8)]
    say(monkeypatch, completions)
    ends = []
    for size, pieces in ((8, 1), (2, 4), (1, 8)):
        roles = make_ppo_roles()
        options = ONE_STEP | {
            "per_device_train_batch_size": size,
            "gradient_accumulation_steps": pieces,
            "optim": "sgd",
            "learning_rate": 1.0,
            "lr_scheduler_type": "constant",
            "ent_coef": 0.1,
            "ptx_coef": 0.5,
            "ptx_batch_size": 7,
        }
        before = trainable(roles)
        texts = ["Hello. " * n for n in range(1, 12)]
        folder = tmp_path / str(pieces)
        make(roles, tokenizer, prompts(), folder, ptx_texts=texts, **options).train()
        ends.append({n: p - before[n] for n, p in trainable(roles).items()})
        logs = logged(tmp_path / str(pieces))[0]
        ends[-1]["logs"] = torch.tensor(
            [logs[n] for n in logs if n.startswith(("loss/", "policy/")) or n == "val/ratio"]
        )
    for name, whole in ends[0].items():
        for cut in ends[1:]:
            torch.testing.assert_close(cut[name], whole, atol=2e-5, rtol=1e-4)
    assert max(float(t.abs().max()) for n, t in ends[0].items() if n != "logs") > 0.1


# ---- one rendering of a chat for all roles

CHAT = [
    {"role": "user", "content": "Hello."},
    {"role": "assistant", "content": "Hello to you too."},
    {"role": "user", "content": "What is 1 plus 2?"},
]
ANSWER = [{"role": "assistant", "content": "It is 3."}]


def test_sft_reward_and_ppo_tokenize_chats_alike(ppo_roles, model_config, tokenizer, tmp_path):
    from toolkit.trainers.supervised import SFTTrainer

    rows = Dataset.from_list([{"prompt": CHAT, "completion": ANSWER}])
    settings = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "report_to": []}
    base, _ = load_base(model_config)
    sft = SFTTrainer(base, SFTConfig(**settings), processing_class=tokenizer, train_dataset=rows)
    pairs = Dataset.from_list([{"prompt": CHAT, "chosen": ANSWER, "rejected": CHAT[1:2]}])
    reward = tokenize_pairs(pairs, tokenizer, max_length=None, place="train")[0]
    ppo = make(ppo_roles, tokenizer, rows.select_columns("prompt"), tmp_path / "ppo")
    prompt = ppo.train_dataset[0]["prompt_ids"]
    whole = prompt + encode_completion(tokenizer, CHAT, ANSWER)
    assert list(sft.train_dataset[0]["input_ids"]) == whole
    assert reward["chosen_ids"] == whole
    assert reward["rejected_ids"][: len(prompt)] == prompt
    assert tokenizer.apply_chat_template(CHAT + ANSWER, return_dict=False) == whole
    assert prompt.count(EOS) == 3  # each turn before the answer ends with EOS
    assert whole[-1] == EOS


@pytest.mark.parametrize("part", ["tokenizer", "chat_template"])
def test_role_with_other_tokenizer_or_template_is_rejected(model_config, reward_run, part):
    stored = json.loads((reward_run / "base.json").read_text())
    (reward_run / "base.json").write_text(json.dumps(stored | {part: "another"}))
    roles = fresh_roles(model_config)
    with pytest.raises(CheckpointError, match=f"with {part} another"):
        roles.attach(REWARD, reward_run, head=True)


def test_template_without_prompt_prefix_is_rejected(tokenizer):
    """Its generation prompt differs from the text that it writes before an answer."""
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>Well, {% endif %}"
    )
    with pytest.raises(DatasetError, match="prompt as a prefix"):
        encode_completion(tokenizer, CHAT, ANSWER)
    pairs = Dataset.from_list([{"prompt": CHAT, "chosen": ANSWER, "rejected": CHAT[1:2]}])
    with pytest.raises(DatasetError, match="prompt as a prefix"):
        tokenize_pairs(pairs, tokenizer, max_length=None, place="train")


def test_no_token_spans_prompt_and_completion(tokenizer):
    """`He` and `llo` are tokenized separately, so the prompt's ids are a prefix of the whole."""
    joined = encode_prompt(tokenizer, "He") + encode_completion(tokenizer, "He", "llo")
    assert joined[:-1] != encode_prompt(tokenizer, "Hello")
    assert tokenizer.decode(joined[:-1]) == "Hello"
    assert joined[: len(encode_prompt(tokenizer, "He"))] == encode_prompt(tokenizer, "He")


# ---- resuming


@pytest.mark.parametrize("saved", [3, 4], ids=["inside a rollout", "between two"])
def test_resumed_run_has_identical_log_and_weights(make_ppo_roles, tokenizer, tmp_path, saved):
    """Scores, losses, adaptive coefficient, skipped updates, learning rate: all except times."""
    options = {
        "kl_target": 0.001,
        "kl_horizon": 40,
        "target_kl": 0.05,
        "total_episodes": 32,
        "save_strategy": "steps",
        "save_steps": saved,
        "logging_steps": 2,  # a mean over two steps, of which one is before the checkpoint
        "eval_strategy": "steps",
        "eval_steps": 100,
    }
    runs, weights = {}, {}
    for name, resume in (("whole", None), ("again", f"checkpoint-{saved}")):
        roles = make_ppo_roles()
        roles.base.generation_config.eos_token_id = STOPS
        trainer = make(
            roles, tokenizer, prompts(), tmp_path / name, held_out=prompts().select([0]), **options
        )
        torch.manual_seed(0 if resume is None else 99)
        trainer.train(resume_from_checkpoint=resume and str(tmp_path / "whole" / resume))
        samples = (tmp_path / name / SAMPLES_FILE).read_text().splitlines()
        eval_steps = [json.loads(line)["step"] for line in samples]
        assert eval_steps == ([0, 16] if resume is None else [16])  # the start is evaluated once
        rows = [r for r in logged(tmp_path / name) if "episode" in r and r["step"] > saved]
        runs[name] = [{k: v for k, v in r.items() if not k.startswith("time/")} for r in rows]
        weights[name] = {n: p.detach().clone() for n, p in roles.model.named_parameters()}
    assert all(torch.equal(p, weights["whole"][n]) for n, p in weights["again"].items())
    assert runs["again"] == runs["whole"]
    assert all("loss" in row for row in runs["whole"])
    assert len({r["objective/kl_coef"] for r in runs["whole"] if "objective/kl_coef" in r}) > 1
    assert {r["policy/updates_skipped"] for r in runs["whole"]} != {0.0}


# ---- tokenizers


def tokenizers(tokenizer, tiny_base, folder):
    """The tiny base's tokenizer, without a pad token, and with pad = EOS; each padding left and right."""
    variants = {}
    for name, pad in (
        ("own pad", tokenizer.pad_token),
        ("none", None),
        ("eos", tokenizer.eos_token),
    ):
        variant = load_tokenizer(str(tiny_base))
        variant.pad_token = pad
        variant.save_pretrained(folder / name)
        for side in ("left", "right"):
            again = load_tokenizer(str(folder / name))
            again.padding_side = side
            variants[name, side] = again
    return variants


def test_pad_token_and_padding_side_change_nothing(make_ppo_roles, tokenizer, tiny_base, tmp_path):
    """With multi-turn prompts, which contain EOS: completions, weights and logs are the same."""
    chats = [CHAT, CHAT[:1], CHAT[2:], [*CHAT, *ANSWER, CHAT[0]]] * 4
    weights_of, completions, logs = {}, {}, {}
    for (name, side), variant in tokenizers(tokenizer, tiny_base, tmp_path).items():
        assert (variant.pad_token_id == EOS) is (name != "own pad")
        roles = make_ppo_roles()
        roles.base.generation_config.eos_token_id = STOPS
        folder = tmp_path / f"{name}-{side}"
        trainer = make(roles, variant, Dataset.from_dict({"prompt": chats}), folder)
        torch.manual_seed(0)
        trainer.train()
        key = f"{name}, {side}"
        weights_of[key], completions[key] = trainable(roles), trainer.experience.completions
        logs[key] = [
            {k: v for k, v in row.items() if not k.startswith("time/")}
            for row in logged(folder)
            if "episode" in row
        ]
    first = weights_of.pop("own pad, left")
    assert sum(EOS in ids[:-1] for ids in trainer.train_dataset["prompt_ids"]) >= 8
    for key, weights in weights_of.items():
        assert completions[key] == completions["own pad, left"]
        for name, weight in weights.items():
            torch.testing.assert_close(weight, first[name], atol=1e-6, rtol=1e-6)
        assert logs[key] == [pytest.approx(row, abs=2e-6) for row in logs["own pad, left"]]
