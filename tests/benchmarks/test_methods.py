"""The study of methods, from reports."""

import json

import pytest

from benchmarks import methods
from tests.evaluation.conftest import entry, interval
from toolkit.pipeline import Pipeline
from toolkit.runs.run import write_json

TRAINED = ("ppo", "rloo", "grpo", "dpo", "kto", "rejection_sft", "iterative_dpo")


@pytest.fixture
def folder(tmp_path):
    win = {"gold": interval(0.8), "proxy": None}
    entries = {name: entry(name, win_rate_vs_sft=win) for name in (*TRAINED, "best_of_16")}
    entries["rloo"]["win_rate_vs_sft"] = {"gold": interval(0.7), "proxy": None}
    entries["grpo"]["rates"]["correct"] = 0.6
    fit = {"best-of-n": {"alpha": 1.0, "beta": 0.1, "rmse": 0.0, "points": 6}}
    report = {"checkpoints": {"sft": entry("sft")} | entries, "overoptimization": fit}
    (tmp_path / "0").mkdir()
    write_json(tmp_path / "0" / "report.json", report)
    stages = {
        stage: {"seconds": 2.0, "peak_mb": 7} for used in methods.STAGES.values() for stage in used
    }
    write_json(tmp_path / "0" / "pipeline.json", stages)
    return tmp_path / "0"


def test_numbers_of_the_study(folder, tmp_path, capsys):
    words = [str(folder), "--output", str(tmp_path / "out.json"), "--images", str(tmp_path)]
    methods.main(methods.arguments().parse_args(words))
    written = json.loads((tmp_path / "out.json").read_text())
    seed = written["seeds"]["0"]
    assert seed["iterative_dpo"]["seconds"] == 8.0 and seed["ppo"]["peak_memory_mb"] == 7
    assert seed["best_of_16"]["seconds"] is None and seed["kto"]["gold_win_rate"] == 0.8
    assert written["gao"]["0"]["best-of-n"]["alpha"] == 1.0
    shown = capsys.readouterr().out
    assert "| kto | 0.80 | 0.40 | 0.70 | 0.02 | 1.00 | 0.55 | 2 | 7 |" in shown
    assert "seed 0: rloo wins 0.700 < 0.72" in shown
    assert "seed 0: grpo has fewer correct answers than SFT" in shown


def test_the_pipeline_has_the_stages_that_the_study_reads():
    names = {stage.name for stage in Pipeline.read("world/compare").stages}
    assert names >= {stage for used in methods.STAGES.values() for stage in used}
