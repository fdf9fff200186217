"""The whole pipeline with small stages, in processes; and pretraining."""

import json
import subprocess
import sys

import pytest
import yaml

from tests.conftest import ROOT
from toolkit.cli import main
from toolkit.evaluation.report import validate
from toolkit.runs.run import Run

pytestmark = pytest.mark.slow
SMALL = {
    "sft": {"num_train_epochs": 1, "max_rows": 32},
    "label": {"train_prompts": 16, "test_prompts": 8},
    "reward": {"num_train_epochs": 1},
    "ppo": {
        "total_episodes": 32,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "save_steps": 2,
        "warmup_steps": 0,
        "logging_steps": 1,
    },
    "dpo": {"max_rows": 16},
    "evaluate": {"max_prompts": 12},
}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder with the shipped pipeline, every stage small."""
    folder = tmp_path_factory.mktemp("pipeline")
    shipped = yaml.safe_load((ROOT / "recipes/configs/world/pipeline.yaml").read_text())
    shipped["output_dir"] = str(folder / "runs")
    for stage in shipped["stages"].values():
        stage["options"] = stage.get("options", {}) | SMALL[stage["recipe"]]
    (folder / "pipeline.yaml").write_text(yaml.safe_dump(shipped, sort_keys=False))
    return folder


def pipeline(folder):
    command = [
        sys.executable,
        "-m",
        "toolkit",
        "pipeline",
        "--config",
        str(folder / "pipeline.yaml"),
    ]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_pipeline_runs_reports_and_continues(small):
    first = pipeline(small)
    assert first.returncode == 0, first.stdout + first.stderr
    for stage in ("sft", "comparisons", "reward", "ppo", "dpo", "report"):
        assert f"{stage:<12} finished in" in first.stdout
    assert "report.md" in first.stdout
    assert "toolkit app --runs" in first.stdout
    runs = small / "runs"
    report = json.loads((runs / "report.json").read_text())
    validate(report)
    assert set(report["checkpoints"]) == {"base", "sft", "ppo", "dpo"}
    assert set(report["timings_s"]) >= {"sft", "reward", "ppo", "dpo", "report"}
    assert len(list(runs.glob("*.png"))) == 6
    assert (runs / "ppo" / "value" / "head.safetensors").is_file()
    assert not (runs / "dpo" / "ref").exists()
    assert abs(report["reward_model"]["demonstration_mean"]) <= 0.05
    lineage = Run.load(runs / "ppo").parents
    assert lineage == {"adapter": str(runs / "sft"), "reward": str(runs / "reward")}
    assert Run.load(runs / "sft").base["id"] == "world:base"
    second = pipeline(small)  # runs nothing
    assert second.stdout.count("finished before") == 6


def test_pretrain_writes_a_base_like_the_shipped_one(tmp_path):
    words = ["pretrain", "--config", "world/pretrain", "--output_dir", str(tmp_path)]
    words += ["--max_steps", "3", "--torch_compile", "false", "--tokenizer_documents", "2000"]
    assert main(words) == 0
    shipped = json.loads((ROOT / "toolkit/world/assets/base/config.json").read_text())
    written = json.loads((tmp_path / "config.json").read_text())
    for key in ("hidden_size", "num_hidden_layers", "tie_word_embeddings", "dtype", "eos_token_id"):
        assert written[key] == shipped[key], key
    assert (tmp_path / "model.safetensors").stat().st_size < 12 * 2**20
