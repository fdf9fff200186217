"""Traps of PPO that no other file catches at the trainer's level, each with its test."""

import json

import pytest
import torch
from datasets import Dataset
from transformers import GenerationConfig
from trl import SFTConfig

from tests.conftest import fresh_roles, randomise
from tests.ppo.record import STOPS
from tests.ppo.setup import make, prompts
from toolkit.errors import CheckpointError, ConfigError
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
from toolkit.sampling.generation import encode_completion, encode_prompt
from toolkit.trainers.callbacks import SAMPLES_FILE

EOS = 2
ONE_STEP = {"per_device_train_batch_size": 8, "num_mini_batches": 1, "num_ppo_epochs": 1}
ONE_STEP |= {"total_episodes": 8, "max_grad_norm": 0.0, "kl_coef": 0.0}


def logged(folder):
    return [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]


def say(monkeypatch, completions):
    """Let the policy's samples be these."""
    monkeypatch.setattr(
        rollout,
        "sample",
        lambda model, asked, **_: Decoded([list(c) for c in completions][: len(asked)]),
    )


def rollout_of(trainer, rows=8):
    torch.manual_seed(0)
    return trainer.make_experience(list(trainer.train_dataset.select(range(rows))))


def trainable(roles):
    return {n: p.detach().clone() for n, p in roles.model.named_parameters() if p.requires_grad}


# ---- where the policy starts


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_at_step_0_policy_equals_reference_to_the_bit_and_neither_is_the_base(
    ppo_roles, tokenizer, tmp_path, temperature
):
    """In one pass each; what a rollout kept was drawn token by token, and differs by its rounding."""
    ppo_roles.base.generation_config.eos_token_id = STOPS
    found = rollout_of(make(ppo_roles, tokenizer, prompts(), tmp_path, temperature=temperature))
    batch, _ = found.rows(list(range(8)), tokenizer.pad_token_id)
    scored = {}
    for name in (POLICY, REFERENCE, None):
        with torch.no_grad(), ppo_roles.using(name) as model:
            scored[name], _ = completion_logprobs(model, batch, temperature=temperature)
    assert torch.equal(scored[POLICY], scored[REFERENCE])
    torch.testing.assert_close(found.logprobs, scored[POLICY], atol=2e-5, rtol=0)
    torch.testing.assert_close(found.ref_logprobs, scored[REFERENCE], atol=2e-5, rtol=0)
    assert (scored[POLICY] - scored[None])[found.mask].abs().mean() > 0.01


@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_tokens_ratio_is_one_in_the_first_minibatch(
    ppo_roles, tokenizer, tmp_path, monkeypatch, checkpointing
):
    """However the rollout was padded when it was scored, and though the model is in train mode and
    its attention has dropout, which is a number there and no module."""
    for layer in ppo_roles.base.model.layers:
        layer.self_attn.attention_dropout = 0.5
    ppo_roles.base.generation_config.eos_token_id = STOPS
    seen, loss = [], updates_module.policy_loss
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

    def watched(new, old, advantages, mask, **options):
        seen.append(((new - old).exp() - 1)[mask].abs().max().item())
        return loss(new, old, advantages, mask, **options)

    monkeypatch.setattr(updates_module, "policy_loss", watched)
    trainer.train()
    assert len({len(c) for c in trainer.experience.completions}) > 2
    assert max(seen) < 1e-4


@pytest.mark.parametrize("value", ["adapter", "zero", "head"])
def test_the_value_starts_as_the_reward_model_or_at_zero(
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


# ---- what is sampled is what is scored


@pytest.mark.parametrize("option", ["top_p", "top_k", "min_p", "repetition_penalty"])
def test_there_is_no_option_that_samples_from_another_distribution(tmp_path, option):
    file = tmp_path / "ppo.yaml"
    file.write_text(f"{option}: 1", encoding="utf-8")
    with pytest.raises(ConfigError, match=f"unknown option `{option}`"):
        parse((PPOConfig,), [f"--config={file}", "--output_dir", str(tmp_path)])
    with pytest.raises(TypeError, match=option):
        PPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **{option: 1})


