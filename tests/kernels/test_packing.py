"""Packing: every token once, each sequence seeing only itself, and the same numbers as unpacked."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    BartConfig,
    BartForCausalLM,
    DogeConfig,
    DogeForCausalLM,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
)

from tests.ppo.test_architectures import roles_of
from toolkit.kernels.packing import _heeds_masks, may_join, pack
from toolkit.models import passes
from toolkit.models.heads import ScalarHead
from toolkit.models.passes import by_tokens, collate, policy_pass, scores, state_values
from toolkit.models.roles import POLICY

PROMPTS = [[1, 20, 30, 40, 50, 60, 70, 80], [1, 25], [1, 33, 34], [1, 41, 42, 43]]
COMPLETIONS = [[90, 2], [91, 92, 93, 94, 2], [2], [95, 96]]


def test_short_rows_share_a_row_by_hand():
    """Lengths 4, 2, 2: two rows of four tokens instead of three."""
    batch = collate([[5, 6], [7], [9]], [[11, 12], [13], [14]], pad_id=0)
    packed = pack(batch.input_ids, batch.attention, join=True)
    assert packed.input_ids.tolist() == [[5, 6, 11, 12], [7, 13, 9, 14]]
    assert packed.positions.tolist() == [[0, 1, 2, 3], [0, 1, 0, 1]]
    assert packed.places.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert packed.mask[1, 0].int().tolist() == [
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [0, 0, 1, 0],
        [0, 0, 1, 1],
    ]


def test_rows_of_one_length_stay_apart_and_need_no_mask():
    batch = collate([[5, 6]] * 3, [[7, 8]] * 3, pad_id=0)
    packed = pack(batch.input_ids, batch.attention, join=True)
    assert packed.mask is None
    assert torch.equal(packed.input_ids, batch.input_ids)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 30), st.integers(0, 30)), min_size=1, max_size=24),
    join=st.booleans(),
)
def test_every_token_is_placed_once_and_sees_its_own_past(lengths, join):
    numbers = iter(range(1, 10_000))
    prompts = [[next(numbers) for _ in range(p)] for p, _ in lengths]
    completions = [[next(numbers) for _ in range(c)] for _, c in lengths]
    batch = collate(prompts, completions, pad_id=0)
    packed = pack(batch.input_ids, batch.attention, join=join)
    flat = packed.input_ids.flatten()
    wanted = [token for p, c in zip(prompts, completions, strict=True) for token in p + c]
    assert flat[packed.places].tolist() == wanted
    assert (flat != 0).sum() == len(wanted)
    assert packed.input_ids.shape[0] <= len(prompts)
    if packed.mask is None:
        return
    for p, c in zip(prompts, completions, strict=True):
        own = torch.isin(packed.input_ids, torch.tensor(p + c))  # (R, L)
        row = own.any(1).nonzero().item()
        places = own[row].nonzero().flatten()
        assert packed.positions[row, places].tolist() == list(range(len(p + c)))
        for number, place in enumerate(places.tolist()):
            seen = packed.mask[row, 0, place].nonzero().flatten().tolist()
            assert seen == places[: number + 1].tolist()


def test_packed_or_not_a_pass_says_the_same(ppo_roles, monkeypatch):
    """Log-probabilities, entropies, values, scores, and the policy's gradient."""
    batch, head, found = collate(PROMPTS, COMPLETIONS, pad_id=0), ScalarHead(64), []
    for join in (True, False):
        monkeypatch.setattr(passes, "may_join", lambda causal, join=join: join)
        shapes = []
        trunk = ppo_roles.base.base_model
        seen = trunk.register_forward_pre_hook(
            lambda m, a, kwargs, shapes=shapes: shapes.append(kwargs["input_ids"].shape),
            with_kwargs=True,
        )
        ppo_roles.model.zero_grad()
        with ppo_roles.using(POLICY) as model:
            policy = policy_pass(model, batch, temperature=0.7, entropy=True)
            policy.logprobs.sum().backward()
            values, score = state_values(model, head, batch), scores(model, head, batch)
        seen.remove()
        gradients = [p.grad.clone() for p in ppo_roles.model.parameters() if p.grad is not None]
        found.append([policy.logprobs, policy.entropy, values, score, *gradients])
        assert shapes[0] == ((1, 27) if join else (4, 10))
    for packed, plain in zip(*found, strict=True):
        torch.testing.assert_close(packed, plain, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "mixtral"])
def test_gradients_of_each_family_do_not_depend_on_packing(family, tokenizer, monkeypatch):
    roles = roles_of(family, tokenizer, "sdpa")
    batch, gradients = collate(PROMPTS, COMPLETIONS, pad_id=0), []
    for join in (True, False):
        monkeypatch.setattr(passes, "may_join", lambda causal, join=join: join)
        masks = []
        hook = roles.base.base_model.register_forward_pre_hook(
            lambda m, a, kwargs, masks=masks: masks.append(kwargs["attention_mask"]),
            with_kwargs=True,
        )
        roles.model.zero_grad()
        with roles.using(POLICY) as model:
            policy_pass(model, batch, temperature=0.7).logprobs.sum().backward()
        hook.remove()
        assert (masks[0] is not None) is join
        gradients.append([p.grad.clone() for p in roles.model.parameters() if p.grad is not None])
    assert gradients[0]
    for packed, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(packed, expected, atol=1e-5, rtol=1e-4)


def test_a_model_that_changes_its_mask_accepts_packed_rows(monkeypatch):
    """Doge adds a learned mask of its own to the attention mask."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    config = DogeConfig(vocab_size=99, pad_token_id=0, **sizes, **heads)
    causal = DogeForCausalLM._from_config(config, attn_implementation="sdpa").eval()
    assert may_join(causal)
    batch, logprobs = collate(PROMPTS, COMPLETIONS, pad_id=0), []
    for join in (True, False):
        monkeypatch.setattr(passes, "may_join", lambda causal, join=join: join)
        logprobs.append(policy_pass(causal, batch, temperature=1.0).logprobs)
    torch.testing.assert_close(*logprobs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LlamaConfig(attn_implementation="sdpa"), True),
        (LlamaConfig(attn_implementation="eager"), False),
        (LlamaConfig(attn_implementation="flash_attention_2"), False),
        (MistralConfig(attn_implementation="sdpa", sliding_window=4096), False),
        (MistralConfig(attn_implementation="sdpa", sliding_window=None), True),
        (Gemma2Config(attn_implementation="sdpa"), False),
    ],
)
def test_models_with_masks_of_their_own_are_left_alone(config, expected):
    assert _heeds_masks(config) is expected


def test_a_trunk_that_counts_positions_itself_has_a_row_for_each_sequence():
    """Bart's decoder takes `position_ids` among what it does not know, and never looks at them."""
    config = BartConfig(
        vocab_size=99, d_model=16, decoder_layers=1, encoder_layers=1, decoder_attention_heads=2
    )
    config.decoder_ffn_dim, config.is_decoder = 16, True
    assert not may_join(BartForCausalLM(config))


def test_groups_by_tokens_count_padding_and_hold_every_row():
    prompts, completions = [[1] * n for n in (2, 9, 1, 3, 30)], [[1]] * 5
    groups = list(by_tokens(prompts, completions, 12))  # rows of 3, 10, 2, 4 and 31 tokens
    assert groups == [[2, 0, 3], [1], [4]]
    assert list(by_tokens([], [], 12)) == []
