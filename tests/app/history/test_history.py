"""What the Runs tab tells of each run: state, lineage, settings, curves, report."""

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from toolkit.app.history import history as module
from toolkit.app.history.curves import (
    MEANINGS,
    draw,
    latest_values,
    lines_of,
    log_notes,
    metric_names,
)
from toolkit.app.history.history import DEAD_AFTER, History, Record, duration
from toolkit.app.history.reports import read_report
from toolkit.app.history.settings import ALL, DIFFERENT, MAIN, settings_table
from toolkit.evaluation.plots import styled
from toolkit.runs.run import Run


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """sft → reward, and ppo of both; each look is fresh."""
    monkeypatch.setattr(module, "LOOKS_APART", 0.0)
    root = tmp_path / "runs"
    begin(root / "all" / "sft", "sft").finish(steps=3)
    sft = {"adapter": "elsewhere/all/sft"}  # the folder has moved since
    begin(root / "all" / "reward", "reward", sft).finish()
    begin(root / "all" / "ppo", "ppo", sft | {"reward": str(root / "all" / "reward")}).finish()
    return root


def begin(path: Path, recipe: str, parents: dict[str, Any] | None = None, **config: Any) -> Run:
    run = Run.start(path, recipe=recipe, parents=parents)
    run.base, run.config = {"id": "world:base"}, config
    run.save()
    return run


def records(root: Path, **unusable: str) -> dict[str, Record]:
    return {r.name: r for r in History(root).look(unusable).values()}


