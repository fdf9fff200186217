"""PPO on tiny random models of several families; log-probabilities equal the model's own."""

import json

import pytest
import torch
from peft import LoraConfig
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    Qwen3Config,
    set_seed,
)

from tests.conftest import randomise
from tests.ppo.setup import make, prompts
from toolkit.models.heads import ScalarHead
from toolkit.models.passes import collate, completion_logprobs
from toolkit.models.roles import POLICY, REFERENCE, REWARD, VALUE, Roles
from toolkit.sampling.decoding import decode

pytestmark = pytest.mark.slow

COMMON = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "initializer_range": 0.2,
}
FAMILIES = {
    "llama": (LlamaConfig, COMMON, ["q_proj", "v_proj"]),
    "qwen3": (Qwen3Config, COMMON, ["q_proj", "v_proj"]),
    "gpt2": (GPT2Config, {"n_embd": 32, "n_layer": 2, "n_head": 2}, ["c_attn"]),
    # tied, soft-capped logits and attention, sliding window
    "gemma2": (Gemma2Config, COMMON | {"final_logit_softcapping": 5.0}, ["q_proj", "v_proj"]),
    "mixtral": (
        MixtralConfig,
        COMMON | {"num_local_experts": 4, "num_experts_per_tok": 2},
        ["q_proj", "v_proj"],
    ),
}
PROMPTS, COMPLETIONS = [[1, 20, 30, 40], [1, 25]], [[50, 60, 2], [70, 80, 90, 2]]


def roles_of(family, tokenizer, attention="eager"):
    """Policy, reference, value and reward on a random base of a family."""
    kind, shape, targets = FAMILIES[family]
    set_seed(0)
    ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config: AutoConfig = kind(vocab_size=len(tokenizer), **shape, **ids)
    base = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    base.requires_grad_(False)
    roles = Roles(base.eval(), {"id": family})
    for seed, name in enumerate((POLICY, REFERENCE, VALUE, REWARD)):
        roles.create(
            name,
            LoraConfig(
                r=4,
                target_modules=targets,
                task_type="CAUSAL_LM",
                fan_in_fan_out=family == "gpt2",
            ),
        )
        randomise(roles, name, seed=0 if name == REFERENCE else seed)
    for name in (VALUE, REWARD):
        roles.heads[name] = ScalarHead(32)
    for name, parameter in roles.model.named_parameters():
        if ".ref." in name or "reward" in name:
            parameter.requires_grad_(False)
    return roles


WAYS = [(name, "eager") for name in FAMILIES]
WAYS += [(name, "sdpa") for name in FAMILIES if name != "gemma2"]  # gemma2 has no SDPA


@pytest.fixture(params=WAYS, ids="-".join)
def family_roles(request, tokenizer):
    """SDPA is the default attention, and packing needs it."""
    return roles_of(request.param[0], tokenizer, request.param[1])


def test_logprobs_equal_the_models_own(family_roles):
    """Expected: the model's logits, row by row, without slices, our head, or padding."""
    batch = collate(PROMPTS, COMPLETIONS, pad_id=0)
    with family_roles.using(POLICY) as model, torch.no_grad():
        logprobs, entropy = completion_logprobs(model, batch, temperature=0.7, entropy=True)
        for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
            logits = model(input_ids=torch.tensor([prompt + completion])).logits[0].float() / 0.7
            logp = logits.log_softmax(-1)[len(prompt) - 1 : -1]
            expected_logprobs = logp.gather(-1, torch.tensor(completion).unsqueeze(-1)).squeeze(-1)
            torch.testing.assert_close(
                logprobs[row, : len(completion)], expected_logprobs, atol=1e-4, rtol=1e-4
            )
            expected_entropy = -(logp.exp() * logp).sum(-1)
            torch.testing.assert_close(
                entropy[row, : len(completion)], expected_entropy, atol=1e-4, rtol=1e-4
            )


def test_sampling_equals_generate_merged_or_not(family_roles):
    stop, completions = list(range(0, 500, 9)), []
    for context in (family_roles.using, family_roles.merged):
        with context(POLICY) as model:
            completions.append(
                decode(
                    model, PROMPTS * 3, max_new_tokens=10, temperature=0, stop=stop, pad_id=0
                ).completions
            )
    with family_roles.using(POLICY) as model:
        for prompt, completion in zip(PROMPTS * 3, completions[0], strict=True):
            ids = torch.tensor([prompt])
            out = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=10,
                eos_token_id=stop,
                pad_token_id=0,
            )
            assert out[0, len(prompt) :].tolist() == completion
    assert completions[0] == completions[1]


def test_ppo_starts_at_reference_and_trains_policy_and_value(family_roles, tokenizer, tmp_path):
    before = {n: p.detach().clone() for n, p in family_roles.model.named_parameters()}
    make(family_roles, tokenizer, prompts(), tmp_path, total_episodes=8).train()
    first = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert first["objective/kl"] == pytest.approx(0.0, abs=1e-4)
    assert first["val/ratio"] == pytest.approx(1.0, abs=1e-4)
    moved = {n for n, p in family_roles.model.named_parameters() if not torch.equal(p, before[n])}
    assert any(f".{POLICY}." in n for n in moved)
    assert any(f".{VALUE}." in n for n in moved)
    assert all(f".{POLICY}." in n or f".{VALUE}." in n or "heads.value" in n for n in moved)


@pytest.mark.parametrize("side", ["left", "right"])
def test_pad_token_equal_to_eos_changes_nothing(ppo_roles, tokenizer, tmp_path, side):
    experiences = []
    for pad in (tokenizer.pad_token, tokenizer.eos_token):
        tokenizer.pad_token, tokenizer.padding_side = pad, side
        trainer = make(ppo_roles, tokenizer, prompts(), tmp_path / str(len(experiences)))
        torch.manual_seed(0)
        experiences.append(trainer.make_experience(list(trainer.train_dataset.select(range(8)))))
    assert experiences[0].completions == experiences[1].completions
    torch.testing.assert_close(
        experiences[0].advantages, experiences[1].advantages, atol=1e-5, rtol=1e-5
    )