def test_a_hub_models_own_sampling_defaults_are_dropped_and_its_stop_tokens_kept(
    tiny_base, model_config, tmp_path
):
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


def test_the_sampled_kl_estimates_the_exact_kl_and_is_not_negative(ppo_roles):
    """A sampler that cut off tails would give a mean log-ratio that is no KL, and may be negative."""
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
        said = decode(
            model, [prompt] * draws, max_new_tokens=1, temperature=temperature, stop=[], pad_id=0
        ).completions
    batch = collate([prompt] * draws, said, pad_id=0)
    found = []
    for name in (POLICY, REFERENCE):
        with torch.no_grad(), ppo_roles.using(name) as model:
            found.append(completion_logprobs(model, batch, temperature=temperature)[0])
    mean = (found[0] - found[1]).mean().item()
    assert expected > 0.1
    assert mean > 0
    assert abs(mean - expected) < 4 * deviation / draws**0.5


# ---- ends, lengths, padding


def test_the_end_token_is_learnt_from(ppo_roles, tokenizer, tmp_path, monkeypatch):
    """Only the last real token of each completion has an advantage; one step makes it likelier."""
    said = [[50, 60, EOS], [70, EOS], [EOS], [80, 81, 82, 83, EOS]] * 2
    say(monkeypatch, said)

    def only_the_last(advantages, mask, **_):
        found = torch.zeros_like(advantages)
        found[range(len(mask)), mask.sum(1) - 1] = 1.0
        return found

    monkeypatch.setattr(experience_module, "whiten", only_the_last)
    trainer = make(ppo_roles, tokenizer, prompts(), tmp_path, learning_rate=1e-3, **ONE_STEP)
    trainer.train()
    learnt = trainer.experience
    last = learnt.mask.sum(1) - 1
    rows = torch.arange(8)
    assert learnt.mask[rows, last].all()
    assert [c[-1] for c in learnt.completions] == [EOS] * 8
    batch, old = learnt.rows(list(range(8)), tokenizer.pad_token_id)
    with torch.no_grad(), ppo_roles.using(POLICY) as model:
        now, _ = completion_logprobs(model, batch, temperature=1.0)
    assert ((now - old["logprobs"])[rows, last] > 1e-3).all()


def test_a_missing_end_is_penalised_and_a_custom_stop_token_is_an_end(
    make_ppo_roles, tokenizer, tmp_path, monkeypatch
):
    """The model declares token 7 beside EOS; 7 inside a completion that goes on cannot happen."""
    said = [[50, 7], [50, EOS], [50, 60], [7], [60], [50, 60, 70, 7], [50, 60, 70, 80], [EOS]]
    ended = torch.tensor([True, True, False, True, False, True, False, True])
    say(monkeypatch, said)
    first = {}
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
        first[penalty] = rollout_of(trainer).returns[:, 0]
        assert trainer._metrics["val/num_eos_tokens"] == [5.0]
    taken = first[None] - first[0.75]
    torch.testing.assert_close(taken, 0.75 * ~ended, atol=1e-5, rtol=0)


def test_sampling_stops_at_the_token_that_the_model_declares(ppo_roles, tokenizer, tmp_path):
    ppo_roles.base.generation_config.eos_token_id = STOPS
    trainer = make(ppo_roles, tokenizer, prompts(), tmp_path, missing_eos_penalty=None)
    found = rollout_of(trainer)
    ends = [c[-1] in STOPS for c in found.completions]
    assert sum(ends) > 2
    for said, end in zip(found.completions, ends, strict=True):
        assert not set(said[:-1]) & {EOS, *STOPS}
        assert end or len(said) == 8
    assert trainer._metrics["objective/ended"] == [pytest.approx(sum(ends) / 8)]


EXTREMES = {
    "one token each": [[EOS]] * 8,
    "one token, of which half no end": [[EOS], [50]] * 4,
    "all of full length": [[50 + i] * 8 for i in range(8)],
    "full length, one token, nothing": [[50] * 8, [EOS], [], [60] * 7 + [EOS]] * 2,
}