def logged(folder: Path, *rows: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_states_and_reasons(root: Path) -> None:
    begin(root / "live", "ppo")
    begin(root / "failed", "ppo").fail(RuntimeError("out of memory"))
    begin(root / "dead", "ppo")
    old = time.time() - DEAD_AFTER - 60
    for file in (root / "dead").iterdir():
        os.utime(file, (old, old))
    (root / "cut").mkdir()
    (root / "cut" / "run.json").write_text("{")
    found = records(root, **{"all/sft": "weights are not finite"})
    states = {name: record.state for name, record in found.items()}
    assert states == {
        "all/sft": "broken",
        "all/reward": "finished",
        "all/ppo": "finished",
        "live": "running",
        "failed": "failed",
        "dead": "looks dead",
        "cut": "broken",
    }
    assert found["all/sft"].detail == "weights are not finite"
    assert "out of memory" in found["failed"].detail
    assert "nothing written for 31 min;" in found["dead"].detail
    assert "damaged manifest" in found["cut"].detail
    logged(root / "dead", {"step": 1, "loss": 1.0})  # a sign of life
    assert records(root)["dead"].state == "running"


def test_lineage_is_a_chain_down_to_the_base(root: Path) -> None:
    history = History(root)
    found = {r.name: r for r in history.look().values()}
    assert found["all/ppo"].made_from == "all/sft, all/reward"
    assert history.lineage(found["all/ppo"]).splitlines() == [
        "all/ppo (ppo)",
        "  starts from all/sft (sft)",
        "    trained on the base world:base",
        "  rewards from all/reward (reward)",
        "    starts from all/sft (sft)",
        "      trained on the base world:base",
    ]
    assert found["all/sft"].made_from == "world:base"


def test_a_lineage_that_is_lost_or_goes_in_circles(root: Path) -> None:
    begin(root / "a", "dpo", {"adapter": str(root / "b")})
    begin(root / "b", "dpo", {"adapter": str(root / "a")})
    begin(root / "orphan", "dpo", {"adapter": "gone\x1b/away"})
    history = History(root)
    found = {r.name: r for r in history.look().values()}
    assert history.lineage(found["a"]).splitlines()[-1] == (
        "    starts from a (dpo) … and so on in a circle"
    )
    assert "gone�/away (not among these runs)" in history.lineage(found["orphan"])


@pytest.mark.parametrize("key", ["started", "seconds", "config", "results", "parents", "base"])
@pytest.mark.parametrize("value", [None, "x", ["x"], {"a": {"b": []}}, 1e999, -1, "\0", True])
def test_no_manifest_stops_the_page(root: Path, key: str, value: Any) -> None:
    file = root / "all" / "ppo" / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    history = History(root)
    found = {r.name: r for r in history.look().values()}
    assert found["all/sft"].state == "finished"
    history.lineage(found["all/ppo"])
    settings_table(list(found.values()), ALL)


def test_ids_stay_and_say_nothing_of_the_disk(root: Path) -> None:
    history = History(root)
    before = {r.name: key for key, r in history.look().items()}
    begin(root / "aaa", "sft")
    after = {r.name: key for key, r in history.look().items()}
    assert before.items() <= after.items()
    assert all(key.startswith("run_") for key in after.values())


def test_a_run_removed_while_it_is_read(root: Path) -> None:
    history = History(root)
    record = next(r for r in history.look().values() if r.name == "all/ppo")
    for file in record.path.iterdir():
        file.unlink()
    record.path.rmdir()
    assert history.log(record).problem == "nothing was logged yet"
    assert read_report(record.path, root).empty
    assert "all/ppo" not in {r.name for r in history.look().values()}


def test_settings_side_by_side(root: Path) -> None:
    begin(root / "a", "ppo", seed=1, kl_coef=0.05, bf16=False, dataset_config=None, zeta=[1, 2])
    begin(root / "b", "ppo", seed=1, kl_coef=0.1, bf16=False)
    both = [records(root)["a"], records(root)["b"]]
    assert settings_table(both, MAIN) == (
        ["setting", "a", "b"],
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
    found = {r.name: r for r in history.look().values()}
    logs = {name: history.log(found[name]) for name in ("all/sft", "all/ppo")}
    assert metric_names(logs.values()) == ["objective/kl", "loss", "zz"]
    figure = draw("loss", lines_of("loss", logs))
    (ax,) = figure.axes
    assert ax.get_ylabel() == MEANINGS["loss"] and ax.get_xlabel() == "optimiser step"
    assert [list(line.get_xdata()) for line in ax.lines] == [[1, 2], [3]]
    assert [line.get_label() for line in ax.lines] == ["all/sft", "all/ppo"]
    (alone,) = draw("objective/kl", lines_of("objective/kl", logs)).axes[0].lines
    assert alone.get_color() == ax.lines[1].get_color() != ax.lines[0].get_color()
    assert latest_values(["loss", "objective/kl"], logs)[1] == [
        ["all/sft", "2", "not finite", ""],
        ["all/ppo", "3", "0.25", "0.5"],
    ]
    assert log_notes(["loss"], logs) == "all/sft: values of loss that were not finite: 1"


def test_what_was_told_of_a_log_stays_when_another_looks(root: Path) -> None:
    logged(root / "all" / "sft", {"step": 1, "loss": 1.0})
    history = History(root)
    record = next(r for r in history.look().values() if r.name == "all/sft")
    told = history.log(record)
    logged(root / "all" / "sft", {"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5, "new": 1})
    assert history.log(record).series["loss"].points == [(1, 1.0), (2, 0.5)]
    assert list(told.series) == ["loss"] and told.series["loss"].points == [(1, 1.0)]


def test_pictures_drawn_at_once_leave_matplotlibs_settings_alone() -> None:
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
    threads[1].join(0.2)  # without turns it would have come and gone by now
    assert threads[1].is_alive()
    leave.set()
    for thread in threads:
        thread.join(30)
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(
    "values", [[None, None], [1e30, -1e30], [0.0], [1e-300, 1e300], [1e29] * 3]
)
def test_any_values_can_be_drawn(root: Path, values: list[Any]) -> None:
    rows = [{"step": i, "$x_": value} for i, value in enumerate(values)]
    logged(root / "all" / "sft", *rows)
    history = History(root)
    record = next(r for r in history.look().values() if r.name == "all/sft")
    draw("$x_", lines_of("$x_", {"_<b>$": history.log(record)})).canvas.draw()


def test_a_report_is_text_and_real_pictures(root: Path) -> None:
    from PIL import Image

    folder = root / "all"
    (folder / "report.md").write_text("a&#95;b <img src=x onerror=alert(1)>")
    (folder / "report.json").write_text('{"schema": 9}')
    Image.new("RGB", (40, 30), "red").save(folder / "rates.png")
    (folder / "training.png").write_bytes(b"<svg onload=alert(1)>")
    (folder / "win_rates.png").symlink_to("/etc/passwd")
    found = read_report(folder, root)
    assert found.text == "a_b <img src=x onerror=alert(1)>"
    assert "schema" in found.summary and "damaged" in found.summary
    assert [(picture.size, caption) for picture, caption in found.pictures] == [
        ((40, 33), "Behaviour of each checkpoint")
    ]


def test_durations() -> None:
    said = [duration(s) for s in (None, 4.2, 123, 1860, 3900, 3600 * 100)]
    assert said == ["", "4 s", "2 min 3 s", "31 min", "1 h 5 min", "4 days"]
