"""Products by oneDNN where MKL does not use the processor's AVX-512: the same numbers, no hoard."""

import subprocess
import sys

import pytest
import torch
from torch.nn.functional import linear as pytorchs

from toolkit.kernels import products
from toolkit.kernels.products import frozen_linear, is_bare, linear, onednn_pays_from, through

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this PyTorch was built without oneDNN"
)


@pytest.fixture
def onednn(monkeypatch):
    """As on a processor where it is always the faster; returns how often it was asked."""
    calls = []

    def from_the_first():
        calls.append(1)
        return products.PaysFrom(1, 1, 1)

    monkeypatch.setattr(products, "onednn_pays_from", from_the_first)
    return calls


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 7, 5), (64, 192, 512), (333, 48, 16), (16, 900, 192)])
def test_it_equals_pytorchs_product(shape, bias, onednn):
    n, inner, outer = shape
    x, weight = torch.randn(n, inner) / inner**0.5, torch.randn(outer, inner)
    added = torch.randn(outer) if bias else None
    torch.testing.assert_close(linear(x, weight, added), pytorchs(x, weight, added))
    # transposed views are what the backward pass multiplies
    torch.testing.assert_close(
        linear(x.t().contiguous().t(), weight.t().contiguous().t(), added),
        pytorchs(x, weight, added),
    )
    assert onednn


@pytest.mark.parametrize("shape", [(6,), (4, 6), (2, 3, 6)])
def test_the_gradient_of_frozen_weights_goes_to_the_input(shape, onednn):
    weight, bias = torch.randn(5, 6), torch.randn(5)
    ours, theirs = (torch.ones(shape).mul_(0.3).requires_grad_(True) for _ in range(2))
    found, expected = frozen_linear(ours, weight, bias), pytorchs(theirs, weight, bias)
    torch.testing.assert_close(found, expected)
    (found**2).sum().backward()
    (expected**2).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    assert onednn


def test_weights_that_learn_keep_their_gradient(onednn):
    weight = torch.randn(5, 6, requires_grad=True)
    frozen_linear(torch.randn(3, 6), weight).sum().backward()
    assert weight.grad is not None and weight.grad.abs().sum() > 0
    assert not onednn


def test_other_precisions_are_pytorchs(onednn):
    for dtype in (torch.float64, torch.bfloat16):
        x, weight = torch.randn(4, 6, dtype=dtype), torch.randn(5, 6, dtype=dtype)
        assert torch.equal(linear(x, weight), pytorchs(x, weight))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert frozen_linear(torch.randn(4, 6), torch.randn(5, 6)).dtype == torch.bfloat16
    assert not onednn


ZEN_4, ZEN_5, NEVER = products.WORTH_IT[25], products.WORTH_IT[26], products.NEVER


@pytest.mark.parametrize(
    ("processor", "width", "pays_from"),
    [
        ("vendor_id\t: AuthenticAMD\ncpu family\t: 26\nmodel\t\t: 2", "AVX512", ZEN_5),
        ("AMD64 Family 26 Model 68 Stepping 0, AuthenticAMD", "AVX512", ZEN_5),
        ("vendor_id\t: AuthenticAMD\ncpu family\t: 27", "AVX512", ZEN_5),
        ("vendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17", "AVX512", ZEN_4),
        ("vendor_id\t: AuthenticAMD\ncpu family\t: 26\nmodel\t\t: 2", "AVX2", NEVER),
        ("vendor_id\t: AuthenticAMD\ncpu family\t: 23", "AVX512", NEVER),
        ("vendor_id\t: GenuineIntel\ncpu family\t: 26", "AVX512", NEVER),
        ("AuthenticAMD", "AVX512", NEVER),
        ("", "AVX512", NEVER),
    ],
)
def test_it_is_chosen_where_mkl_leaves_avx512_unused(processor, width, pays_from, monkeypatch):
    """AMD's family 26, Zen 5, does 512 bits at once; 25, Zen 4, in two halves."""
    monkeypatch.setattr(products, "_processor", lambda: processor)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: width)
    assert onednn_pays_from.__wrapped__() == pays_from


@pytest.mark.parametrize(
    ("rows", "narrow", "chosen"),
    [
        (16, False, True),
        (12, False, False),
        (200, False, False),
        (300, False, True),
        (16, True, False),
        (64, True, True),
    ],
)
def test_few_rows_and_narrow_matrices_have_bounds_of_their_own(rows, narrow, chosen, monkeypatch):
    monkeypatch.setattr(products, "onednn_pays_from", lambda: ZEN_4)
    x, weight = torch.zeros(rows, 768), torch.zeros(768, 768)
    assert products._with_onednn(x, weight, narrow=narrow) is chosen


def test_many_shapes_leave_no_hoard():
    """Packed rows come in hundreds of shapes, and both caches would keep something for each."""
    script = """
import resource, torch
from toolkit.kernels import products
products.onednn_pays_from = lambda: products.WORTH_IT[26]
rows, weight = torch.randn(1200, 192), torch.randn(512, 192)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
products.linear(rows, weight)
before = peak()
for n in range(700, 1200):
    products.linear(rows[:n], weight)
print(peak() - before)
"""
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    assert float(ran.stdout) < 64, "MB after 500 shapes, of which 16 may be kept"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda layer: layer.register_forward_hook(lambda *_: None),
        lambda layer: layer.register_forward_pre_hook(lambda *_: None),
        lambda layer: layer.register_full_backward_hook(lambda *_: None),
        lambda layer: setattr(layer, "forward", layer.forward),  # as accelerate's offloading does
    ],
)
def test_a_layer_that_does_more_than_a_product_is_not_bare(spoil):
    layer = torch.nn.Linear(6, 5)
    assert is_bare(layer)
    spoil(layer)
    assert not is_bare(layer)


def test_a_layer_with_hooks_is_called(onednn):
    layer = torch.nn.Linear(6, 5).requires_grad_(False)
    x = torch.randn(2, 3, 6)
    torch.testing.assert_close(through(layer, x), layer(x))
    assert onednn
    layer.register_forward_hook(lambda module, given, found: found + 1)
    torch.testing.assert_close(through(layer, x), layer(x))
