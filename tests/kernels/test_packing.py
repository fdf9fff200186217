"""Packed rows contain every token once, separate the sequences, and give the numbers of padded batches."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BartForCausalLM,
    DogeConfig,
    FalconConfig,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
)

from tests.ppo.test_architectures import roles_of
from toolkit.kernels import use_kernels
from toolkit.kernels.packing import pack, padded, supports_shared_rows
from toolkit.models import passes
from toolkit.models.heads import ScalarHead
from toolkit.models.passes import by_tokens, collate, policy_pass, scores, state_values
from toolkit.models.roles import POLICY

PROMPTS = [[1, 20, 30, 40, 50, 60, 70, 80], [1, 25], [1, 33, 34], [1, 41, 42, 43]]
COMPLETIONS = [[90, 2], [91, 92, 93, 94, 2], [2], [95, 96]]
SHAPES = {"padded": (4, 13), "a row each": (4, 10), "shared rows": (1, 27)}


def test_short_sequences_share_a_row():
    """Lengths 4, 2, 2: two rows of four tokens instead of three."""
    batch = collate([[5, 6], [7], [9]], [[11, 12], [13], [14]], pad_id=0)
    rows = pack(batch.input_ids, batch.attention, share_rows=True)
    assert rows.input_ids.tolist() == [[5, 6, 11, 12], [7, 13, 9, 14]]
    assert rows.positions.tolist() == [[0, 1, 2, 3], [0, 1, 0, 1]]
    assert rows.places.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert rows.mask[1, 0].int().tolist() == [
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [0, 0, 1, 0],
        [0, 0, 1, 1],
    ]


def test_sequences_of_equal_length_get_rows_without_mask():
    batch = collate([[5, 6]] * 3, [[7, 8]] * 3, pad_id=0)
    rows = pack(batch.input_ids, batch.attention, share_rows=True)
    assert rows.mask is None
    assert torch.equal(rows.input_ids, batch.input_ids)


def test_padded_rows_are_the_batch_itself():
    batch = collate([[5, 6], [7]], [[8], [9, 10]], pad_id=0)
    rows = padded(batch.input_ids, batch.attention)
    assert rows.input_ids.tolist() == [[5, 6, 8, 0], [0, 7, 9, 10]]
    assert rows.positions.tolist() == [[0, 1, 2, 2], [0, 0, 1, 2]]
    assert rows.mask.tolist() == [[1, 1, 1, 0], [0, 1, 1, 1]]
    assert rows.places.tolist() == [0, 1, 2, 5, 6, 7]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 30), st.integers(0, 30)), min_size=1, max_size=24),
    share_rows=st.booleans(),
)
def test_every_token_is_placed_once_and_attends_to_its_past(lengths, share_rows):
    numbers = iter(range(1, 10_000))
    prompts = [[next(numbers) for _ in range(p)] for p, _ in lengths]
    completions = [[next(numbers) for _ in range(c)] for _, c in lengths]
    batch = collate(prompts, completions, pad_id=0)
    rows = pack(batch.input_ids, batch.attention, share_rows=share_rows)
    flat = rows.input_ids.flatten()
    tokens = [token for p, c in zip(prompts, completions, strict=True) for token in p + c]
    assert flat[rows.places].tolist() == tokens
    assert (flat != 0).sum() == len(tokens)
    assert rows.input_ids.shape[0] <= len(prompts)
    for p, c in zip(prompts, completions, strict=True):
        own = torch.isin(rows.input_ids, torch.tensor(p + c))  # (R, L)
        row = own.any(1).nonzero().item()
        places = own[row].nonzero().flatten()
        assert rows.positions[row, places].tolist() == list(range(len(p + c)))
        if rows.mask is not None:
            for number, place in enumerate(places.tolist()):
                attended = rows.mask[row, 0, place].nonzero().flatten().tolist()
                assert attended == places[: number + 1].tolist()


def run_variants(roles, compute, monkeypatch):
    """Results of `compute` for padded rows, a row per sequence and shared rows; checks the shapes."""
    results = []
    for variant, shape in SHAPES.items():
        share = variant == "shared rows"
        monkeypatch.setattr(passes, "supports_shared_rows", lambda causal, share=share: share)
        shapes = []
        hook = roles.base.base_model.register_forward_pre_hook(
            lambda m, a, kwargs, shapes=shapes: shapes.append(tuple(kwargs["input_ids"].shape)),
            with_kwargs=True,
        )
        roles.model.zero_grad()
        with use_kernels(variant != "padded"), roles.using(POLICY) as model:
            tensors = compute(model)
        hook.remove()
        assert set(shapes) == {shape}
        gradients = [p.grad.clone() for p in roles.model.parameters() if p.grad is not None]
        assert gradients
        results.append([*tensors, *gradients])
    return results


def test_passes_do_not_depend_on_packing(ppo_roles, monkeypatch):
    """Log-probabilities, entropies, values, scores, and the policy's gradient."""
    batch, head = collate(PROMPTS, COMPLETIONS, pad_id=0), ScalarHead(64)

    def compute(model):
        policy = policy_pass(model, batch, temperature=0.7, entropy=True)
        policy.logprobs.sum().backward()
        values, score = state_values(model, head, batch), scores(model, head, batch)
        return [policy.logprobs, policy.entropy, values, score]

    plain, *others = run_variants(ppo_roles, compute, monkeypatch)
    for result in others:
        for tensor, expected in zip(result, plain, strict=True):
            torch.testing.assert_close(tensor, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "mixtral"])
