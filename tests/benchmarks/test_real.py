"""The numbers of `make real`: made from pipelines, and those that docs/results/real/ claims."""

import json

import pytest

from benchmarks import real
from tests.conftest import ROOT
from tests.evaluation.conftest import entry, interval
from toolkit.runs.run import Run, write_json

SUMMARY = ROOT / "docs" / "results" / "real" / "summary.json"


def pipeline(folder, ppo):
    """A pipeline's directory in which PPO's run logged two evaluations."""
    sft = entry("sft", base_perplexity=8.0, proxy=interval(0.1), ended=0.8)
    ppo = entry("ppo", proxy=interval(0.7), kl_to_sft=5.0, ended=0.9, **ppo)
    judged = {
        "pairwise_accuracy": 0.6,
        "pairwise_accuracy_ci95": [0.55, 0.65],
        "length_accuracy": 0.52,
        "length_correlation": -0.2,
        "pairs": 250,
    }
    checkpoints = {"sft": sft, "ppo": ppo, "dpo": ppo}
    with Run.start(folder / "ppo", recipe="ppo") as run:
        run.begin()
        run.finish(warnings=["warning/kl"])
    rows = [{"step": s} | dict.fromkeys(EVALUATED, s / 10) for s in (0, 8)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "ppo" / "metrics.jsonl").write_text(lines)
    write_json(folder / "report.json", {"checkpoints": checkpoints, "reward_model": judged})
    (folder / "report.md").write_text("# Evaluation\n")
    write_json(folder / "pipeline.json", {n: {"seconds": 120.0} for n in (*checkpoints, "reward")})
    return folder


EVALUATED = ("eval_objective/scores", "eval_objective/kl", "eval_objective/ended")


def test_summary_has_the_numbers_of_the_reports(tmp_path, capsys):
    gain = {"gold": None, "proxy": {"mean": 0.6, "ci95": [0.5, 0.7]}}
    ppo = {"base_perplexity": 10.0, "gain_vs_sft": gain}
    folders = [pipeline(tmp_path / name, ppo) for name in ("0", "1", "preferences")]
    words = [*map(str, folders[:2]), "--preferences", str(folders[2])]
    real.main(real.arguments().parse_args([*words, "--output", str(tmp_path / "out")]))
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert list(summary["seeds"]) == ["0", "1"]
    numbers = summary["seeds"]["1"]["ppo"]
    assert numbers["reward"] == {"sft": 0.1, "ppo": 0.7}
    assert numbers["gain"] == {"mean": 0.6, "ci95": [0.5, 0.7]}
    assert (numbers["perplexity_ratio"], numbers["kl"], numbers["minutes"]) == (1.25, 5.0, 2.0)
    assert summary["reward_model"]["accuracy"] == 0.6
    assert summary["dpo"]["ended"] == 0.9
    alone = ["--preferences", str(folders[2]), "--output", str(tmp_path / "out")]
    real.main(real.arguments().parse_args(alone))  # keeps the seeds
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary
    assert (tmp_path / "out" / "tone.png").stat().st_size > 5000
    assert "| 0 | 0.10 | 0.70 | 0.60 [0.50, 0.70] | 5.0 | 1.25 |" in capsys.readouterr().out


@pytest.mark.parametrize("seed", json.loads(SUMMARY.read_text(encoding="utf-8"))["seeds"])
def test_ppo_learned_on_the_real_model(seed):
    """The committed numbers are within the bounds that docs/real.md names."""
    ppo = json.loads(SUMMARY.read_text(encoding="utf-8"))["seeds"][seed]["ppo"]
    assert ppo["gain"]["mean"] >= 0.4
    assert ppo["gain"]["ci95"][0] > 0.3
    assert ppo["kl"] <= 10
    assert ppo["ended"]["ppo"] >= ppo["ended"]["sft"]
    assert ppo["perplexity_ratio"] <= 1.5
    assert ppo["minutes"] <= 12
