"""The sampling loop, and sampling with a merged adapter."""

import pytest
import torch
from peft import LoraConfig
from trl import ModelConfig

from tests.conftest import fresh_roles, lora, randomise, trainable_names
from toolkit.data.encoding import encode_completion
from toolkit.errors import DivergedError
from toolkit.models.passes import collate, policy_pass, spread
from toolkit.models.roles import POLICY, REFERENCE, REWARD, VALUE
from toolkit.models.tokenizer import load_tokenizer, stop_ids
from toolkit.sampling.decoding import decode, draw
from toolkit.sampling.generation import sample
from toolkit.sampling.settings import Sampling

pytestmark = pytest.mark.slow

PROMPTS = [[1, 20, 30, 40, 50, 60], [1, 25], [1, 33, 34], [1, 40, 41, 42]] * 3
STOP = list(range(0, 512, 9))  # so many that rows end at different steps


@pytest.fixture
def widths(ppo_roles, monkeypatch):
    """The shapes of the inputs of each pass of the base."""
    trunk, shapes = ppo_roles.base.base_model, []
    forward = trunk.forward

    def record(*args, **kwargs):
        shapes.append(tuple(kwargs["input_ids"].shape))
        return forward(*args, **kwargs)

    monkeypatch.setattr(trunk, "forward", record)
    return shapes


def greedy(model, prompts, stop, new=24):
    """Completions by transformers' `generate`, one prompt at a time."""
    completions = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=new,
            eos_token_id=stop,
            pad_token_id=0,
        )
        completions.append(out[0, len(prompt) :].tolist())
    return completions


def test_greedy_decoding_equals_generate(ppo_roles):
    with ppo_roles.using(POLICY) as model:
        expected = greedy(model, PROMPTS, STOP)
        decoded = decode(model, PROMPTS, max_new_tokens=24, temperature=0, stop=STOP, pad_id=0)
    assert decoded.completions == expected
    assert len({len(row) for row in decoded.completions}) > 2


def test_equal_prompts_are_prefilled_once(ppo_roles, widths):
    prompts = [PROMPTS[i] for i in (1, 0, 1, 2, 1, 0)]
    with ppo_roles.using(POLICY) as model:
        decoded = decode(model, prompts, max_new_tokens=5, temperature=0, stop=[], pad_id=0)
        assert widths[0][0] == 3
        assert set(widths[1:]) == {(6, 1)}
        assert decoded.completions == greedy(model, prompts, [], new=5)


def test_ended_rows_leave_the_batch_in_groups(ppo_roles, widths):
    """Less than an eighth of the rows of a step have ended, and not every end copies the cache."""
    rows, steps = 64, 24
    prompts = [[1, 20 + i % 8, 30] for i in range(rows)]
    torch.manual_seed(0)
    with ppo_roles.using(POLICY) as model:
        completions = decode(
            model, prompts, max_new_tokens=steps, temperature=1.0, stop=STOP, pad_id=0
        ).completions
    ends = [len(row) if row[-1] in STOP else steps + 1 for row in completions]
    assert widths[0][0] == 8  # distinct prompts
    computed = [width for width, _ in widths[1:]]
    active = [sum(end > step for end in ends) for step in range(1, len(computed) + 1)]
    assert computed[0] == rows and computed == sorted(computed, reverse=True)
    assert len(computed) > steps // 2
    assert active[-1] < rows / 2, "no rows end, so the test shows nothing"
    for step, (width, count) in enumerate(zip(computed, active, strict=True)):
        assert 0 <= width - count < 0.125 * width, f"step {step}: {count} of {width} are active"
    assert any(width > count for width, count in zip(computed, active, strict=True))


def test_samples_follow_the_distribution_that_is_scored(ppo_roles):
    """1,500 draws of one token against softmax(logits / T): no top-k, no top-p, no penalty."""
    prompt, temperature, draws = [1, 20, 30], 0.8, 1500
    torch.manual_seed(0)
    with ppo_roles.using(POLICY) as model:
        completions = decode(
            model, [prompt] * draws, max_new_tokens=1, temperature=temperature, stop=[2], pad_id=0
        ).completions
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt])).logits[0, -1].float()
    expected = (logits / temperature).softmax(-1)
    counts = torch.bincount(torch.tensor([row[0] for row in completions]), minlength=len(expected))
    noise = (expected * (1 - expected) / draws).sqrt()
    assert ((counts / draws - expected).abs() <= 5 * noise + 2 / draws).all()


@pytest.mark.parametrize("temperature", [0, 1])
def test_completion_depends_only_on_its_prompt_and_seed(ppo_roles, temperature):
    options = {"sampling": Sampling(6, temperature), "stop": [2], "pad_id": 0}
    seeds = list(range(len(PROMPTS)))
    with ppo_roles.using(POLICY) as model:
        together = sample(model, PROMPTS, batch_size=5, seeds=seeds, **options).completions
        alone = [
            sample(model, [p], seeds=[seed], **options).completions[0]
            for p, seed in zip(PROMPTS, seeds, strict=True)
        ]
    assert together == alone
    assert (together[0] == together[4]) == (temperature == 0)  # the same prompt


