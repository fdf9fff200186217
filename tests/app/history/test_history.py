"""What the Runs tab shows of each run: state, lineage, settings, curves, report."""

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from toolkit.app.history import history as module
from toolkit.app.history import samples as samples_module
from toolkit.app.history.curves import (
    MEANINGS,
    draw,
    latest_values,
    lines_of,
    log_notes,
    metric_names,
    smoothed,
)
from toolkit.app.history.history import MAX_LINES, STALLED_AFTER_S, History, Record, duration
from toolkit.app.history.reports import PLAIN, ReportShown, read_report
from toolkit.app.history.run_summary import ALL, DIFFERENT, MAIN, default_runs, settings_table
from toolkit.app.history.samples import read_samples
from toolkit.evaluation.plots import styled
from toolkit.evaluation.render import PLOTS
from toolkit.runs.run import Run


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """sft → reward, and ppo from both; every call scans again."""
    monkeypatch.setattr(module, "SCAN_INTERVAL_S", 0.0)
    root = tmp_path / "runs"
    begin(root / "all" / "sft", "sft").finish(steps=3)
    sft = {"adapter": "elsewhere/all/sft"}  # the runs folder was moved
    begin(root / "all" / "reward", "reward", sft).finish()
    begin(root / "all" / "ppo", "ppo", sft | {"reward": str(root / "all" / "reward")}).finish()
    return root


def begin(path: Path, recipe: str, parents: dict[str, Any] | None = None, **config: Any) -> Run:
    run = Run.start(path, recipe=recipe, parents=parents)
    run.base, run.config = {"id": "world:base"}, config
    run.save()
    return run


def records(root: Path, **unusable: str) -> dict[str, Record]:
    return {r.name: r for r in History(root).records(unusable).values()}


