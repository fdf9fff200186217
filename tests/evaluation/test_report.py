"""The report's schema, warnings, tables and plots."""

import copy
import json
import math
import re

import pytest

from tests.evaluation.conftest import entry, interval
from toolkit.errors import DatasetError
from toolkit.evaluation.failures import warnings
from toolkit.evaluation.overoptimization import fit_curves, gold_gains
from toolkit.evaluation.plots import draw_all, short_name, short_names
from toolkit.evaluation.render import PLOTS, as_text, to_markdown, to_text, write
from toolkit.evaluation.report import validate

EVIL = "<img src=x onerror=alert(1)> | a\n\n# b ![i](http://evil.example/x.png) `c` \x1b[31m\u202e"


def edit(report, path, value):
    """A copy with one place changed, or removed where the value is `...`."""
    changed = copy.deepcopy(report)
    *keys, last = path.split("/")
    place = changed
    for key in keys:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return changed


def test_valid_report_is_accepted(report):
    validate(report)
    validate(json.loads(json.dumps(report)))


def test_report_without_gold_or_reward_model_is_accepted(report):
    report["reward_model"] = None
    for checkpoint in report["checkpoints"].values():
        for part in (checkpoint, *checkpoint["other_sampling"].values()):
            part.update(gold=None, proxy=None, rates=None, win_rate_vs_sft={})
    validate(report)
    assert "–" in to_text(report)
    assert "| sft |" in to_markdown(report)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("schema", 2, "`schema` must be 1"),
        ("prompts", ..., "`prompts` is missing"),
        ("prompts", 0, "`prompts`"),
        ("sampling/temperature", ..., "`sampling.temperature` is missing"),
        ("checkpoints", {}, "`checkpoints` is empty"),
        ("checkpoints/ppo", [], "`checkpoints.ppo` must be an object"),
        ("checkpoints/ppo/recipe", None, "`checkpoints.ppo.recipe`"),
        ("checkpoints/ppo/lm_loss", ..., "`checkpoints.ppo.lm_loss` is missing"),
        ("checkpoints/ppo/lm_loss", math.nan, "`checkpoints.ppo.lm_loss` must be a finite"),
        ("checkpoints/ppo/ended", 1.2, "`checkpoints.ppo.ended`"),
        ("checkpoints/ppo/ended", True, "`checkpoints.ppo.ended`"),
        ("checkpoints/ppo/gold/ci95", [0.1], "`checkpoints.ppo.gold.ci95`"),
        ("checkpoints/ppo/gold/ci95", [0.2, 0.1], "`checkpoints.ppo.gold.ci95` must be in order"),
        ("checkpoints/ppo/win_rate_vs_sft/gold", ..., "`checkpoints.ppo.win_rate_vs_sft.gold`"),
        ("checkpoints/ppo/rates/polite", ..., "`checkpoints.ppo.rates.polite` is missing"),
        ("checkpoints/ppo/rates/polite", -0.1, "`checkpoints.ppo.rates.polite`"),
        (
            "checkpoints/ppo/other_sampling/0/length",
            "x",
            "`checkpoints.ppo.other_sampling.0.length`",
        ),
        ("reward_model/ceiling", ..., "`reward_model.ceiling` is missing"),
        ("timings_s/sft", -1, "`timings_s.sft`"),
    ],
)
def test_invalid_report_names_the_key(report, path, value, message):
    with pytest.raises(DatasetError, match=re.escape(message)):
        validate(edit(report, path, value))


def test_over_optimisation_is_reported_despite_high_win_rate(report):
    assert warnings(report) == []
    worse = {"gold": interval(0.35), "proxy": interval(1.2)}
    report["checkpoints"]["ppo"] = entry("ppo", **worse, win_rate_vs_sft={"gold": interval(0.55)})
    (line,) = warnings(report)
    assert line.startswith("ppo: over-optimised: the score rose from 0.10 (SFT) to 1.20")
    report["checkpoints"]["ppo"]["gold"] = interval(0.45)
    assert warnings(report) == []


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("checkpoints/dpo/rates/over_refusal", 0.081, "dpo: refuses 8% of good requests"),
        ("checkpoints/dpo/length", 15.1, "dpo: verbose"),
        ("checkpoints/dpo/ended", 0.8, "dpo: 20% of the answers did not end"),
        ("checkpoints/dpo/lm_loss", 0.61, "dpo: alignment tax"),
        ("reward_model/length_accuracy", 0.68, "reward model: length alone"),
        ("reward_model/length_correlation", -0.75, "reward model: length nearly"),
    ],
)
def test_known_failure_gives_a_warning(report, path, value, message):
    (line,) = warnings(edit(report, path, value))
    assert line.startswith(message)


def test_base_gives_no_warning(report):
    assert warnings(edit(report, "checkpoints/base/rates/over_refusal", 0.5)) == []


def test_model_output_is_escaped():
    shown = as_text(EVIL)
    assert shown.count("<") == shown.count("<br>") == 2
    assert not set("|`[]\n\x1b\u202e#") & set(shown.replace("&#", ""))
    assert "&#60;img src=x onerror=alert(1)&#62;" in shown
    assert "http:" not in shown.replace("&#58;", "")


def test_examples_with_markup_keep_table_shape(report):
    answer = {"text": EVIL, "gold": -1.0, "proxy": None}
    some = [{"prompt": "a | b\nc", "completions": {"sft": answer, "<b>|x": answer}}]
    page = to_markdown(report, some)
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert rows[-1].count("|") == rows[-2].count("|") == rows[-3].count("|") == 4
    assert "<img" not in page
    assert "<b>" not in page
    assert "gold -1.00" in rows[-1]