@pytest.mark.parametrize("said", EXTREMES.values(), ids=EXTREMES)
def test_extreme_lengths_train_without_a_nan(ppo_roles, tokenizer, tmp_path, monkeypatch, said):
    say(monkeypatch, said)
    before = trainable(ppo_roles)
    make(ppo_roles, tokenizer, prompts(), tmp_path, num_mini_batches=2).train()
    for row in logged(tmp_path):
        assert None not in row.values(), row  # what is not finite is written as null
    after = trainable(ppo_roles)
    assert all(torch.isfinite(p).all() for p in after.values())
    assert any(not torch.equal(after[n], p) for n, p in before.items())


def test_a_row_of_padding_alone_gets_no_reward_and_no_advantage(
    ppo_roles, tokenizer, tmp_path, monkeypatch
):
    say(monkeypatch, EXTREMES["full length, one token, nothing"])
    found = rollout_of(make(ppo_roles, tokenizer, prompts(), tmp_path))
    for row in (2, 6):
        for name in ("mask", "logprobs", "ref_logprobs", "values", "advantages", "returns"):
            assert not getattr(found, name)[row].any(), name


def test_accumulation_over_ragged_micro_batches_changes_no_update(
    make_ppo_roles, tokenizer, tmp_path, monkeypatch
):
    """Lengths 1 to 8: a mean of micro-batch means would weigh a lone token like eight."""
    said = [[50 + i] * i + [EOS] for i in range(8)]
    say(monkeypatch, said)
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


def test_a_chats_token_ids_are_the_same_for_sft_reward_and_ppo(
    ppo_roles, model_config, tokenizer, tmp_path
):
    from toolkit.trainers.supervised import SFTTrainer

    rows = Dataset.from_list([{"prompt": CHAT, "completion": ANSWER}])
    settings = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "report_to": []}
    base, _ = load_base(model_config)
    taught = SFTTrainer(base, SFTConfig(**settings), processing_class=tokenizer, train_dataset=rows)
    pairs = Dataset.from_list([{"prompt": CHAT, "chosen": ANSWER, "rejected": CHAT[1:2]}])
    compared = tokenize_pairs(pairs, tokenizer, max_length=None, place="train")[0]
    asked = make(ppo_roles, tokenizer, rows.select_columns("prompt"), tmp_path / "ppo")
    prompt = asked.train_dataset[0]["prompt_ids"]
    whole = prompt + encode_completion(tokenizer, CHAT, ANSWER)
    assert list(taught.train_dataset[0]["input_ids"]) == whole
    assert compared["chosen_ids"] == whole
    assert compared["rejected_ids"][: len(prompt)] == prompt
    assert tokenizer.apply_chat_template(CHAT + ANSWER, return_dict=False) == whole
    assert prompt.count(EOS) == 3  # the turns before the answer each end with it
    assert whole[-1] == EOS


@pytest.mark.parametrize("part", ["tokenizer", "chat_template"])
def test_a_role_trained_with_another_tokenizer_or_template_is_refused(
    model_config, reward_run, part
):
    stored = json.loads((reward_run / "base.json").read_text())
    (reward_run / "base.json").write_text(json.dumps(stored | {part: "another"}))
    roles = fresh_roles(model_config)
    with pytest.raises(CheckpointError, match=f"with {part} another"):
        roles.attach(REWARD, reward_run, head=True)


def test_a_template_whose_prompt_is_no_prefix_of_the_whole_is_refused(tokenizer):
    """One that announces the answer in other words than it later writes before it."""
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>Well, {% endif %}"
    )
    with pytest.raises(ValueError, match="prompt as a prefix"):
        encode_completion(tokenizer, CHAT, ANSWER)
    pairs = Dataset.from_list([{"prompt": CHAT, "chosen": ANSWER, "rejected": CHAT[1:2]}])
    with pytest.raises(ValueError, match="prompt as a prefix"):
        tokenize_pairs(pairs, tokenizer, max_length=None, place="train")


