"""A small benchmark: the floor by hand, both sides in their own processes, the list of scripts."""

import dataclasses
import json
import re
import subprocess
import sys

import pytest
from transformers import LlamaConfig

from benchmarks.cases import CASES, Case, prepare, read
from benchmarks.compare import compare, require_peer, to_markdown
from benchmarks.floor import Rates, Work, floor_seconds
from benchmarks.profile_updates import kind_of
from tests.conftest import ROOT
from toolkit.errors import ConfigError

PEER = ROOT / ".venv" / "peer" / "bin" / "python"
README = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
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


def test_floor_matches_hand_count():
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
    floor = floor_seconds(work, case, Rates(1, 1, 1, 1), own_trunk=True)
    attention = 2 * 1 * 2 * 2
    assert floor["generate"] == 3 * (56 + attention) + (3 * (56 + attention) + 2 * 8 * 3)
    forward, backward = 2 * 56 + attention, 2 * 28 + 4 * 28 + 2 * attention
    assert floor["score"] == 3 * 3 * 2 * forward + 48
    assert floor["update"] == 2 * 3 * 2 * (forward + backward) + 2 * 48
    trunk = floor_seconds(work, case, Rates(1, 1, 1, 1), own_trunk=False)
    assert trunk["update"] == 3 * 2 * (forward + backward) + 2 * 48
    slow_memory = floor_seconds(work, case, Rates(1, 1, 1, 0.1), own_trunk=True)
    assert slow_memory["generate"] == 3 * (56 + attention) + (28 + 8) * 4 / 0.1


def test_prompt_texts_and_ids_agree(tmp_path):
    prepare(TINY, tmp_path, sft=None, reward=None)
    case, prompts, runs = read(tmp_path)
    assert case == TINY
    assert runs == {}
    assert {len(p["ids"]) for p in prompts} == {5}
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    assert all(tokenizer(p["prompt"])["input_ids"] == p["ids"] for p in prompts)


@pytest.mark.slow
def test_case_is_measured_in_benchmark_schema(tmp_path):
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
        pytest.skip("our side only: `make benchmark` creates the old trainer's environment")


@pytest.mark.slow
def test_recipe_is_measured_against_trl_trainer(tmp_path):
    case = dataclasses.replace(TINY, name="dpo", recipe="dpo")
    prepare(case, tmp_path, sft=None, reward=None)
    (entry,) = compare(case, tmp_path, peer=None, rounds=1)
    ours, stock = entry["ours"], entry["peer"]
    assert entry["overhead"] == pytest.approx(ours["step_s"] / stock["step_s"], rel=0.05)
    assert entry["startup_ratio"] == pytest.approx(ours["startup_s"] / stock["startup_s"], rel=0.05)
    assert min(*ours.values(), *stock.values()) > 0
    assert to_markdown([entry]).splitlines()[2].startswith("| dpo | ")


@pytest.mark.slow
def test_profile_splits_update_by_kind_of_operation(tmp_path):
    # attention is 1 % of TINY's time
    long_rows = dataclasses.replace(TINY, prompt=64, completion=64)
    prepare(long_rows, tmp_path, sft=None, reward=None)
    script = ROOT / "benchmarks" / "profile_updates.py"
    command = [sys.executable, str(script), str(tmp_path), "--threads", "1"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "2 micro-batches, 1 threads" in output
    lines = [line for line in output.splitlines() if line.startswith("| ")]
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
def test_kind_of_operation(operation, kind):
    assert kind_of(operation) == kind


def test_missing_runs_or_environment_raise_config_error(tmp_path):
    with pytest.raises(ConfigError, match="needs --sft and --reward"):
        prepare(CASES["world"], tmp_path, sft=None, reward=None)
    with pytest.raises(ConfigError, match="make benchmark"):
        require_peer(tmp_path / "python")


def test_readme_and_makefile_name_existing_scripts():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    scripts = {f.name for f in (ROOT / "benchmarks").glob("*.py")}
    assert set(re.findall(r"`(\w+\.py)`", README)) == scripts
    for script, target in re.findall(r"\| `(\w+\.py)` \| `make (\w+)` ", README):
        recipe = makefile.split(f"\n{target}: ", 1)[1].split("\n\n", 1)[0]
        assert f"benchmarks/{script} " in recipe
    assert set(re.findall(r"benchmarks/(\w+\.py)", makefile)) <= scripts


@pytest.mark.parametrize("script", re.findall(r"\| `(\w+)\.py`", README))
def test_script_names_its_command(script):
    text = (ROOT / "benchmarks" / f"{script}.py").read_text(encoding="utf-8")
    docstring = text.split('"""')[1]
    assert f"python benchmarks/{script}.py" in docstring
    assert "docs/" in docstring or "README" in docstring