def logged(folder: Path, *rows: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_states_and_reasons(root: Path) -> None:
    begin(root / "live", "ppo")
    begin(root / "failed", "ppo").fail(RuntimeError("out of memory"))
    begin(root / "dead", "ppo")
    old = time.time() - STALLED_AFTER_S - 60
    for file in (root / "dead").iterdir():
        os.utime(file, (old, old))
    (root / "cut").mkdir()
    (root / "cut" / "run.json").write_text("{")
    by_name = records(root, **{"all/sft": "weights are not finite"})
    states = {name: record.state for name, record in by_name.items()}
    assert states == {
        "all/sft": "broken",
        "all/reward": "finished",
        "all/ppo": "finished",
        "live": "running",
        "failed": "failed",
        "dead": "stalled",
        "cut": "broken",
    }
    assert by_name["all/sft"].detail == "weights are not finite"
    assert "out of memory" in by_name["failed"].detail
    assert "nothing was written for 31 min;" in by_name["dead"].detail
    assert "damaged manifest" in by_name["cut"].detail
    logged(root / "dead", {"step": 1, "loss": 1.0})  # a new write
    assert records(root)["dead"].state == "running"


def test_lineage_reaches_the_base(root: Path) -> None:
    history = History(root)
    by_name = {r.name: r for r in history.records().values()}
    assert by_name["all/ppo"].made_from == "all/sft, all/reward"
    assert history.lineage(by_name["all/ppo"]).splitlines() == [
        "all/ppo (ppo)",
        "  starts from all/sft (sft)",
        "    trained on the base world:base",
        "  rewarded by all/reward (reward)",
        "    starts from all/sft (sft)",
        "      trained on the base world:base",
    ]
    assert by_name["all/sft"].made_from == "world:base"


def test_lineage_with_a_missing_or_circular_parent(root: Path) -> None:
    begin(root / "a", "dpo", {"adapter": str(root / "b")})
    begin(root / "b", "dpo", {"adapter": str(root / "a")})
    begin(root / "orphan", "dpo", {"adapter": "gone\x1b/away"})
    history = History(root)
    by_name = {r.name: r for r in history.records().values()}
    assert history.lineage(by_name["a"]).splitlines()[-1] == (
        "    starts from a (dpo) … (circular)"
    )
    assert "gone�/away (not in the runs folder)" in history.lineage(by_name["orphan"])


def test_circular_parents_have_a_short_lineage(root: Path) -> None:
    names = [f"all/run_{number}" for number in range(13)]
    for name in names:
        others = {
            f"parent_{i}": str(root / other) for i, other in enumerate(names) if other != name
        }
        begin(root / name, "dpo", others)
    history = History(root)
    by_name = {r.name: r for r in history.records().values()}
    lines = history.lineage(by_name[names[0]]).splitlines()
    assert len(lines) == MAX_LINES + 1 and lines[-1] == "…"


@pytest.mark.parametrize("key", ["started", "seconds", "config", "results", "parents", "base"])
@pytest.mark.parametrize("value", [None, "x", ["x"], {"a": {"b": []}}, 1e999, -1, "\0", True])
def test_invalid_manifest_values_raise_nothing(root: Path, key: str, value: Any) -> None:
    file = root / "all" / "ppo" / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    history = History(root)
    by_name = {r.name: r for r in history.records().values()}
    assert by_name["all/sft"].state == "finished"
    history.lineage(by_name["all/ppo"])
    settings_table(list(by_name.values()), ALL)


def test_ids_stay_and_hide_paths(root: Path) -> None:
    history = History(root)
    before = {r.name: id for id, r in history.records().items()}
    begin(root / "aaa", "sft")
    after = {r.name: id for id, r in history.records().items()}
    assert before.items() <= after.items()
    assert all(id.startswith("run_") for id in after.values())


def test_removed_run_raises_nothing(root: Path) -> None:
    history = History(root)
    record = next(r for r in history.records().values() if r.name == "all/ppo")
    for file in record.path.iterdir():
        file.unlink()
    record.path.rmdir()
    assert history.log(record).problem == "nothing was logged yet"
    assert read_report(record.path, root).empty
    assert "all/ppo" not in {r.name for r in history.records().values()}


def test_settings_of_two_runs(root: Path) -> None:
    begin(root / "a", "ppo", seed=1, kl_coef=0.05, bf16=False, dataset_config=None, zeta=[1, 2])
    begin(root / "b", "ppo", seed=1, kl_coef=0.1, bf16=False)
    both = [records(root)["a"], records(root)["b"]]
    assert settings_table(both, MAIN) == (
        ["Setting", "a", "b"],
        [["base", "world:base", "world:base"], ["seed", "1", "1"], ["kl_coef", "0.05", "0.1"]],
    )
    assert settings_table(both, DIFFERENT)[1] == [["kl_coef", "0.05", "0.1"], ["zeta", "1, 2", ""]]
    assert [row[0] for row in settings_table(both, ALL)[1]] == [
        *("base", "bf16", "kl_coef", "seed", "zeta")
    ]


def test_curves_of_several_runs(root: Path) -> None:
    logged(root / "all" / "sft", {"step": 1, "loss": 2.0}, {"step": 2, "loss": None, "zz": 1})
    logged(root / "all" / "ppo", {"step": 1, "objective/kl": 0.5}, {"step": 3, "loss": 0.25})
    history = History(root)
    by_name = {r.name: r for r in history.records().values()}
    logs = {name: history.log(by_name[name]) for name in ("all/sft", "all/ppo")}
    assert metric_names(logs.values()) == ["objective/kl", "loss", "zz"]
    figure = draw("loss", lines_of("loss", logs))
    titles = [figure["layout"][axis]["title"]["text"] for axis in ("xaxis", "yaxis")]
    assert titles == ["optimizer step", MEANINGS["loss"]]
    first, second = figure["data"]
    assert [(line["x"], line["y"]) for line in (first, second)] == [
        ([1, 2], [2.0, None]),
        ([3], [0.25]),
    ]
    assert [line["name"] for line in (first, second)] == ["all/sft", "all/ppo"]
    (single,) = draw("objective/kl", lines_of("objective/kl", logs))["data"]
    assert single["line"]["color"] == second["line"]["color"] != first["line"]["color"]
    assert latest_values(["loss", "objective/kl"], logs)[1] == [
        ["all/sft", "2", "not finite", ""],
        ["all/ppo", "3", "0.25", "0.5"],
    ]
    assert log_notes(["loss"], logs) == "all/sft: 1 values of loss that are not finite"


def test_log_snapshot_ignores_later_reads(root: Path) -> None:
    logged(root / "all" / "sft", {"step": 1, "loss": 1.0})
    history = History(root)
    record = next(r for r in history.records().values() if r.name == "all/sft")
    snapshot = history.log(record)
    logged(root / "all" / "sft", {"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5, "new": 1})
    assert history.log(record).series["loss"].points == [(1, 1.0), (2, 0.5)]
    assert list(snapshot.series) == ["loss"] and snapshot.series["loss"].points == [(1, 1.0)]


def test_parallel_figures_keep_matplotlib_settings() -> None:
    import matplotlib

    before, inside, leave = dict(matplotlib.rcParams), threading.Event(), threading.Event()

    def first() -> None:
        with styled():
            inside.set()
            leave.wait(30)

    def second() -> None:
        with styled():
            pass

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    assert inside.wait(30)
    threads[1].start()
    threads[1].join(0.2)  # without the lock it would have ended
    assert threads[1].is_alive()
    leave.set()
    for thread in threads:
        thread.join(30)
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(
    "values", [[None, None], [1e30, -1e30], [0.0], [1e-300, 1e300], [1e29] * 3]
)
def test_extreme_values_can_be_drawn(root: Path, values: list[Any]) -> None:
    rows = [{"step": i, "$x_": value} for i, value in enumerate(values)]
    logged(root / "all" / "sft", *rows)
    history = History(root)
    record = next(r for r in history.records().values() if r.name == "all/sft")
    figure = draw("$x_", lines_of("$x_", {"_<b>$": history.log(record)}), 0.9)
    json.dumps(figure, allow_nan=False)
    assert figure["data"][0]["name"] == "_&lt;b&gt;$"  # Plotly reads tags


def test_held_out_values_are_drawn_with_training_values(root: Path) -> None:
    rows = [{"step": i, "loss": float(i), "eval_only": 1.0} for i in (1, 2, 3)]
    logged(root / "all" / "sft", *rows, {"step": 3, "eval_loss": 5.0})
    history = History(root)
    record = next(r for r in history.records().values() if r.name == "all/sft")
    logs = {"all/sft": history.log(record)}
    assert metric_names(logs.values()) == ["loss", "eval_only"]
    training, held_out = draw("loss", lines_of("loss", logs))["data"]
    assert (held_out["x"], held_out["y"], held_out["name"]) == ([3], [5.0], "all/sft, held out")
    assert training["line"]["color"] == held_out["line"]["color"]
    assert (training["line"]["dash"], held_out["line"]["dash"]) == ("solid", "dash")


def test_smoothing_is_an_unbiased_moving_average(root: Path) -> None:
    # by hand, weight 0.5: 4; (2 + 1) / 0.75 = 4 -> (0.5*2 + 0.5*2) / 0.75; a gap changes nothing
    assert smoothed([4.0, None, 2.0], 0.5) == [4.0, None, pytest.approx(2.0 / 0.75)]
    logged(root / "all" / "sft", *({"step": i, "loss": float(i)} for i in range(2500)))
    history = History(root)
    record = next(r for r in history.records().values() if r.name == "all/sft")
    raw, smooth = draw("loss", lines_of("loss", {"a": history.log(record)}), 0.5)["data"]
    assert raw["opacity"] < 1 and not raw["showlegend"] and raw["x"][-1] == 2499
    assert len(smooth["y"]) == len(raw["y"]) <= 1002  # thinned out


def test_samples_of_a_run_that_trains(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root / "all" / "ppo"
    assert read_samples(folder, root).steps == []
    message = [{"role": "user", "content": "Why?"}]
    rows = [
        {
            "step": step,
            "completion": f"So {step}. {i}",
            "prompt": message,
            "score": 0.123456,
            "kind": i,
        }
        for step in (0, 10)
        for i in (1, 2)
    ]
    file = folder / "samples.jsonl"
    # being written
    file.write_text("".join(json.dumps(r) + "\n" for r in rows) + '{"step": 20, "compl')
    samples = read_samples(folder, root)
    assert samples.steps == [0, 10] and not samples.cut
    assert samples.table(10) == (
        ["prompt", "completion", "score", "kind"],
        [["user: Why?", f"So 10. {i}", "0.1235", str(i)] for i in (1, 2)],
    )
    monkeypatch.setattr(samples_module, "MAX_BYTES", 150)
    cut = read_samples(folder, root)
    assert cut.cut and cut.steps == [10]
    file.unlink()
    file.symlink_to("/etc/passwd")
    assert read_samples(folder, root).steps == []


def test_broken_runs_are_not_chosen_first(root: Path) -> None:
    for name in ("bad", "good"):
        begin(root / name, "ppo")
        logged(root / name, {"step": 1, "loss": 1.0})
    Run.load(root / "good").finish()
    Run.load(root / "bad").fail(RuntimeError("x"))
    by_name = records(root)
    assert default_runs({r.id: r for r in by_name.values()}) == [by_name["good"].id]


def test_report_is_safe_markdown_with_decoded_pictures(root: Path) -> None:
    from PIL import Image

    folder = root / "all"
    caption = PLOTS["rates.png"]
    attacks = [
        "a&#95;b <img src=x onerror=alert(1)> | x<br>y |",
        "![a](http://attacker.invalid/a.png) ![b][c] [d](javascript:alert(1))",
        "[c]: http://attacker.invalid/c.png",
        "<http://attacker.invalid> www.attacker.invalid a@attacker.invalid",
    ]
    text = ["# Title", f"![{caption}](rates.png)", *attacks, "![training](../../secret.png)"]
    (folder / "report.md").write_text("\n".join(text))
    (folder / "report.json").write_text('{"schema": 9}')
    Image.new("RGB", (40, 30), "red").save(folder / "rates.png")
    (folder / "training.png").write_bytes(b"<svg onload=alert(1)>")
    (folder / "win_rates.png").symlink_to("/etc/passwd")
    report = read_report(folder, root)
    lines = report.markdown.split("\n")
    picture = lines.pop(2)
    assert (
        lines[0] == "# Title"
        and "a&#95;b &lt;img src=x" in report.markdown
        and "x<br>y" in lines[3]
    )
    assert picture.startswith(f"![{caption}](data:image/png;base64,")
    rest = "\n".join(lines)
    for start in ("![", "](", "][", "]:", "://", "www.", "@", "<i", "<h"):
        assert start not in rest
    assert "schema" in report.summary and "damaged" in report.summary


@pytest.mark.parametrize(
    "text",
    [
        f"{'|a' * 600}|\n{'|-' * 600}|\n" + "x\n" * 600,
        f"> {'|a' * 600}|\n> {'|-' * 600}|\n" + "> x\n" * 600,
        f"{'|a' * 600}|\r{'|-' * 600}|\r" + "x\r" * 600,
        "\n".join("  " * (i % 100) + "- a" for i in range(200)),
        "- " * 100 + "a",
        ">" * 100 + "a",
        "*a **a " * 1000,
        "`a" * 1000,
        "# x\n" * 11_000,
        "x" * 20_001,
        "word\n" * 60_000,
    ],
)
def test_report_that_stops_a_browser_is_plain_text(root: Path, text: str) -> None:
    folder = root / "all"
    (folder / "report.md").write_bytes(b"small")
    assert read_report(folder, root) == ReportShown("small")
    (folder / "report.md").write_bytes(text.encode())
    report = read_report(folder, root)
    assert report.markdown == "" and report.summary.startswith(PLAIN)
    assert max(map(len, report.summary.split("\n"))) <= 1000
    assert report.summary.replace("\n", "").endswith(text[-50:].replace("\n", ""))


def test_diagrams_of_a_report_are_not_drawn(root: Path) -> None:
    (root / "all" / "report.md").write_text("```mermaid\ngraph TD;\n```")
    assert "mermaid" not in read_report(root / "all", root).markdown


def test_duration_formats() -> None:
    texts = [duration(s) for s in (None, 4.2, 123, 1860, 3900, 3600 * 100)]
    assert texts == ["", "4 s", "2 min 3 s", "31 min", "1 h 5 min", "4 days"]
