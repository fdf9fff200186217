"""Growing, damaged, missing and huge logs are read cheaply and raise no error."""

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
    log.read_new()
    return [step for step, _ in log.series[key].points]


def test_only_new_lines_are_read(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    log.file.write_text(rows(1, 2))
    assert steps(log) == [1, 2]
    parsed: list[bytes] = []
    loads = json.loads
    monkeypatch.setattr(logs.json, "loads", lambda line: (parsed.append(line), loads(line))[1])
    assert steps(log) == [1, 2] and parsed == []
    with log.file.open("a") as file:
        file.write(rows(3))
    assert steps(log) == [1, 2, 3] and len(parsed) == 1


def test_incomplete_line_is_read_later(log: Log) -> None:
    text = rows(1) + rows(2)
    log.file.write_text(text[:-5])
    assert steps(log) == [1]
    log.file.write_text(text)
    assert steps(log) == [1, 2] and log.damaged == 0


def test_replaced_log_is_read_again(log: Log) -> None:
    log.file.write_text(rows(1, 2, 3))
    assert steps(log) == [1, 2, 3]
    log.file.write_text(rows(7))  # shorter, in place
    assert steps(log) == [7]
    log.file.write_text(rows(8, 9, 10, value=0.25))  # longer, in place
    assert steps(log) == [8, 9, 10]
    replacement = log.file.with_suffix(".incoming")
    replacement.write_text(rows(1, 9, 10, 11, value=0.25))
    replacement.replace(log.file)
    assert steps(log) == [1, 9, 10, 11]


def test_values_that_are_not_finite_are_gaps(log: Log) -> None:
    values = "null", "NaN", "Infinity", "-1e999", "1e300", "9" * 400, "0.5"
    log.file.write_text("".join(f'{{"step": {i}, "loss": {v}}}\n' for i, v in enumerate(values)))
    log.read_new()
    points = [value for _, value in log.series["loss"].points]
    assert [math.isnan(v) for v in points] == [True] * 6 + [False]
    assert log.series["loss"].missed == 6


def test_damaged_lines_are_counted(log: Log) -> None:
    nested = "[" * 100_000
    damaged_lines = ["{", "[1]", "3", nested, '{"loss": 1}', '{"step": "x", "loss": 1}', "\udcff"]
    log.file.write_bytes("\n".join([*damaged_lines, rows(5)]).encode("utf-8", "surrogateescape"))
    assert steps(log) == [5]
    assert log.damaged == len(damaged_lines)


def test_text_is_ignored_except_warnings(log: Log) -> None:
    row = {"step": 1, "note": "x", "flag": True, "warning/kl": "KL rose\x1b", "epoch": 1.0, "a": 1}
    log.file.write_text(json.dumps(row) + "\n")
    log.read_new()
    assert list(log.series) == ["a"]
    assert log.warnings == {"warning/kl": "KL rose�"}


def test_missing_log_is_a_problem_not_an_error(log: Log) -> None:
    log.read_new()
    assert log.problem == "nothing was logged yet"
    log.file.write_text(rows(1))
    assert steps(log) == [1] and log.problem is None
    log.file.unlink()
    log.read_new()
    assert log.series == {} and log.problem == "nothing was logged yet"


@pytest.mark.timeout(10)
def test_pipe_or_outside_link_is_not_read(log: Log, tmp_path: Path) -> None:
    os.mkfifo(log.file)
    log.read_new()
    assert "not a regular file" in (log.problem or "")
    linked = Log(tmp_path / "runs" / "metrics.jsonl", tmp_path / "runs")
    linked.file.parent.mkdir()
    (tmp_path / "secret.jsonl").write_text(rows(1))
    linked.file.symlink_to(tmp_path / "secret.jsonl")
    linked.read_new()
    assert "out of the runs folder" in (linked.problem or "") and linked.series == {}


def test_huge_log_is_read_in_parts_and_thinned(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MAX_POINTS", 100)
    log.file.write_text(rows(*range(1000)))
    monkeypatch.setattr(logs, "MAX_BYTES_PER_READ", log.file.stat().st_size // 3)
    before = 0
    for _ in range(3):
        log.read_new()
        assert before < log.read_bytes <= log.size
        assert log.read_bytes - before <= logs.MAX_BYTES_PER_READ
        before = log.read_bytes
    log.read_new()
    assert log.read_bytes == log.size and log.rows == 1000
    drawn = [step for step, _ in log.series["loss"].points]
    assert len(drawn) <= 101 and drawn[0] == 0 and drawn[-1] == 999
    gaps = {b - a for a, b in itertools.pairwise(drawn[:-1])}
    assert gaps == {log.series["loss"].stride}


@pytest.mark.timeout(60)
def test_100_mib_line_is_skipped_quickly(log: Log) -> None:
    with log.file.open("wb") as file:
        file.truncate(100 << 20)  # zeros: one line of 100 MiB
        file.seek(0, os.SEEK_END)
        file.write(b"\n" + rows(1).encode())
    for _ in range(8):
        start = time.monotonic()
        log.read_new()
        assert time.monotonic() - start < 5
    assert [step for step, _ in log.series["loss"].points] == [1]


def test_number_of_metrics_is_bounded(log: Log) -> None:
    log.file.write_text(json.dumps({"step": 1} | {f"m{i}": 1 for i in range(10_000)}) + "\n")
    log.read_new()
    assert len(log.series) == logs.MAX_METRICS
