"""The gated feed-forward part as one node, against transformers' and PEFT's own."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen3Config,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from toolkit.models import fused_mlp
from toolkit.models.fused_mlp import PARTS, _GatedProduct, shorten_mlps
from toolkit.models.fusing import fuse

SIZES = {
    "vocab_size": 50,
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 6,
}
IDS = torch.tensor([[3, 7, 11, 2, 9], [5, 6, 1, 8, 4]])


def causal(config=LlamaConfig, **changes):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config(**SIZES | changes))


def adapted(model, *, short, targets=PARTS, dtype=torch.float64, **options):
    """With an adapter that does something on some layers."""
    model = copy.deepcopy(model).to(dtype)
    config = LoraConfig(r=3, lora_alpha=6, target_modules=list(targets), **options)
    fuse(config)
    if short:
        shorten_mlps(model)
    policy = get_peft_model(model, config, autocast_adapter_dtype=False)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_" in name:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(0.2 * noise)
    return policy.train()


def results(policy):
    logits = policy(input_ids=IDS).logits
    logits.square().mean().backward()
    return logits.detach(), {n: p.grad for n, p in policy.named_parameters() if p.grad is not None}


@pytest.fixture
def nodes(monkeypatch):
    """How often the one node was used."""
    calls, apply = [], _GatedProduct.apply
    monkeypatch.setattr(_GatedProduct, "apply", lambda *a: calls.append(1) or apply(*a))
    return calls


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (LlamaConfig, {}),
        (LlamaConfig, {"mlp_bias": True}),
        (MistralConfig, {}),
        (Qwen3Config, {}),
    ],
)
def test_parity_with_the_model_and_peft(config, changes, nodes):
    model = causal(config, **changes)
    every = (*PARTS, "q_proj", "o_proj")
    (expected, theirs), (found, ours) = (
        results(adapted(model, short=short, targets=every)) for short in (False, True)
    )
    assert len(nodes) == 2  # one for each layer of the second
    torch.testing.assert_close(found, expected)
    assert ours.keys() == theirs.keys() != set()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, msg=name)


@pytest.mark.parametrize("rows", [4, 40])  # fewer and more than either width
def test_its_gradient_is_the_numerical_one(rows):
    torch.manual_seed(2)
    layers = [nn.Linear(i, o).double() for i, o in ((5, 7), (5, 7), (7, 4))]
    sizes = [(2, 5), (7, 2), (3, 5), (7, 3), (1, 7), (4, 1)]
    loras = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in sizes]
    x = torch.randn(rows, 5, dtype=torch.float64, requires_grad=True)
    pairs = list(zip(loras[::2], loras[1::2], strict=True))

    def node(x, *loras):
        parts = [
            fused_mlp._Part(layer.weight.detach(), layer.bias.detach(), low, high, scale)
            for layer, (low, high), scale in zip(layers, pairs, (0.5, 1.5, 2.0), strict=True)
        ]
        return _GatedProduct.apply(x, parts, *loras)

    assert torch.autograd.gradcheck(node, (x, *loras))


def kept(policy):
    """Bytes that a pass keeps for its backward, each storage once, weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in policy.parameters()}
    seen = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = policy(input_ids=IDS.repeat(4, 8)).logits
    assert out.requires_grad
    return sum(seen.values())


def test_it_keeps_two_wide_tensors_and_not_four(nodes):
    model = causal(intermediate_size=512)
    theirs, ours = (kept(adapted(model, short=short)) for short in (False, True))
    wide = 2 * 4 * (8 * 40) * 512 * 8  # layers, tensors, tokens, width, bytes
    assert theirs > wide
    assert wide * 0.5 < ours < wide * 0.6
    assert len(nodes) == 2


def test_under_autocast_too(nodes):
    model = causal(hidden_size=64, intermediate_size=96, head_dim=32)
    found = []
    for short in (False, True):
        policy = adapted(model, short=short, dtype=torch.bfloat16).float()
        for name, parameter in policy.named_parameters():
            if "lora_" not in name:
                parameter.data = parameter.data.bfloat16()
        mlp = policy.get_base_model().model.layers[0].mlp
        x = torch.randn(2, 9, 64, generator=torch.Generator().manual_seed(3)).bfloat16()
        x.requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            out = mlp(x)
        out.float().square().sum().backward()
        gradients = {n: p.grad for n, p in mlp.named_parameters() if p.grad is not None}
        found.append({"out": out.detach(), "to x": x.grad} | gradients)
    theirs, ours = found
    assert len(nodes) == 1
    assert ours.keys() == theirs.keys()
    for key, expected in theirs.items():
        assert ours[key].dtype == expected.dtype
        distance = (ours[key].float() - expected.float()).norm() / expected.float().norm()
        assert distance < 0.02, key  # bfloat16 keeps 8 bits, and there are three products


def test_other_formulas_are_left_alone(nodes):
    """Gemma's gate is another function, GPT-2 has no gate, a clamped one is only like it."""
    plain = GPT2Config(vocab_size=50, n_embd=12, n_layer=1, n_head=2)
    others = [causal(Gemma2Config), AutoModelForCausalLM.from_config(plain)]
    clamped = causal(intermediate_size=256)
    for layer in clamped.model.layers:
        layer.mlp.act_fn = Clamped()
    for model in (*others, clamped):
        before = [type(m) for m in model.modules()]
        shorten_mlps(model)
        assert [type(m) for m in model.modules()] == before


class Clamped(nn.Module):
    """SiLU of what is not large."""

    def forward(self, x):
        return nn.functional.silu(x.clamp(max=2.0))


@pytest.mark.parametrize(
    "options",
    [
        {"lora_dropout": 0.5},
        {"use_dora": True},
        {"targets": ("gate_proj", "down_proj")},
        {"targets": ("q_proj",)},
    ],
)
def test_what_it_does_not_know_is_the_models(options, nodes):
    model = causal()
    found = []
    for short in (False, True):
        torch.manual_seed(4)
        found.append(results(adapted(model, short=short, **options)))
    (expected, theirs), (out, ours) = found
    torch.testing.assert_close(out, expected)
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient)
    assert not nodes


def test_hooks_switching_off_and_merging_are_the_models(nodes):
    policy = adapted(causal(), short=True)
    expected = policy(input_ids=IDS).logits
    nodes.clear()
    calls = []
    layer = policy.get_base_model().model.layers[0].mlp.up_proj
    handle = layer.register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(policy(input_ids=IDS).logits, expected)
    assert len(calls) == len(nodes) == 1  # the other layer's
    handle.remove()
    nodes.clear()
    with policy.disable_adapter():
        assert not torch.allclose(policy(input_ids=IDS).logits, expected)
    policy.merge_adapter()
    torch.testing.assert_close(policy(input_ids=IDS).logits, expected)
    assert not nodes
    policy.unmerge_adapter()
    torch.testing.assert_close(policy(input_ids=IDS).logits, expected)
    assert len(nodes) == 2
