"""The sampling loop, and the adapter merged for it."""

import pytest
import torch
from trl import ModelConfig

from tests.conftest import fresh_roles, lora, randomise
from toolkit.errors import DivergedError
from toolkit.models.passes import collate, policy_pass, spread
from toolkit.models.roles import POLICY, REFERENCE, REWARD, VALUE
from toolkit.models.tokenizer import load_tokenizer, stop_ids
from toolkit.sampling.decoding import decode, draw
from toolkit.sampling.generation import sample
from toolkit.sampling.settings import Sampling

PROMPTS = [[1, 20, 30, 40, 50, 60], [1, 25], [1, 33, 34], [1, 40, 41, 42]] * 3


def greedy(model, prompts, stop, new=24):
    """What transformers' own `generate` says, one prompt at a time."""
    found = []
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
        found.append(out[0, len(prompt) :].tolist())
    return found


def test_greedy_is_what_generate_says_though_rows_leave_the_batch(ppo_roles):
    """Prompts of many lengths, and so many stop tokens that rows end at different steps."""
    stop = list(range(0, 512, 9))
    with ppo_roles.using(POLICY) as model:
        expected = greedy(model, PROMPTS, stop)
        found = decode(model, PROMPTS, max_new_tokens=24, temperature=0, stop=stop, pad_id=0)
    assert found.completions == expected
    assert len({len(row) for row in found.completions}) > 2


def test_rows_leave_the_batch_when_they_end(ppo_roles, monkeypatch):
    stop, widths = list(range(0, 512, 9)), []
    trunk = ppo_roles.base.base_model
    forward = trunk.forward

    def seen(*args, **kwargs):
        widths.append(len(kwargs["input_ids"]))
        return forward(*args, **kwargs)

    monkeypatch.setattr(trunk, "forward", seen)
    with ppo_roles.using(POLICY) as model:
        decode(model, PROMPTS, max_new_tokens=24, temperature=1.0, stop=stop, pad_id=0)
    assert widths.pop(0) == 4  # distinct prompts
    assert widths[0] == len(PROMPTS)
    assert widths[-1] < len(PROMPTS)
    assert widths == sorted(widths, reverse=True)


def test_samples_follow_the_distribution_that_is_scored(ppo_roles):
    """1,500 draws of one token against softmax(logits / T): no top-k, no top-p, no penalty."""
    prompt, temperature, draws = [1, 20, 30], 0.8, 1500
    torch.manual_seed(0)
    with ppo_roles.using(POLICY) as model:
        found = decode(
            model, [prompt] * draws, max_new_tokens=1, temperature=temperature, stop=[2], pad_id=0
        ).completions
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt])).logits[0, -1].float()
    expected = (logits / temperature).softmax(-1)
    counts = torch.bincount(torch.tensor([row[0] for row in found]), minlength=len(expected))
    noise = (expected * (1 - expected) / draws).sqrt()
    assert ((counts / draws - expected).abs() <= 5 * noise + 2 / draws).all()


def test_completions_come_back_in_the_order_of_their_prompts(ppo_roles):
    one = Sampling(max_new_tokens=6, temperature=0)
    with ppo_roles.using(POLICY) as model:
        together = sample(
            model, PROMPTS, sampling=one, stop=[2], pad_id=0, batch_size=5
        ).completions
        apart = [sample(model, [p], sampling=one, stop=[2], pad_id=0) for p in PROMPTS]
    assert together == [one_alone.completions[0] for one_alone in apart]


def test_a_prompt_is_read_once_however_often_it_is_answered(ppo_roles, monkeypatch):
    """Prompts in any order, some asked for several times: greedy answers as if each stood alone."""
    asked = [PROMPTS[i] for i in (1, 0, 1, 2, 1, 0)]
    trunk, read = ppo_roles.base.base_model, []
    forward = trunk.forward

    def seen(*args, **kwargs):
        read.append(tuple(kwargs["input_ids"].shape))
        return forward(*args, **kwargs)

    monkeypatch.setattr(trunk, "forward", seen)
    with ppo_roles.using(POLICY) as model:
        found = decode(model, asked, max_new_tokens=5, temperature=0, stop=[], pad_id=0)
        assert read[0][0] == 3
        assert set(read[1:]) == {(6, 1)}
        assert found.completions == greedy(model, asked, [], new=5)


