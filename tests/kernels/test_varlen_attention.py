"""Sequences of one row kept apart in attention: what a mask says, without its square."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, DogeConfig, DogeForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.ppo.test_architectures import roles_of
from toolkit.kernels.packing import pack
from toolkit.kernels.varlen_attention import _KeepingApart, can_keep_apart, slots
from toolkit.models import passes
from toolkit.models.passes import collate, policy_pass
from toolkit.models.prompt_and_ia3_adapters import VirtualTokens, has_virtual_tokens
from toolkit.models.roles import POLICY

PROMPTS = [[1, 20, 30, 40, 50, 60], [1, 25], [1, 33, 34], [1, 41, 42, 43]]
COMPLETIONS = [[90, 2], [91, 92, 93, 94, 2], [2], [95, 96]]


def attention(groups: int = 1) -> nn.Module:
    module = nn.Module()
    module.is_causal, module.num_key_value_groups = True, groups
    return module


def test_slots_by_hand():
    assert slots(torch.tensor([2, 1, 3])).tolist() == [[[[0, 1, -1], [2, -1, -1], [3, 4, 5]]]]


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    groups=st.sampled_from([1, 2]),
    seed=st.integers(0, 99),
)
def test_each_sequence_attends_as_if_it_were_alone_and_so_does_its_gradient(lengths, groups, seed):
    generator = torch.Generator().manual_seed(seed)
    count, size = sum(lengths), 8
    heads = (2 * groups, 2, 2)  # of queries, keys and values
    made = [torch.randn(1, h, count, size, generator=generator) for h in heads]
    weights = torch.randn(1, count, 2 * groups, size, generator=generator)
    found = []
    for apart in (True, False):
        states = [t.clone().requires_grad_() for t in made]
        if apart:
            keep = _KeepingApart(sdpa_attention_forward)
            out, _ = keep(attention(groups), *states, slots(torch.tensor(lengths)))
        else:
            parts = zip(*(t.split(lengths, dim=2) for t in states), strict=True)
            each = [
                scaled_dot_product_attention(*part, is_causal=True, enable_gqa=groups > 1)
                for part in parts
            ]
            out = torch.cat(each, dim=2).transpose(1, 2)
        (out * weights).sum().backward()
        found.append([out.detach(), *(t.grad for t in states)])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("mask", [None, torch.ones(5, 5).tril().bool()[None, None]])
def test_other_masks_are_transformers_own_to_keep(mask):
    states = [torch.randn(1, 2, 5, 8) for _ in range(3)]
    ways = (_KeepingApart(sdpa_attention_forward), sdpa_attention_forward)
    ours, theirs = (way(attention(), *states, mask)[0] for way in ways)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "mixtral"])
def test_a_family_says_the_same_in_one_row_and_in_many(family, tokenizer, monkeypatch):
    """Log-probabilities and the policy's gradient; in one row there is no place of padding."""
    roles = roles_of(family, tokenizer, "sdpa")
    batch, found = collate(PROMPTS, COMPLETIONS, pad_id=0), []
    assert can_keep_apart(roles.base)
    for join in (True, False):
        monkeypatch.setattr(passes, "may_join", lambda causal, join=join: join)
        masks = []
        seen = roles.base.base_model.register_forward_pre_hook(
            lambda m, a, kwargs, masks=masks: masks.append(kwargs["attention_mask"]),
            with_kwargs=True,
        )
        roles.model.zero_grad()
        with roles.using(POLICY) as model:
            policy_pass(model, batch, temperature=0.7).logprobs.square().sum().backward()
        seen.remove()
        assert masks[0] is None if not join else masks[0].shape == (1, 1, 4, 8)
        found.append([p.grad.clone() for p in roles.model.parameters() if p.grad is not None])
    assert found[0]
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


def test_one_long_sequence_among_short_ones_is_masked():
    """Laid side by side, three short ones would be as wide as the long one."""
    batch = collate([[1] * 40, [2], [3], [4]], [[5], [6, 7], [8], [9]], pad_id=0)
    packed = pack(batch.input_ids, batch.attention, join=True, apart=lambda: True)
    assert packed.mask is not None and packed.mask.dtype == torch.bool


def test_a_model_whose_attention_asks_nobody_is_masked(ppo_roles, monkeypatch):
    cls = type(ppo_roles.base)
    monkeypatch.setattr(cls, "_can_set_attn_implementation", classmethod(lambda _: False))
    assert not can_keep_apart(ppo_roles.base)


def test_a_layer_that_asks_nobody_is_found_by_trying(ppo_roles, monkeypatch):
    """What transformers reads off the source is a guess."""
    layer = ppo_roles.base.model.layers[0].self_attn
    monkeypatch.setattr(layer, "forward", lambda hidden_states, **_: (hidden_states, None))
    assert not can_keep_apart(ppo_roles.base)


def test_a_model_that_reads_its_mask_as_one_is_masked():
    """Doge adds its own to it."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    config = DogeConfig(vocab_size=99, pad_token_id=0, **sizes, **heads)
    causal = DogeForCausalLM._from_config(config, attn_implementation="sdpa").eval()
    assert not can_keep_apart(causal)
    batch = collate(PROMPTS, COMPLETIONS, pad_id=0)
    found = policy_pass(causal, batch, temperature=1.0).logprobs
    assert found.isfinite().all()


def test_trying_draws_no_random_number_of_the_runs(ppo_roles):
    before = torch.random.get_rng_state()
    ppo_roles.base.train()
    assert can_keep_apart(ppo_roles.base)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_an_attention_that_somebody_registered_is_asked_still(ppo_roles, monkeypatch):
    calls = []

    def theirs(*args, **kwargs):
        calls.append(1)
        return sdpa_attention_forward(*args, **kwargs)

    before = ALL_ATTENTION_FUNCTIONS["sdpa"]
    AttentionInterface.register("sdpa", theirs)
    try:
        assert can_keep_apart(ppo_roles.base)
        assert calls
        assert ALL_ATTENTION_FUNCTIONS["sdpa"].plain is theirs
    finally:
        AttentionInterface.register("sdpa", before)


@pytest.mark.parametrize("causal", [True, False, None])
def test_each_sees_its_past_alone_whatever_the_module_says(causal):
    """Else what is real would see padding, whose gradient is left out."""
    states = [torch.randn(1, 2, 3, 8) for _ in range(3)]
    module = attention()
    module.is_causal = bool(causal)
    given = {} if causal is None else {"is_causal": causal}
    keep = _KeepingApart(sdpa_attention_forward)
    found, _ = keep(module, *states, slots(torch.tensor([2, 1])), **given)
    alone = scaled_dot_product_attention(*(t[:, :, :2] for t in states), is_causal=True)
    torch.testing.assert_close(found[:, :2], alone.transpose(1, 2))
    with pytest.raises(ValueError, match="bias by position"):
        keep(module, *states, slots(torch.tensor([2, 1])), position_bias=torch.zeros(1))


def test_virtual_tokens_are_seen_while_they_are_in_place(ppo_roles):
    """They stand before every sequence, which one row cannot say."""
    assert not has_virtual_tokens(ppo_roles.base)
    states = torch.zeros(1, 2, 3, 16)
    (handle,) = VirtualTokens([(states, states)]).hook(ppo_roles.base)
    assert has_virtual_tokens(ppo_roles.base)
    handle.remove()
    assert not has_virtual_tokens(ppo_roles.base)
