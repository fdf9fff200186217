"""The short way of LoRA's layers in mixed and in low precision, against PEFT's own layers."""

import contextlib
import copy
import pickle

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer

from toolkit.kernels import fused_lora, fused_quantized
from toolkit.kernels.fusing import fuse
from toolkit.models.arguments import ModelArguments
from toolkit.models.base import load_base
from toolkit.models.roles import POLICY, Roles
from toolkit.sampling.generation import sample
from toolkit.sampling.settings import Sampling

BASES = {
    "bfloat16": ({"dtype": "bfloat16"}, "FusedLoraLinear"),
    "4 bit": ({"dtype": "bfloat16", "load_in_4bit": True}, "ShortLinear4bit"),
    "8 bit": ({"dtype": "bfloat16", "load_in_8bit": True}, "ShortLinear8bit"),
}


def adapted(base, options, *, fused, dropout=0.0):
    """A policy on a frozen base whose adapter, in float32, does something."""
    model = load_base(ModelArguments(str(base), **options))[0]
    config = LoraConfig(
        r=4, lora_alpha=8, lora_dropout=dropout, target_modules=["q_proj", "down_proj"]
    )
    if fused:
        fuse(config)
    policy = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_" in name:
                assert parameter.dtype == torch.float32
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return policy.train()


def kinds(policy):
    return {type(m).__name__ for _, m in layers(policy)}


def results(policy, *, autocast=True):
    torch.manual_seed(1)
    ids = torch.randint(5, 60, (3, 9))
    inside = torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext()
    with inside:
        logits = policy(input_ids=ids).logits.float()
    logits.square().mean().backward()
    gradients = {n: p.grad for n, p in policy.named_parameters() if p.grad is not None}
    return logits.detach(), gradients


def layers(policy):
    return ((n, m) for n, m in policy.named_modules() if isinstance(m, LoraLayer))


def layer_results(layer):
    """What a layer makes of states in bfloat16, and the gradients."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 7, layer.in_features, generator=generator).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    out.float().square().sum().backward()
    low, high = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    found = {"out": out.detach(), "to x": x.grad, "to A": low.grad, "to B": high.grad}
    low.grad = high.grad = None
    return found


@pytest.fixture
def short_ways(monkeypatch):
    """How often either product of ours was used."""
    calls = []
    for node in (fused_lora._LoraProduct, fused_quantized._Share):
        apply = node.apply
        monkeypatch.setattr(node, "apply", lambda *a, of=apply: calls.append(1) or of(*a))
    return calls


def distance(found, expected):
    """Of two tensors, as a share of the second's length."""
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("precision", BASES)
def test_under_autocast_parity_with_pefts_layer(precision, tiny_base, short_ways):
    options, kind = BASES[precision]
    plain, fused = (adapted(tiny_base, options, fused=f) for f in (False, True))
    assert kinds(fused) == {kind} and kinds(plain) != {kind}
    for (name, theirs), ours in zip(layers(plain), dict(layers(fused)).values(), strict=True):
        expected = layer_results(theirs)
        assert not short_ways
        found = layer_results(ours)
        assert len(short_ways) == 1
        short_ways.clear()
        for key, tensor in expected.items():
            assert found[key].dtype == tensor.dtype
            assert distance(found[key], tensor) < 2**-7, (name, key)  # bfloat16 keeps 8 bits
        with torch.no_grad():
            theirs.lora_B["default"].weight.zero_()
        assert distance(found["out"], layer_results(theirs)["out"]) > 0.1  # so the adapter counts