@pytest.mark.parametrize("merged", [True, False])
def test_what_was_drawn_with_is_what_a_pass_over_the_whole_says(ppo_roles, merged):
    """Log-probabilities and values kept while sampling, against one pass afterwards, in float32."""
    head = ppo_roles.heads[VALUE]
    torch.manual_seed(3)
    with (ppo_roles.merged if merged else ppo_roles.using)(POLICY) as model:
        said = sample(
            model,
            PROMPTS,
            sampling=Sampling(12, 0.7),
            stop=list(range(0, 512, 9)),
            pad_id=0,
            batch_size=4,
            value_head=head,
        )
    batch = collate(PROMPTS, said.completions, 0)
    with torch.no_grad(), ppo_roles.using(POLICY) as model:
        whole = policy_pass(model, batch, temperature=0.7)
        values = spread(batch.mask, head(whole.states))
    torch.testing.assert_close(said.logprobs, whole.logprobs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(said.values, values, atol=1e-5, rtol=1e-5)


def test_merging_changes_speed_and_nothing_else(ppo_roles, pristine):
    """Same samples; afterwards the base is the pristine one to the bit, also on an error."""
    names, draw = ppo_roles.trainable_names(), Sampling(max_new_tokens=12, temperature=1.0)
    said = []
    for context in (ppo_roles.using, ppo_roles.merged):
        torch.manual_seed(0)
        with context(POLICY) as model:
            said.append(sample(model, PROMPTS, sampling=draw, stop=[2], pad_id=0).completions)
    assert said[0] == said[1]
    with pytest.raises(RuntimeError, match="boom"), ppo_roles.merged(VALUE):
        raise RuntimeError("boom")
    assert ppo_roles.trainable_names() == names
    assert not any(getattr(m, "merged", False) for m in ppo_roles.model.modules())
    ids = torch.tensor([PROMPTS[0]])
    with torch.no_grad():
        for role in (POLICY, REFERENCE, VALUE, REWARD):
            with ppo_roles.using(role):
                pass
        with ppo_roles.using(None) as base:
            assert torch.equal(base(input_ids=ids).logits, pristine(input_ids=ids).logits)


def test_merging_really_merges_in_float32_and_leaves_bfloat16_and_tied_weights_alone(tiny_base):
    for dtype, expected in (("float32", True), ("bfloat16", False)):
        roles = fresh_roles(ModelConfig(model_name_or_path=str(tiny_base), dtype=dtype))
        roles.create(POLICY, lora())
        randomise(roles, POLICY, seed=1)
        with roles.merged(POLICY) as model:
            assert any(getattr(m, "merged", False) for m in model.modules()) is expected
    roles = fresh_roles(ModelConfig(model_name_or_path=str(tiny_base), dtype="float32"))
    roles.create(POLICY, lora().__class__(r=4, target_modules=["lm_head"], task_type="CAUSAL_LM"))
    randomise(roles, POLICY, seed=1)
    embeddings = roles.base.get_input_embeddings().weight.clone()
    with roles.merged(POLICY):
        assert torch.equal(roles.base.get_input_embeddings().weight, embeddings)


QWEN_LIKE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_an_answer_ends_where_the_template_ends_a_turn(tiny_base, tmp_path):
    """Qwen3's base models: EOS `<|endoftext|>`, turns end with `<|im_end|>` and a line break."""
    from toolkit.sampling.generation import encode_completion

    made = load_tokenizer(str(tiny_base))
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    documents_end, made.chat_template = made.eos_token, QWEN_LIKE
    made.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.eos_token != documents_end
    assert tokenizer.pad_token == made.pad_token
    ids = encode_completion(
        tokenizer,
        [{"role": "user", "content": "Hello."}],
        [{"role": "assistant", "content": "Hello to you too."}],
    )
    assert ids[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_stop_tokens_are_the_turns_end_and_what_the_model_declares(tiny_base):
    roles = fresh_roles(ModelConfig(model_name_or_path=str(tiny_base), dtype="float32"))
    tokenizer = load_tokenizer(str(tiny_base))
    roles.base.generation_config.eos_token_id = [tokenizer.eos_token_id, 7]
    assert stop_ids(roles.base, tokenizer) == [tokenizer.eos_token_id, 7]


def test_tokens_are_drawn_by_their_probability():
    probs = torch.tensor([0.5, 0.0, 0.3, 0.0, 0.2, 0.0])
    torch.manual_seed(0)
    drawn = draw(probs.expand(20_000, -1))
    share = torch.bincount(drawn, minlength=6) / len(drawn)
    assert share[[1, 3, 5]].tolist() == [0.0] * 3, "words of no probability"
    spread = (probs * (1 - probs) / len(drawn)).sqrt()
    assert ((share - probs).abs() <= 4 * spread).all(), share


def test_a_rare_token_of_a_large_vocabulary_is_not_lost():
    probs = torch.full((1, 200_000), 1e-9)
    probs[0, 77], probs[0, -1] = 0.75, 0.25
    torch.manual_seed(0)
    drawn = draw(probs.expand(2_000, -1))
    assert 0.2 < float((drawn == 199_999).float().mean()) < 0.3


def test_a_diverged_policy_is_named_before_a_token_is_drawn(ppo_roles):
    norm = ppo_roles.base.model.norm.weight
    was = norm.detach().clone()
    try:
        norm.data[0] = float("nan")
        with pytest.raises(DivergedError, match="2 of 2 answers are not"):
            decode(
                ppo_roles.base, [[5, 6], [7]], max_new_tokens=2, temperature=1.0, stop=[], pad_id=0
            )
    finally:
        norm.data.copy_(was)
