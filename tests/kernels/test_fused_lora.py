"""The fused LoRA layers equal PEFT's, forward and backward, and call PEFT's in all other cases."""

import contextlib
import copy
import pickle

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from torch import nn

from toolkit.kernels import fused_lora, use_kernels
from toolkit.kernels.fused_lora import (
    FusedLoraLinear,
    _LoraLinear,
    add_lora,
    is_bare,
    use_fused_layers,
)
from toolkit.models.arguments import ModelArguments
from toolkit.models.base import load_base
from toolkit.models.roles import POLICY, Roles
from toolkit.sampling.generation import sample
from toolkit.sampling.settings import Sampling

BASES = {
    "bfloat16": ({"dtype": "bfloat16"}, "FusedLoraLinear"),
    "4 bit": ({"dtype": "bfloat16", "load_in_4bit": True}, "FusedLinear4bit"),
    "8 bit": ({"dtype": "bfloat16", "load_in_8bit": True}, "FusedLinear8bit"),
}


@pytest.fixture
def fused_calls(monkeypatch):
    """One entry for each call of a fused product."""
    calls = []
    for node in (fused_lora._LoraLinear, fused_lora._AddLora):
        apply = node.apply
        monkeypatch.setattr(node, "apply", lambda *a, of=apply: calls.append(1) or of(*a))
    return calls


# A small network in float64 or float32


def network(*, fused, dtype=torch.float64, **kwargs):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3, bias=False)).to(dtype)
    config = LoraConfig(r=2, lora_alpha=6, target_modules=["0", "2"], **kwargs)
    with use_kernels(fused):
        use_fused_layers(config)
        model = get_peft_model(net, config, autocast_adapter_dtype=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                generator = torch.Generator().manual_seed(len(name))
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model.to(dtype)


def output_and_gradients(model, x):
    x = x.clone().requires_grad_(True)
    out = model(x)
    (out**2).sum().backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return out.detach(), x.grad, gradients


def test_fused_layer_equals_peft_forward_and_backward(fused_calls):
    x = torch.randn(2, 4, 6, dtype=torch.float64)
    fused, plain = network(fused=True), network(fused=False)
    assert any(type(m) is FusedLoraLinear for m in fused.modules())
    assert any(type(m) is LoraLinear for m in plain.modules())
    out, grad_x, gradients = output_and_gradients(fused, x)
    assert len(fused_calls) == 2
    expected_out, expected_grad_x, expected = output_and_gradients(plain, x)
    assert len(fused_calls) == 2
    torch.testing.assert_close(out, expected_out)
    torch.testing.assert_close(grad_x, expected_grad_x)
    assert gradients.keys() == expected.keys() != set()
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient)


def test_fused_layer_has_the_numerical_gradient():
    shapes = [(4, 6), (5, 6), (5,), (2, 6), (5, 2)]
    torch.manual_seed(1)
    x, weight, bias, a, b = (torch.randn(s, dtype=torch.float64) for s in shapes)
    for tensor in (x, a, b):
        tensor.requires_grad_(True)
    assert torch.autograd.gradcheck(
        lambda x, a, b: _LoraLinear.apply(x, weight, bias, a, b, 1.5), (x, a, b)
    )


def test_add_lora_has_the_numerical_gradient():
    torch.manual_seed(2)
    out, x, a, b = (
        torch.randn(s, dtype=torch.float64, requires_grad=True)
        for s in ((2, 3, 5), (2, 3, 6), (2, 6), (5, 2))
    )
    assert torch.autograd.gradcheck(lambda *parts: add_lora(*parts, 1.5), (out, x, a, b))
    torch.testing.assert_close(add_lora(out, x, a, b, 1.5), out + 1.5 * x @ a.t() @ b.t())