def test_markdown_has_tables_and_plots(report):
    page = to_markdown(report, plots=["win_rates.png"])
    assert "| sft | 0.40 [0.35, 0.45] | 0.10 | 0.50 [0.45, 0.55] | 0.70 | 0.20 |" in page
    assert "(win_rates.png)" in page
    assert "(rates.png)" not in page
    assert "sft, greedy" in page
    assert "| accuracy: the score prefers the chosen answer | 0.670 [0.64, 0.70] |" in page
    assert "| ppo | 101.5 |" in page


def test_report_without_gold_mentions_no_gold(report):
    report["few_shot"] = 0
    for key in ("clear_gold_accuracy", "ceiling"):
        report["reward_model"][key] = None
    report["reward_model"]["accuracy_by_margin"] = [
        {"low": 0.0, "high": 1.0, "accuracy": 0.6, "pairs": 9}
    ]
    for checkpoint in report["checkpoints"].values():
        for summary in (checkpoint, *checkpoint["other_sampling"].values()):
            summary["gold"] = summary["win_rate_vs_sft"]["gold"] = summary["rates"] = None
    assert gold_gains(report) == {"best-of-n": {}, "policies": {}}  # so gold_kl.png is not drawn
    page = to_markdown(report, plots=[name for name in PLOTS if name != "gold_kl.png"])
    assert "gold" not in page.replace("gold_proxy.png", "")
    assert "gold" not in to_text(report)
    assert "through its chat template, without demonstrations" in page
    report["few_shot"] = 4
    assert "after 4 demonstrations" in to_markdown(report)


def test_terminal_table_fits_100_columns(report):
    report["checkpoints"]["a-very-long-name/of\x1b[31m a checkpoint"] = entry(
        "ppo", gold=interval(-1.25), length=1024.0, kl_to_sft=123.45, rates=None, ended=0.1
    )
    lines = to_text(report).splitlines()
    assert max(map(len, lines)) <= 100
    assert len(lines) >= 2 + 5 + 1
    assert "\x1b" not in "".join(lines)
    assert lines[3].split()[:3] == ["sft", "0.40", "0.10"]


def test_write_creates_report_and_plots(report, tmp_path):
    training = [
        {"step": s, "objective/scores": s / 10, "objective/kl": s / 5, "objective/length": 9.0}
        for s in range(1, 6)
    ]
    page = write(tmp_path / "report", report, training=[*training, {"step": 6, "loss": 1.0}])
    names = {"training.png", "gold_proxy.png", "gold_kl.png", "win_rates.png", "rates.png"}
    for name in names:
        picture = (tmp_path / "report" / name).read_bytes()
        assert picture.startswith(b"\x89PNG")
        assert len(picture) > 5000
        assert f"({name})" in page.read_text(encoding="utf-8")
    assert {f.name for f in page.parent.iterdir()} == names | {
        "report.md",
        "report.json",
        "report.txt",
    }
    assert json.loads((page.parent / "report.json").read_text(encoding="utf-8")) == report


def test_plots_without_data_are_not_drawn(report, tmp_path):
    for checkpoint in report["checkpoints"].values():
        checkpoint.update(gold=None, proxy=None, rates=None, win_rate_vs_sft={}, other_sampling={})
    assert draw_all(report, tmp_path, training=[{"step": 1, "loss": 2.0}]) == []


def test_plots_accept_special_characters_in_names(report, tmp_path):
    report["checkpoints"] = {"sft": entry("sft")} | {
        f"$x_{{{i}$ \\frac a name without end": entry("ppo") for i in range(9)
    }
    assert len(draw_all(report, tmp_path)) == 4


def test_curves_of_over_optimization_are_fitted(report, tmp_path):
    best_of_n = {n: math.log(n) - (n - 1) / n for n in (2, 4, 16, 64)}
    report["checkpoints"] = {"base": entry("base"), "sft": entry("sft", kl_to_sft=0.0)}
    for n, kl in best_of_n.items():
        gold = interval(0.4 + 0.7 * kl**0.5 - 0.1 * kl)
        report["checkpoints"][f"best_of_{n}"] = entry("best-of-n", kl_to_sft=kl, gold=gold)
    for kl in (1.0, 4.0, 25.0):
        gold = interval(0.4 + kl**0.5 * (0.5 - 0.2 * math.log(kl**0.5)))
        report["checkpoints"][f"ppo-{kl:g}"] = entry("ppo", kl_to_sft=kl, gold=gold)
    assert fit_curves(report) == {
        "best-of-n": {"alpha": 0.7, "beta": 0.1, "rmse": 0.0, "points": 4},
        "policies": {"alpha": 0.5, "beta": 0.2, "rmse": 0.0, "points": 3},
    }
    assert tmp_path / "gold_kl.png" in draw_all(report, tmp_path)
    report["checkpoints"]["ppo-25"]["kl_to_sft"] = 3.9
    assert list(fit_curves(report)) == ["best-of-n", "policies"]
    report["checkpoints"]["ppo-1"]["kl_to_sft"] = 1.1
    assert list(fit_curves(report)) == ["best-of-n"]
    del report["checkpoints"]["best_of_4"], report["checkpoints"]["best_of_16"]
    assert fit_curves(report) == {}


def test_short_name_keeps_both_ends():
    assert short_name("ppo-run-number-12", 9) == "ppo-…r-12"
    assert short_name("ppo", 9) == "ppo"


def test_short_names_of_different_names_differ():
    names = ["run-a" * 10, "run-a" * 5 + "-b-" + "run-a" * 5, "ppo", "ppo"]
    short = short_names(names, 9)
    assert short[2:] == ["ppo", "ppo"] and short[0] != short[1]
