"""The fused LoRA layer against PEFT's own, forward and backward, and where it steps aside."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from torch import nn

from toolkit.kernels.fused_lora import FusedLoraLinear, _LoraProduct, is_bare
from toolkit.kernels.fusing import fuse


def adapted(*, fused, dtype=torch.float64, **kwargs):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3, bias=False)).to(dtype)
    config = LoraConfig(r=2, lora_alpha=6, target_modules=["0", "2"], **kwargs)
    if fused:
        fuse(config)
    model = get_peft_model(net, config, autocast_adapter_dtype=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                generator = torch.Generator().manual_seed(len(name))
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model.to(dtype)


def results(model, x):
    x = x.clone().requires_grad_(True)
    out = model(x)
    (out**2).sum().backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return out.detach(), x.grad, gradients


@pytest.fixture
def short_way(monkeypatch):
    """How often the fused product was used."""
    calls, apply = [], _LoraProduct.apply
    monkeypatch.setattr(_LoraProduct, "apply", lambda *a: calls.append(1) or apply(*a))
    return calls


def test_it_equals_pefts_layer_forward_and_backward(short_way):
    x = torch.randn(2, 4, 6, dtype=torch.float64)
    fused, plain = adapted(fused=True), adapted(fused=False)
    assert any(type(m) is FusedLoraLinear for m in fused.modules())
    assert any(type(m) is LoraLinear for m in plain.modules())
    (out, to_x, found), (out2, to_x2, expected) = results(fused, x), results(plain, x)
    torch.testing.assert_close(out, out2)
    torch.testing.assert_close(to_x, to_x2)
    assert found.keys() == expected.keys() != set()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient)
    assert len(short_way) == 2


def test_its_gradient_is_the_numerical_one():
    shapes = [(4, 6), (5, 6), (5,), (2, 6), (5, 2)]
    torch.manual_seed(1)
    x, weight, bias, low, high = (torch.randn(s, dtype=torch.float64) for s in shapes)
    for tensor in (x, low, high):
        tensor.requires_grad_(True)
    assert torch.autograd.gradcheck(
        lambda x, low, high: _LoraProduct.apply(x, weight, bias, low, high, 1.5), (x, low, high)
    )


@pytest.mark.parametrize("kwargs", [{"use_dora": True}, {"lora_dropout": 0.5}])
def test_what_it_does_not_know_is_pefts(kwargs, short_way):
    x = torch.randn(3, 6, dtype=torch.float64)
    fused, plain = adapted(fused=True, **kwargs), adapted(fused=False, **kwargs)
    for model in (fused, plain):
        model.train()
    found = []
    for model in (fused, plain):
        torch.manual_seed(5)
        found.append(model(x))
    torch.testing.assert_close(*found)
    assert not short_way


@pytest.mark.parametrize("part", ["base_layer", "lora_A", "lora_B"])
def test_hooks_on_its_parts_are_called(part, short_way):
    model = adapted(fused=True)
    layer = next(m for m in model.modules() if isinstance(m, FusedLoraLinear))
    inner, calls = getattr(layer, part), []
    inner = inner["default"] if part != "base_layer" else inner
    inner.register_forward_hook(lambda *_: calls.append(1))
    model(torch.randn(3, 6, dtype=torch.float64))
    assert len(calls) == 1


def test_two_adapters_merging_switching_off_and_autocast_are_pefts(short_way):
    x = torch.randn(3, 6, dtype=torch.float32)
    fused = adapted(fused=True, dtype=torch.float32)
    bare = copy.deepcopy(fused.get_base_model())
    expected = fused(x)
    short_way.clear()
    with fused.disable_adapter():
        off = fused(x)
    torch.testing.assert_close(off, bare[2].base_layer(bare[1](bare[0].base_layer(x))))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fused(x).dtype == torch.bfloat16
    fused.merge_adapter()
    torch.testing.assert_close(fused(x), expected)
    fused.unmerge_adapter()
    fused.add_adapter("other", LoraConfig(r=2, target_modules=["0", "2"]))
    fused.base_model.set_adapter(["default", "other"])
    torch.testing.assert_close(fused(x), expected, atol=1e-5, rtol=1e-5)
    assert not short_way


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.register_forward_hook(lambda *_: None),
        lambda layer: layer.register_forward_pre_hook(lambda *_: None),
        lambda layer: layer.register_full_backward_hook(lambda *_: None),
        lambda layer: setattr(layer, "forward", layer.forward),  # as accelerate's offloading does
    ],
)
def test_layers_with_hooks_or_own_forward_are_not_bare(change):
    layer = nn.Linear(6, 5)
    assert is_bare(layer)
    change(layer)
    assert not is_bare(layer)