def test_second_derivatives_raise_an_error():
    shapes = [(3, 5), (3, 6), (2, 6), (5, 2)]
    parts = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
    frozen = torch.randn(5, 6, dtype=torch.float64)
    out, x, a, b = parts
    for product in (
        add_lora(out, x, a, b, 1.5),
        _LoraLinear.apply(x, frozen, None, a, b, 1.5),
    ):
        (first,) = torch.autograd.grad(product.square().sum(), a, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            first.sum().backward()


@pytest.mark.parametrize("kwargs", [{"use_dora": True}, {"lora_dropout": 0.5}])
def test_dora_and_dropout_use_peft(kwargs, fused_calls):
    x = torch.randn(3, 6, dtype=torch.float64)
    outputs = []
    for fused in (True, False):
        model = network(fused=fused, **kwargs).train()
        torch.manual_seed(5)
        outputs.append(model(x))
    torch.testing.assert_close(*outputs)
    assert not fused_calls


@pytest.mark.parametrize("part", ["base_layer", "lora_A", "lora_B"])
def test_hooks_on_parts_of_a_layer_are_called(part):
    model = network(fused=True)
    layer = next(m for m in model.modules() if isinstance(m, FusedLoraLinear))
    inner, calls = getattr(layer, part), []
    inner = inner["default"] if part != "base_layer" else inner
    inner.register_forward_hook(lambda *_: calls.append(1))
    model(torch.randn(3, 6, dtype=torch.float64))
    assert len(calls) == 1


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


def test_disabled_merged_and_several_adapters_use_peft(fused_calls):
    x = torch.randn(3, 6, dtype=torch.float32)
    fused = network(fused=True, dtype=torch.float32)
    bare = copy.deepcopy(fused.get_base_model())
    expected = fused(x)
    fused_calls.clear()
    with fused.disable_adapter():
        disabled = fused(x)
    torch.testing.assert_close(disabled, bare[2].base_layer(bare[1](bare[0].base_layer(x))))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fused(x).dtype == torch.bfloat16
    fused.merge_adapter()
    torch.testing.assert_close(fused(x), expected)
    fused.unmerge_adapter()
    fused.add_adapter("other", LoraConfig(r=2, target_modules=["0", "2"]))
    fused.base_model.set_adapter(["default", "other"])
    torch.testing.assert_close(fused(x), expected, atol=1e-5, rtol=1e-5)
    assert not fused_calls


# A language model in bfloat16, 4 or 8 bit, with an adapter in float32


def policy_on(base, options, *, fused, dropout=0.0):
    """A PEFT model in training mode whose adapter is not the identity."""
    model = load_base(ModelArguments(str(base), **options))[0]
    config = LoraConfig(
        r=4, lora_alpha=8, lora_dropout=dropout, target_modules=["q_proj", "down_proj"]
    )
    with use_kernels(fused):
        use_fused_layers(config)
        policy = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_" in name:
                assert parameter.dtype == torch.float32
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return policy.train()


def lora_layers(policy):
    return {n: m for n, m in policy.named_modules() if isinstance(m, LoraLayer)}


def logits_and_gradients(policy, *, autocast=True):
    torch.manual_seed(1)
    ids = torch.randint(5, 60, (3, 9))
    with torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext():
        logits = policy(input_ids=ids).logits.float()
    logits.square().mean().backward()
    gradients = {n: p.grad for n, p in policy.named_parameters() if p.grad is not None}
    return logits.detach(), gradients


def layer_results(layer):
    """Output and gradients of a layer for random states in bfloat16, under autocast."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 7, layer.in_features, generator=generator).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    out.float().square().sum().backward()
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    results = {"out": out.detach(), "grad x": x.grad, "grad A": a.grad, "grad B": b.grad}
    a.grad = b.grad = None
    return results


def distance(tensor, expected):
    """Difference of two tensors as a share of the second's norm."""
    return float((tensor - expected).norm() / expected.norm())


@pytest.mark.parametrize("precision", BASES)
def test_fused_layers_equal_peft_under_autocast(precision, tiny_base, fused_calls):
    options, kind = BASES[precision]
    plain, fused = (lora_layers(policy_on(tiny_base, options, fused=f)) for f in (False, True))
    assert {type(layer).__name__ for layer in fused.values()} == {kind}
    assert {type(layer).__name__ for layer in plain.values()} != {kind}
    for name, peft_layer in plain.items():
        expected = layer_results(peft_layer)
        assert not fused_calls
        results = layer_results(fused[name])
        assert len(fused_calls) == 1
        fused_calls.clear()
        for key, tensor in expected.items():
            assert results[key].dtype == tensor.dtype
            assert distance(results[key], tensor) < 2**-7, (name, key)  # bfloat16 keeps 8 bits
        with torch.no_grad():
            peft_layer.lora_B["default"].weight.zero_()
        # the adapter counts
        assert distance(results["out"], layer_results(peft_layer)["out"]) > 0.1


@pytest.mark.parametrize("precision", BASES)
def test_all_layers_of_a_model_are_fused_under_autocast(precision, tiny_base, fused_calls):
    fused = policy_on(tiny_base, BASES[precision][0], fused=True)
    _, gradients = logits_and_gradients(fused)
    assert len(fused_calls) == len(lora_layers(fused))
    assert {g.dtype for g in gradients.values()} == {torch.float32}
    assert gradients.keys() == {n for n, p in fused.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("precision", BASES)
def test_float32_adapter_without_autocast_uses_peft(precision, tiny_base, fused_calls):
    options, _ = BASES[precision]
    plain, fused = (policy_on(tiny_base, options, fused=f).eval() for f in (False, True))
    logits, expected = (logits_and_gradients(m, autocast=False)[0] for m in (fused, plain))
    torch.testing.assert_close(logits, expected, rtol=0, atol=0)
    assert not fused_calls


@pytest.mark.parametrize("precision", BASES)
def test_dropout_and_second_adapter_use_peft_under_autocast(precision, tiny_base, fused_calls):
    policy = policy_on(tiny_base, BASES[precision][0], fused=True, dropout=0.5)
    logits_and_gradients(policy)
    policy.eval()
    policy.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    policy.base_model.set_adapter(["default", "other"])
    logits_and_gradients(policy)
    assert not fused_calls


def test_float32_base_under_autocast_uses_peft(tiny_base, fused_calls):
    logits_and_gradients(policy_on(tiny_base, {"dtype": "float32"}, fused=True))
    assert not fused_calls


@pytest.mark.parametrize("precision", BASES)
def test_fused_layer_can_be_copied_and_pickled(precision, tiny_base):
    policy = policy_on(tiny_base, BASES[precision][0], fused=True)
    layer = next(iter(lora_layers(policy).values()))
    expected = layer_results(layer)["out"]
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(copied) is type(layer)
        assert torch.equal(layer_results(copied)["out"], expected)


@pytest.mark.parametrize("precision", BASES)
def test_sampling_rounds_an_unmerged_adapter_once(precision, tiny_base):
    """The tokens are the same as without rounding it in advance, and the adapter is restored."""
    model = load_base(ModelArguments(str(tiny_base), **BASES[precision][0]))[0]
    roles = Roles(model.eval(), {})
    for name in (POLICY, "other"):
        roles.create(name, LoraConfig(r=4, target_modules=["q_proj", "down_proj", "lm_head"]))
        for number, parameter in enumerate(roles.parameters(name)):
            parameter.data = torch.sin(torch.arange(float(parameter.numel())) + number).view_as(
                parameter
            )
    before = {n: p.detach().clone() for n, p in roles.model.named_parameters()}
    decoded = []
    for context in (roles.using, roles.merged):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16), context(POLICY) as policy:
            dtypes = {p.dtype for p in roles.parameters(POLICY)}
            other_dtypes = {p.dtype for p in roles.parameters("other")}
            settings = Sampling(max_new_tokens=8, temperature=1.0)
            decoded.append(sample(policy, [[5, 6, 7], [9]], sampling=settings, stop=[], pad_id=0))
        assert dtypes == {torch.float32 if context == roles.using else torch.bfloat16}
        assert other_dtypes == {torch.float32}
    assert decoded[0].completions == decoded[1].completions
    assert torch.equal(decoded[0].logprobs, decoded[1].logprobs)
    for name, parameter in roles.model.named_parameters():
        assert parameter.dtype == before[name].dtype
        assert torch.equal(parameter, before[name])
    with roles.merged(POLICY):  # without autocast the adapter is multiplied in float32
        assert {p.dtype for p in roles.parameters(POLICY)} == {torch.float32}
