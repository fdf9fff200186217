"""The least possible time of a case: its matrix products and bytes divided by the rates of this machine.

The floor is not reachable, because it leaves out norms, activations, softmax and copies. It shows
where time can be saved: `efficiency` is the floor over the measured time.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import linear
from transformers import PretrainedConfig

from benchmarks.cases import Case
from benchmarks.common import seconds_in_turn

REPEATS = 9


@dataclass(frozen=True)
class Work:
    """Sizes of one rollout; parameter counts are those of matrix products.

    `trunk`, `lora`: parameters that each token passes through. `head`: parameters of the vocabulary
    head. `width`: hidden size. `prompt`, `completion`: mean tokens per row.
    """

    trunk: int
    lora: int
    head: int
    layers: int
    width: int
    prompt: float
    completion: float

    @classmethod
    def of(cls, config: PretrainedConfig, case: Case, prompt: float, completion: float) -> "Work":
        """Sizes of a Llama with LoRA on all its linear layers."""
        d, f = config.hidden_size, config.intermediate_size
        kv = d // config.num_attention_heads * config.num_key_value_heads
        shapes = [(d, d), (d, kv), (d, kv), (d, d), (d, f), (d, f), (f, d)]
        n = config.num_hidden_layers
        return cls(
            trunk=n * sum(a * b for a, b in shapes),
            lora=n * sum(case.lora_r * (a + b) for a, b in shapes),
            head=d * config.vocab_size,
            layers=n,
            width=d,
            prompt=prompt,
            completion=completion,
        )


@dataclass(frozen=True)
class Rates:
    """Floating-point operations per second at the case's own shapes, and bytes copied per second."""

    decode: float
    whole: float
    head: float
    copy: float


def floor_seconds(work: Work, case: Case, rates: Rates, *, own_trunk: bool) -> dict[str, float]:
    """The least seconds of each phase of one rollout.

    Args:
        own_trunk: the value role has its own adapter, and so its own passes.
    """
    rows, tokens = case.batch, work.prompt + work.completion
    attention = 2 * work.layers * work.width * tokens  # per token; half of Q·Kᵀ and of A·V
    forward = 2 * (work.trunk + work.lora) + attention
    backward = 2 * work.trunk + 4 * work.lora + 2 * attention  # frozen weights have no gradient
    vocabulary = 2 * work.head * rows * work.completion
    prefill = rows * work.prompt * (2 * work.trunk + attention)
    steps = rows * work.completion * (2 * work.trunk + attention) + vocabulary
    size = torch.finfo(getattr(torch, case.dtype)).bits / 8
    read = work.completion * (work.trunk + work.head) * size
    passes = 3 if own_trunk else 2  # reference, reward, value
    policy_only = case.epochs * rows * tokens * (forward + backward)
    return {
        "generate": prefill / rates.whole + max(steps / rates.decode, read / rates.copy),
        "score": passes * rows * tokens * forward / rates.whole + vocabulary / rates.head,
        "update": policy_only * (2 if own_trunk else 1) / rates.whole
        + case.epochs * 2 * vocabulary / rates.head,
    }


def measure_rates(work: Work, case: Case, config: PretrainedConfig) -> Rates:
    """Measure this machine's rates at the shapes of one pass and one decoding step."""
    device = "cuda" if case.cuda else "cpu"
    dtype = getattr(torch, case.dtype)
    rows = round(case.micro_batch * (work.prompt + work.completion))
    answers = round(case.micro_batch * work.completion)

    def product(n: int, inner: int, outer: int) -> float:
        left = torch.randn(n, inner, device=device, dtype=dtype)
        right = torch.randn(outer, inner, device=device, dtype=dtype)
        return 2 * n * inner * outer / _seconds(lambda: linear(left, right), device)

    source = torch.empty(64 << 20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    d, f = config.hidden_size, config.intermediate_size
    return Rates(
        decode=product(case.batch, d, f),
        whole=product(rows, d, f),
        head=product(min(answers, (64 << 20) // config.vocab_size), d, config.vocab_size),
        copy=source.numel() / _seconds(lambda: target.copy_(source), device),
    )


def _seconds(work: Callable[[], object], device: str) -> float:
    def synchronized() -> None:
        work()
        if device == "cuda":
            torch.cuda.synchronize()

    return seconds_in_turn({"work": synchronized}, rounds=REPEATS, warm_up=2)["work"]
