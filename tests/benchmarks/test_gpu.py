"""The GPU script in small shapes on this machine, and its tables in the docs."""

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks.gpu import LIMITS, PRECISIONS, run_part, to_markdown
from tests.conftest import ROOT


@pytest.mark.slow
def test_every_kind_of_part_runs_and_is_recorded(tmp_path):
    output = tmp_path / "cuda.json"
    names = ["precision", "speed:cuda-0.5b", "memory:qwen3-8b-qlora"]
    command = [sys.executable, "-m", "benchmarks.gpu", "--tiny", "--output", output]
    command += ["--peer", tmp_path / "none", "--parts", *names]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    content = json.loads(output.read_text())
    assert (content["schema"], content["tiny"]) == (1, True)
    parts = {part["part"]: part for part in content["parts"]}
    assert set(parts) == set(names)
    for part in parts.values():
        assert part["state"] == "passed", part["error"]
        assert 0 < part["seconds"] < LIMITS[part["part"]]
        assert part["rows"]
    assert [row["precision"] for row in parts["precision"]["rows"]] == list(PRECISIONS)
    assert all(len(row["losses"]) == 3 for row in parts["precision"]["rows"])
    memory = {row["stage"]: row for row in parts["memory:qwen3-8b-qlora"]["rows"]}
    assert set(memory) == {"sft", "reward", "ppo", "dpo"}
    assert all(row["predicted_gb"] > 0 and "measured_gb" in row for row in memory.values())
    assert [row["name"] for row in parts["speed:cuda-0.5b"]["rows"]] == [
        "cuda-0.5b",
        "cuda-0.5b-trunk",
    ]
    assert to_markdown(content["parts"]) in process.stdout


def test_part_over_its_time_limit_is_recorded():
    part = run_part("tests", 0.2, Namespace(peer=Path("none"), tiny=True))
    assert (part["state"], part["rows"]) == ("out of time", [])


def test_docs_show_the_results_of_the_gpu():
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    results = ROOT / "docs" / "results" / "cuda.json"
    if results.is_file():
        assert to_markdown(json.loads(results.read_text())["parts"]) in text
    else:
        assert "No number has been measured on a GPU yet." in text
