"""The tables of several seeds, the claims about them, and the trade-off of PPO-ptx."""

import copy
import json

import pytest

from benchmarks import seeds, tradeoff
from tests.evaluation.conftest import entry, interval, report  # noqa: F401
from toolkit.errors import ConfigError
from toolkit.runs.run import Run, write_json


def model(recipe, win, lm_loss, correct=0.8, over_refusal=0.02):
    wins = {"gold": interval(win), "proxy": interval(win)}
    numbers = entry(recipe, win_rate_vs_sft=wins, lm_loss=lm_loss)
    numbers["rates"] |= {"correct": correct, "over_refusal": over_refusal}
    return numbers


def pipeline(folder, report, familiar=0.03, seconds=(), **changes):  # noqa: F811
    """A pipeline's directory with lm_loss 0.5 for SFT, 0.7 for PPO and 0.58 for PPO-ptx.

    Args:
        familiar: PPO's over-refusal in phrasings that training used.
        seconds: of stages, 100 by default.
    """
    report = copy.deepcopy(report)
    report["checkpoints"] = {
        "sft": model("sft", 0.5, 0.5, correct=0.7),
        "ppo": model("ppo", 0.85, 0.7),
        "dpo": model("dpo", 0.78, 0.6),
        "ppo_ptx": model("ppo", 0.83, 0.58),
    } | changes
    folder.mkdir()
    write_json(folder / "report.json", report)
    (folder / "familiar").mkdir()
    checkpoints = {"ppo": model("ppo", 0.85, 0.7, over_refusal=familiar)}
    write_json(folder / "familiar" / "report.json", report | {"checkpoints": checkpoints})
    stage_seconds = dict.fromkeys(("sft", "ppo", "ppo_ptx"), 100.0) | dict(seconds)
    stages = {name: {"seconds": s, "peak_mb": 900} for name, s in stage_seconds.items()}
    write_json(folder / "pipeline.json", stages)
    return folder


def verdicts(folder):
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return summary, {claim["claim"]: claim["verdict"] for claim in summary["claims"]}


def test_seeds_within_bounds_hold_all_claims(report, tmp_path, capsys):  # noqa: F811
    seeds.main([pipeline(tmp_path / str(n), report) for n in range(2)])
    summary, claims = verdicts(tmp_path)
    assert set(claims.values()) == {"holds"}
    assert len(claims) == 9
    assert list(summary["seeds"]) == ["0", "1"]
    assert summary["seeds"]["1"]["ppo_ptx"]["gold_win_rate"] == 0.83
    assert summary["seeds"]["0"]["ppo"]["ci95"] == pytest.approx([0.8, 0.9])
    assert summary["lm_loss"]["ppo_ptx"] == [0.58, 0.58]
    printed = capsys.readouterr().out
    # (0.7 − 0.58) / (0.7 − 0.5) and 0.85 − 0.83
    assert "| share of PPO's rise in lm_loss that PPO-ptx avoids | ≥ 0.5 | 0.6 | holds |" in printed
    assert "| win rate, PPO minus PPO-ptx, mean | ≤ 0.03 | 0.02 | holds |" in printed


@pytest.mark.parametrize(
    ("changes", "fails"),
    [
        ({"ppo": model("ppo", 0.74, 0.7)}, {"each seed", "over SFT, mean"}),
        ({"ppo": model("ppo", 0.85, 0.7, correct=0.7)}, {"correct answers, PPO minus SFT"}),
        ({"ppo": model("ppo", 0.85, 0.7, over_refusal=0.16)}, {"over_refusal in unseen"}),
        ({"familiar": 0.09}, {"over_refusal in familiar"}),
        ({"ppo_ptx": model("ppo", 0.7, 0.65)}, {"PPO-ptx avoids", "PPO minus PPO-ptx"}),
        ({"seconds": {"ppo": 181.0}}, {"seconds that PPO takes, each seed"}),
        ({"seconds": {"ppo_ptx": 181.0}}, {"seconds that PPO-ptx takes, each seed"}),
    ],
)
def test_claim_fails_if_one_seed_breaks_it(report, tmp_path, changes, fails):  # noqa: F811
    seeds.main([pipeline(tmp_path / "0", report), pipeline(tmp_path / "1", report, **changes)])
    _, claims = verdicts(tmp_path)
    failed = [claim for claim, verdict in claims.items() if verdict == "fails"]
    assert len(failed) == len(fails)
    assert all(any(name in claim for claim in failed) for name in fails)


def test_tradeoff_table_and_picture_over_gamma(report, tmp_path, capsys):  # noqa: F811
    folder = pipeline(tmp_path / "t", report)
    gammas = {"sft": None, "ppo": 0.0, "ppo_ptx": 0.3}
    for name, gamma in gammas.items():
        recipe = "sft" if gamma is None else "ppo"
        with Run.start(folder / name, recipe=recipe) as run:
            run.config = {"ptx_coef": gamma}
            run.finish()
    parents = {name: str(folder / name) for name in gammas}
    with Run.start(folder, recipe="evaluate", parents=parents) as run:
        run.finish()
    image = tmp_path / "images" / "tradeoff.png"
    tradeoff.main(folder, image)
    printed = capsys.readouterr().out
    assert "| 0 | +0.200 | 0% | 0.850 [0.80, 0.90] |" in printed
    assert "| 0.3 | +0.080 | 60% | 0.830 [0.78, 0.88] |" in printed
    assert image.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="make tradeoff"):
        tradeoff.main(tmp_path, image)