def test_gradients_of_each_family_do_not_depend_on_packing(family, tokenizer, monkeypatch):
    roles = roles_of(family, tokenizer, "sdpa")
    batch = collate(PROMPTS, COMPLETIONS, pad_id=0)
    assert supports_shared_rows(roles.base)

    def compute(model):
        logprobs = policy_pass(model, batch, temperature=0.7).logprobs
        logprobs.sum().backward()
        return [logprobs]

    plain, *others = run_variants(roles, compute, monkeypatch)
    for result in others:
        for tensor, expected in zip(result, plain, strict=True):
            torch.testing.assert_close(tensor, expected, atol=1e-5, rtol=1e-4)


SIZES = {"vocab_size": 99, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.mark.parametrize(
    "config",
    [
        DogeConfig(**SIZES, num_key_value_heads=2, intermediate_size=16, pad_token_id=0),
        FalconConfig(**SIZES),
        OPTConfig(**SIZES, ffn_dim=16, word_embed_proj_dim=16, max_position_embeddings=64),
    ],
    ids=lambda config: config.model_type,
)
def test_shared_rows_separate_sequences_without_packed_masks_of_transformers(config, monkeypatch):
    """Doge adds a mask of its own; Falcon and OPT pass no positions to transformers' masks."""
    torch.manual_seed(0)
    causal = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    causal.requires_grad_(False)
    for parameter in causal.parameters():
        if parameter.dim() > 1:
            parameter.mul_(20)  # so that a token's neighbours change its log-probability
    assert supports_shared_rows(causal)
    batch, logprobs = collate(PROMPTS, COMPLETIONS, pad_id=0), []
    for share in (True, False):
        monkeypatch.setattr(passes, "supports_shared_rows", lambda causal, share=share: share)
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
        (FalconConfig(attn_implementation="sdpa", alibi=True), False),
    ],
)
def test_only_full_attention_by_sdpa_shares_rows(config, expected):
    trunk = SimpleNamespace(forward=lambda input_ids, position_ids: None)
    assert supports_shared_rows(SimpleNamespace(config=config, base_model=trunk)) is expected


def test_trunk_that_ignores_positions_shares_no_rows():
    """Bart's decoder accepts `position_ids` as an extra argument and ignores them."""
    config = BartConfig(
        vocab_size=99, d_model=16, decoder_layers=1, encoder_layers=1, decoder_attention_heads=2
    )
    config.decoder_ffn_dim, config.is_decoder = 16, True
    assert not supports_shared_rows(BartForCausalLM(config))


def test_groups_by_tokens_count_padding_and_contain_every_row():
    prompts, completions = [[1] * n for n in (2, 9, 1, 3, 30)], [[1]] * 5
    groups = list(by_tokens(prompts, completions, 12))  # rows of 3, 10, 2, 4 and 31 tokens
    assert groups == [[2, 0, 3], [1], [4]]
    assert list(by_tokens([], [], 12)) == []