@pytest.mark.parametrize("precision", BASES)
def test_under_autocast_every_layer_of_a_model_takes_the_short_way(
    precision, tiny_base, short_ways
):
    fused = adapted(tiny_base, BASES[precision][0], fused=True)
    _, gradients = results(fused)
    assert len(short_ways) == len(list(layers(fused)))
    assert {g.dtype for g in gradients.values()} == {torch.float32}
    assert gradients.keys() == {n for n, p in fused.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("precision", BASES)
def test_without_autocast_an_adapter_in_float32_is_multiplied_as_peft_does(
    precision, tiny_base, short_ways
):
    options, _ = BASES[precision]
    plain, fused = (adapted(tiny_base, options, fused=f) for f in (False, True))
    for model in (plain, fused):
        model.eval()
    torch.testing.assert_close(
        results(fused, autocast=False)[0], results(plain, autocast=False)[0], rtol=0, atol=0
    )
    assert not short_ways


@pytest.mark.parametrize("precision", BASES)
def test_dropout_and_a_second_adapter_are_pefts_under_autocast(precision, tiny_base, short_ways):
    options, _ = BASES[precision]
    policy = adapted(tiny_base, options, fused=True, dropout=0.5)
    results(policy)
    policy.eval()
    policy.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    policy.base_model.set_adapter(["default", "other"])
    results(policy)
    assert not short_ways


def test_a_base_in_float32_under_autocast_is_pefts(tiny_base, short_ways):
    results(adapted(tiny_base, {"dtype": "float32"}, fused=True))
    assert not short_ways


@pytest.mark.parametrize("precision", BASES)
def test_a_layer_can_be_copied_and_pickled(precision, tiny_base):
    layer = next(m for _, m in layers(adapted(tiny_base, BASES[precision][0], fused=True)))
    expected = layer_results(layer)["out"]
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(other) is type(layer)
        assert torch.equal(layer_results(other)["out"], expected)


def test_second_derivatives_are_refused_and_not_wrong():
    shapes = [(3, 5), (3, 6), (2, 6), (5, 2)]
    parts = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
    frozen = torch.randn(5, 6, dtype=torch.float64)
    out, x, low, high = parts
    for found in (
        fused_quantized.add_share(out, x, low, high, 1.5),
        fused_lora._LoraProduct.apply(x, frozen, None, low, high, 1.5),
    ):
        (first,) = torch.autograd.grad(found.square().sum(), low, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            first.sum().backward()


def test_the_share_has_the_numerical_gradient():
    torch.manual_seed(2)
    out, x, low, high = (
        torch.randn(s, dtype=torch.float64, requires_grad=True)
        for s in ((2, 3, 5), (2, 3, 6), (2, 6), (5, 2))
    )
    assert torch.autograd.gradcheck(
        lambda *parts: fused_quantized.add_share(*parts, 1.5), (out, x, low, high)
    )
    torch.testing.assert_close(
        fused_quantized.add_share(out, x, low, high, 1.5), out + 1.5 * x @ low.t() @ high.t()
    )


@pytest.mark.parametrize("kind", BASES)
def test_an_adapter_beside_its_layer_is_rounded_once_while_sampling(kind, tiny_base):
    """Not at every token; the tokens are the same, and the adapter is what it was, to the bit."""
    options, _ = BASES[kind]
    model = load_base(ModelArguments(str(tiny_base), **options))[0]
    roles = Roles(model.eval(), {})
    for name in (POLICY, "other"):
        roles.create(name, LoraConfig(r=4, target_modules=["q_proj", "down_proj", "lm_head"]))
        for number, parameter in enumerate(roles._parameters(name)):
            parameter.data = torch.sin(torch.arange(float(parameter.numel())) + number).view_as(
                parameter
            )
    before = {n: p.detach().clone() for n, p in roles.model.named_parameters()}
    said = []
    for context in (roles.using, roles.merged):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16), context(POLICY) as policy:
            types = {p.dtype for p in roles._parameters(POLICY)}
            others = {p.dtype for p in roles._parameters("other")}
            drawn = Sampling(max_new_tokens=8, temperature=1.0)
            said.append(sample(policy, [[5, 6, 7], [9]], sampling=drawn, stop=[], pad_id=0))
        assert types == {torch.float32 if context == roles.using else torch.bfloat16}
        assert others == {torch.float32}
    assert said[0].completions == said[1].completions
    assert torch.equal(said[0].logprobs, said[1].logprobs)
    for name, parameter in roles.model.named_parameters():
        assert parameter.dtype == before[name].dtype
        assert torch.equal(parameter, before[name])
    with roles.merged(POLICY):  # without autocast they are multiplied in float32
        assert {p.dtype for p in roles._parameters(POLICY)} == {torch.float32}
