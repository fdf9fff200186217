"""A growing, damaged, vanishing or huge log is read cheaply and never stops the page."""

import itertools
import json
import math
import os
import time
from pathlib import Path

import pytest

from toolkit.app.history import logs
from toolkit.app.history.logs import Log


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "metrics.jsonl", tmp_path)


def rows(*steps: int, key: str = "loss", value: object = 0.5) -> str:
    return "".join(json.dumps({"step": step, key: value}) + "\n" for step in steps)


def steps(log: Log, key: str = "loss") -> list[float]:
    log.look()
    return [step for step, _ in log.series[key].points]


def test_only_what_was_added_is_read(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    log.file.write_text(rows(1, 2))
    assert steps(log) == [1, 2]
    parsed: list[bytes] = []
    plain = json.loads
    monkeypatch.setattr(logs.json, "loads", lambda line: (parsed.append(line), plain(line))[1])
    assert steps(log) == [1, 2] and parsed == []
    with log.file.open("a") as file:
        file.write(rows(3))
    assert steps(log) == [1, 2, 3] and len(parsed) == 1


def test_a_line_still_being_written_waits(log: Log) -> None:
    whole = rows(1) + rows(2)
    log.file.write_text(whole[:-5])
    assert steps(log) == [1]
    log.file.write_text(whole)
    assert steps(log) == [1, 2] and log.damaged == 0


def test_a_log_started_again_is_read_again(log: Log) -> None:
    log.file.write_text(rows(1, 2, 3))
    assert steps(log) == [1, 2, 3]
    log.file.write_text(rows(7))  # shorter, in place
    assert steps(log) == [7]
    log.file.write_text(rows(8, 9, 10, value=0.25))  # longer, in place
    assert steps(log) == [8, 9, 10]
    other = log.file.with_suffix(".incoming")
    other.write_text(rows(1, 9, 10, 11, value=0.25))
    other.replace(log.file)
    assert steps(log) == [1, 9, 10, 11]


def test_values_that_are_not_finite_are_gaps(log: Log) -> None:
    values = "null", "NaN", "Infinity", "-1e999", "1e300", "9" * 400, "0.5"
    log.file.write_text("".join(f'{{"step": {i}, "loss": {v}}}\n' for i, v in enumerate(values)))
    log.look()
    found = [value for _, value in log.series["loss"].points]
    assert [math.isnan(v) for v in found] == [True] * 6 + [False]
    assert log.series["loss"].missed == 6


def test_lines_that_are_no_rows_are_counted(log: Log) -> None:
    nested = "[" * 100_000
    bad = ["{", "[1]", "3", nested, '{"loss": 1}', '{"step": "x", "loss": 1}', "\udcff"]
    log.file.write_bytes("\n".join([*bad, rows(5)]).encode("utf-8", "surrogateescape"))
    assert steps(log) == [5]
    assert log.damaged == len(bad)


def test_text_is_no_curve_but_warnings_are_kept(log: Log) -> None:
    row = {"step": 1, "note": "x", "flag": True, "warning/kl": "KL rose\x1b", "epoch": 1.0, "a": 1}
    log.file.write_text(json.dumps(row) + "\n")
    log.look()
    assert list(log.series) == ["a"]
    assert log.warnings == {"warning/kl": "KL rose�"}


def test_a_log_that_vanishes_is_no_trouble(log: Log) -> None:
    log.look()
    assert log.problem == "nothing was logged yet"
    log.file.write_text(rows(1))
    assert steps(log) == [1] and log.problem is None
    log.file.unlink()
    log.look()
    assert log.series == {} and log.problem == "nothing was logged yet"


@pytest.mark.timeout(10)
def test_a_pipe_or_a_link_elsewhere_is_not_read(log: Log, tmp_path: Path) -> None:
    os.mkfifo(log.file)
    log.look()
    assert "not a regular file" in (log.problem or "")
    inner = Log(tmp_path / "runs" / "metrics.jsonl", tmp_path / "runs")
    inner.file.parent.mkdir()
    (tmp_path / "secret.jsonl").write_text(rows(1))
    inner.file.symlink_to(tmp_path / "secret.jsonl")
    inner.look()
    assert "out of the runs folder" in (inner.problem or "") and inner.series == {}


def test_a_huge_log_is_read_in_parts_and_thinned(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MOST_POINTS", 100)
    log.file.write_text(rows(*range(1000)))
    monkeypatch.setattr(logs, "AT_ONCE", log.file.stat().st_size // 3)
    seen = 0
    for _ in range(3):
        log.look()
        assert seen < log.read_bytes <= log.size
        assert log.read_bytes - seen <= logs.AT_ONCE
        seen = log.read_bytes
    log.look()
    assert log.read_bytes == log.size and log.rows == 1000
    found = [step for step, _ in log.series["loss"].points]
    assert len(found) <= 101 and found[0] == 0 and found[-1] == 999
    gaps = {b - a for a, b in itertools.pairwise(found[:-1])}
    assert gaps == {log.series["loss"].stride}


@pytest.mark.timeout(60)
def test_a_line_without_end_and_100_mb_do_not_stop_the_page(log: Log) -> None:
    with log.file.open("wb") as file:
        file.truncate(100 << 20)  # zeros: one line of 100 MiB
        file.seek(0, os.SEEK_END)
        file.write(b"\n" + rows(1).encode())
    for _ in range(8):
        began = time.monotonic()
        log.look()
        assert time.monotonic() - began < 5
    assert [step for step, _ in log.series["loss"].points] == [1]


def test_a_flood_of_metrics_is_bounded(log: Log) -> None:
    log.file.write_text(json.dumps({"step": 1} | {f"m{i}": 1 for i in range(10_000)}) + "\n")
    log.look()
    assert len(log.series) == logs.MOST_METRICS