def test_ids_of_prompt_and_answer_join_without_a_token_across_the_border(tokenizer):
    """`He` and `llo` apart are not `Hello` in one; the prompt's ids stay a true prefix."""
    joined = encode_prompt(tokenizer, "He") + encode_completion(tokenizer, "He", "llo")
    assert joined[:-1] != encode_prompt(tokenizer, "Hello")
    assert tokenizer.decode(joined[:-1]) == "Hello"
    assert joined[: len(encode_prompt(tokenizer, "He"))] == encode_prompt(tokenizer, "He")


# ---- resuming


@pytest.mark.parametrize("saved", [3, 4], ids=["inside a rollout", "between two"])
def test_a_resumed_run_logs_the_same_numbers_to_the_last_digit(
    make_ppo_roles, tokenizer, tmp_path, saved
):
    """Scores, losses, steered coefficient, skipped updates, learning rate: all but the clock."""
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
        "eval_on_start": True,
    }
    runs = {}
    for name, resume in (("whole", None), ("again", f"checkpoint-{saved}")):
        roles = make_ppo_roles()
        roles.base.generation_config.eos_token_id = STOPS
        trainer = make(
            roles, tokenizer, prompts(), tmp_path / name, held_out=prompts().select([0]), **options
        )
        torch.manual_seed(0 if resume is None else 99)
        trainer.train(resume_from_checkpoint=resume and str(tmp_path / "whole" / resume))
        said = (tmp_path / name / SAMPLES_FILE).read_text().splitlines()
        asked = [json.loads(line)["step"] for line in said]
        assert asked == ([0, 16] if resume is None else [16])  # the start is evaluated once
        rows = [r for r in logged(tmp_path / name) if "episode" in r and r["step"] > saved]
        runs[name] = [{k: v for k, v in r.items() if not k.startswith("time/")} for r in rows]
    assert runs["again"] == runs["whole"]
    assert all("loss" in row for row in runs["whole"])
    assert len({r["objective/kl_coef"] for r in runs["whole"] if "objective/kl_coef" in r}) > 1
    assert {r["policy/updates_skipped"] for r in runs["whole"]} != {0.0}


# ---- tokenizers


def tokenizers(tokenizer, tiny_base, folder):
    """The tiny base's tokenizer; without a pad token; with pad = EOS; and each padding on the right."""
    found = {}
    for name, pad in (
        ("own pad", tokenizer.pad_token),
        ("none", None),
        ("eos", tokenizer.eos_token),
    ):
        made = load_tokenizer(str(tiny_base))
        made.pad_token = pad
        made.save_pretrained(folder / name)
        for side in ("left", "right"):
            again = load_tokenizer(str(folder / name))
            again.padding_side = side
            found[name, side] = again
    return found


def test_pad_token_and_padding_side_change_nothing_of_a_run(
    make_ppo_roles, tokenizer, tiny_base, tmp_path
):
    """Two rollouts of multi-turn prompts, which hold EOS inside: the same answers, weights and logs."""
    chats = [CHAT, CHAT[:1], CHAT[2:], [*CHAT, *ANSWER, CHAT[0]]] * 4
    ended, said, logs = {}, {}, {}
    for (name, side), made in tokenizers(tokenizer, tiny_base, tmp_path).items():
        assert (made.pad_token_id == EOS) is (name != "own pad")
        roles = make_ppo_roles()
        roles.base.generation_config.eos_token_id = STOPS
        folder = tmp_path / f"{name}-{side}"
        trainer = make(roles, made, Dataset.from_dict({"prompt": chats}), folder)
        torch.manual_seed(0)
        trainer.train()
        key = f"{name}, {side}"
        ended[key], said[key] = trainable(roles), trainer.experience.completions
        logs[key] = [
            {k: v for k, v in row.items() if not k.startswith("time/")}
            for row in logged(folder)
            if "episode" in row
        ]
    first = ended.pop("own pad, left")
    assert sum(EOS in ids[:-1] for ids in trainer.train_dataset["prompt_ids"]) >= 8
    for key, weights in ended.items():
        assert said[key] == said["own pad, left"]
        for name, weight in weights.items():
            torch.testing.assert_close(weight, first[name], atol=1e-6, rtol=1e-6)
        assert logs[key] == [pytest.approx(row, abs=2e-6) for row in logs["own pad, left"]]
