"""Tests that need a CUDA device; skipped without one."""

import dataclasses
import json

import pytest
import torch
from trl import ModelConfig

from benchmarks.cases import prepare
from benchmarks.compare import compare
from benchmarks.gpu import small_case
from tests.conftest import fresh_roles, trainable_names
from tests.ppo.setup import make, prompts
from toolkit.kernels import use_kernels
from toolkit.models.passes import collate, completion_logprobs
from toolkit.models.roles import POLICY, REFERENCE, REWARD, VALUE

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("bits", [0, 4], ids=["bf16", "4bit"])
def test_ppo_trains_only_policy_and_value(
    bits, tiny_base, sft_run, reward_run, tokenizer, tmp_path
):
    config = ModelConfig(str(tiny_base), dtype="bfloat16", load_in_4bit=bits == 4)
    roles = fresh_roles(config)
    roles.attach(POLICY, sft_run, trainable=True, any_precision=True)
    roles.attach(REFERENCE, sft_run, any_precision=True)
    roles.attach(REWARD, reward_run, head=True, any_precision=True)
    roles.attach(VALUE, reward_run, head=True, trainable=True, any_precision=True)
    assert all(p.is_cuda for p in roles.model.parameters())
    before = {n: p.detach().clone() for n, p in roles.model.named_parameters()}
    make(roles, tokenizer, prompts(), tmp_path, use_cpu=False, bf16=True).train()
    changed = {n for n, p in roles.model.named_parameters() if not torch.equal(before[n], p)}
    assert changed == set(trainable_names(roles))
    first = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert abs(first["objective/kl"]) < 1e-2
    assert first["val/ratio"] == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("kernels", [True, False])
def test_logprobs_equal_those_of_the_cpu(kernels, make_ppo_roles):
    batch = collate([[1, 20, 30, 40], [1, 25]], [[50, 60, 2], [70, 80, 90, 2]], pad_id=0)
    results = []
    with use_kernels(kernels):
        roles = make_ppo_roles()
        for device in ("cpu", "cuda"):
            roles.model.to(device)
            moved = type(batch)(*(t.to(device) for t in dataclasses.astuple(batch)))
            with roles.using(POLICY) as model, torch.no_grad():
                logprobs, entropy = completion_logprobs(model, moved, temperature=0.7, entropy=True)
            results.append((logprobs.cpu(), entropy.cpu()))
    for on_cpu, on_gpu in zip(*results, strict=True):
        torch.testing.assert_close(on_gpu, on_cpu, atol=1e-3, rtol=1e-3)


def test_small_cuda_benchmark_case_runs(tmp_path):
    case = small_case("cuda-0.5b")
    prepare(case, tmp_path, sft=None, reward=None)
    entries = compare(case, tmp_path, peer=None, rounds=1)
    assert [entry["name"] for entry in entries] == ["cuda-0.5b", "cuda-0.5b-trunk"]
    assert all(entry["ours"]["peak_memory_mb"] > 0 for entry in entries)