@pytest.mark.parametrize("merged", [True, False])
def test_sampled_logprobs_and_values_equal_a_later_pass(ppo_roles, merged):
    head = ppo_roles.heads[VALUE]
    torch.manual_seed(3)
    with (ppo_roles.merged if merged else ppo_roles.using)(POLICY) as model:
        decoded = sample(
            model,
            PROMPTS,
            sampling=Sampling(12, 0.7),
            stop=STOP,
            pad_id=0,
            batch_size=4,
            value_head=head,
        )
    batch = collate(PROMPTS, decoded.completions, 0)
    with torch.no_grad(), ppo_roles.using(POLICY) as model:
        policy = policy_pass(model, batch, temperature=0.7)
        values = spread(batch.mask, head(policy.states))
    torch.testing.assert_close(decoded.logprobs, policy.logprobs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(decoded.values, values, atol=1e-5, rtol=1e-5)


def test_merging_changes_no_sample_and_restores_the_base(ppo_roles, pristine):
    """Afterwards the base is identical to the bit, also after an error."""
    names, completions = trainable_names(ppo_roles), []
    options = {"sampling": Sampling(max_new_tokens=12), "stop": [2], "pad_id": 0}
    for context in (ppo_roles.using, ppo_roles.merged):
        torch.manual_seed(0)
        with context(POLICY) as model:
            completions.append(sample(model, PROMPTS, **options).completions)
    assert completions[0] == completions[1]
    with pytest.raises(RuntimeError, match="boom"), ppo_roles.merged(VALUE):
        raise RuntimeError("boom")
    assert trainable_names(ppo_roles) == names
    assert not any(getattr(m, "merged", False) for m in ppo_roles.model.modules())
    ids = torch.tensor([PROMPTS[0]])
    with torch.no_grad():
        for role in (POLICY, REFERENCE, VALUE, REWARD):
            with ppo_roles.using(role):
                pass
        with ppo_roles.using(None) as base:
            assert torch.equal(base(input_ids=ids).logits, pristine(input_ids=ids).logits)


def test_only_untied_float32_weights_are_merged(tiny_base):
    for dtype, expected in (("float32", True), ("bfloat16", False)):
        roles = fresh_roles(ModelConfig(model_name_or_path=str(tiny_base), dtype=dtype))
        roles.create(POLICY, lora())
        randomise(roles, POLICY, seed=1)
        with roles.merged(POLICY) as model:
            assert any(getattr(m, "merged", False) for m in model.modules()) is expected
    roles = fresh_roles(ModelConfig(model_name_or_path=str(tiny_base), dtype="float32"))
    roles.create(POLICY, LoraConfig(r=4, target_modules=["lm_head"], task_type="CAUSAL_LM"))
    randomise(roles, POLICY, seed=1)
    embeddings = roles.base.get_input_embeddings().weight.clone()
    with roles.merged(POLICY):
        assert torch.equal(roles.base.get_input_embeddings().weight, embeddings)


QWEN_LIKE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_completions_end_where_the_template_ends_a_turn(tiny_base, tmp_path):
    """Qwen3's base models: EOS `<|endoftext|>`, turns end with `<|im_end|>` and a line break."""
    original = load_tokenizer(str(tiny_base))
    original.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    document_end, original.chat_template = original.eos_token, QWEN_LIKE
    original.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.eos_token != document_end
    assert tokenizer.pad_token == original.pad_token
    ids = encode_completion(
        tokenizer,
        [{"role": "user", "content": "Hello."}],
        [{"role": "assistant", "content": "Hello to you too."}],
    )
    assert ids[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_stop_tokens_are_eos_and_those_of_the_model(tiny_base):
    roles = fresh_roles(ModelConfig(model_name_or_path=str(tiny_base), dtype="float32"))
    tokenizer = load_tokenizer(str(tiny_base))
    roles.base.generation_config.eos_token_id = [tokenizer.eos_token_id, 7]
    assert stop_ids(roles.base, tokenizer) == [tokenizer.eos_token_id, 7]


def test_tokens_are_drawn_by_their_probability():
    probs = torch.tensor([0.5, 0.0, 0.3, 0.0, 0.2, 0.0])
    torch.manual_seed(0)
    tokens = draw(probs.expand(20_000, -1))
    share = torch.bincount(tokens, minlength=6) / len(tokens)
    assert share[[1, 3, 5]].tolist() == [0.0] * 3, "words of probability 0"
    noise = (probs * (1 - probs) / len(tokens)).sqrt()
    assert ((share - probs).abs() <= 4 * noise).all(), share


def test_last_token_of_large_vocabulary_is_drawn():
    probs = torch.full((1, 200_000), 1e-9)
    probs[0, 77], probs[0, -1] = 0.75, 0.25
    torch.manual_seed(0)
    tokens = draw(probs.expand(2_000, -1))
    assert 0.2 < float((tokens == 199_999).float().mean()) < 0.3


def test_states_that_are_not_finite_raise_an_error(ppo_roles):
    norm = ppo_roles.base.model.norm.weight
    original = norm.detach().clone()
    try:
        norm.data[0] = float("nan")
        with pytest.raises(DivergedError, match="2 of 2 answers are not"):
            decode(
                ppo_roles.base, [[5, 6], [7]], max_new_tokens=2, temperature=1.0, stop=[], pad_id=0
            )
    finally:
        norm.data.copy_(original)
