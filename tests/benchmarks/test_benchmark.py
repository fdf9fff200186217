"""The benchmark in small: floors by hand, our side in a process of its own, the other if it is there."""

import dataclasses
import json
import subprocess
import sys

import pytest
from transformers import LlamaConfig

from benchmarks.cases import CASES, Case, prepare, read
from benchmarks.compare import compare, require_peer
from benchmarks.floor import Rates, Work, floor_seconds
from benchmarks.shares import kind_of
from benchmarks.table import to_markdown
from tests.conftest import ROOT
from toolkit.errors import ConfigError

PEER = ROOT / ".venv" / "peer" / "bin" / "python"
TINY = Case(
    "tiny",
    batch=4,
    micro_batch=2,
    prompt=5,
    completion=6,
    rollouts=1,
    hidden=32,
    layers=1,
    heads=2,
    intermediate=48,
    vocabulary=64,
    epochs=2,
    lora_r=2,
)


def test_the_floor_by_hand():
    """One layer, d = f = 2, V = 4, r = 1; 3 rows of 1 + 1 tokens, 1 epoch, all rates 1 per second."""
    config = LlamaConfig(
        hidden_size=2,
        intermediate_size=2,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        vocab_size=4,
    )
    case = dataclasses.replace(TINY, batch=3, epochs=1, lora_r=1)
    work = Work.of(config, case, prompt=1, completion=1)
    assert (work.trunk, work.lora, work.head) == (28, 28, 8)
    found = floor_seconds(work, case, Rates(1, 1, 1, 1), own_trunk=True)
    attention = 2 * 1 * 2 * 2
    assert found["generate"] == 3 * (56 + attention) + (3 * (56 + attention) + 2 * 8 * 3)
    forward, backward = 2 * 56 + attention, 2 * 28 + 4 * 28 + 2 * attention
    assert found["score"] == 3 * 3 * 2 * forward + 48
    assert found["update"] == 2 * 3 * 2 * (forward + backward) + 2 * 48
    trunk = floor_seconds(work, case, Rates(1, 1, 1, 1), own_trunk=False)
    assert trunk["update"] == 3 * 2 * (forward + backward) + 2 * 48
    slow_memory = floor_seconds(work, case, Rates(1, 1, 1, 0.1), own_trunk=True)
    assert slow_memory["generate"] == 3 * (56 + attention) + (28 + 8) * 4 / 0.1


def test_both_sides_get_the_same_prompts(tmp_path):
    prepare(TINY, tmp_path, sft=None, reward=None)
    case, prompts, runs = read(tmp_path)
    assert case == TINY
    assert runs == {}
    assert {len(p["ids"]) for p in prompts} == {5}
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    assert all(tokenizer(p["prompt"])["input_ids"] == p["ids"] for p in prompts)


@pytest.mark.timeout(300)
def test_a_case_is_measured_in_the_schema(tmp_path):
    prepare(TINY, tmp_path, sft=None, reward=None)
    peer = PEER if PEER.is_file() else None
    entries = compare(TINY, tmp_path, peer=peer, rounds=1)
    assert [e["name"] for e in entries] == ["tiny", "tiny-trunk"]
    for entry in entries:
        ours = entry["ours"]
        assert ours["episodes_per_s"] == pytest.approx(4 / sum(ours["seconds"].values()), rel=0.02)
        assert ours["mean_completion"] == 6
        assert 0 < ours["peak_memory_mb"] < 1000
        assert set(entry["floor_s"]) == set(entry["efficiency"]) == {"generate", "score", "update"}
        assert ("speedup" in entry) is (peer is not None)
    assert json.loads(json.dumps(entries)) == entries
    table = to_markdown(entries).splitlines()
    assert len(table) == 4
    assert len({line.count("|") for line in table}) == 1
    if peer is None:
        pytest.skip("our side only: the old trainer's environment is made by `make benchmark`")


@pytest.mark.timeout(300)
def test_an_updates_time_is_shared_out_by_kind_of_operation(tmp_path):
    prepare(TINY, tmp_path, sft=None, reward=None)
    words = [sys.executable, "-m", "benchmarks.shares", str(tmp_path), "--threads", "1"]
    ran = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "2 micro-batches, 1 threads" in ran.stdout
    lines = [line for line in ran.stdout.splitlines() if line.startswith("| ")]
    rows = [line.strip("| ").split(" | ") for line in lines[2:]]
    assert [kind for kind, _, _ in rows] == ["products", "attention", "rest"]
    assert sum(float(share) for _, _, share in rows) == pytest.approx(1, abs=0.02)
    assert all(float(share) > 0 for _, _, share in rows)


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("aten::mm", "products"),
        ("mkldnn::_linear_pointwise", "products"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "attention"),
        ("aten::mul", "rest"),
    ],
)
def test_operations_by_kind(operation, kind):
    assert kind_of(operation) == kind


def test_the_world_needs_its_runs_and_the_peer_its_environment(tmp_path):
    with pytest.raises(ConfigError, match="needs --sft and --reward"):
        prepare(CASES["world"], tmp_path, sft=None, reward=None)
    with pytest.raises(ConfigError, match="make benchmark"):
        require_peer(tmp_path / "python")
