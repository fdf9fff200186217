"""Stop signals: a pipeline passes them to its stage, and no signal leaves a run in state "running"."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from toolkit.errors import Interrupted
from toolkit.runs.run import Run
from toolkit.runs.signals import run_child

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
CHILD = """
import signal, sys, time
from pathlib import Path

received = []
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda number, frame: received.append(number))
Path(sys.argv[1]).touch()
end = time.monotonic() + 20
while len(received) < int(sys.argv[2]) and time.monotonic() < end:
    time.sleep(0.01)
print(*received, flush=True)
sys.exit(int(sys.argv[3]))
"""


@pytest.fixture(autouse=True)
def hangup():
    """SIGHUP as a terminal sends it; `nohup` would ignore it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def wait_for(file: Path) -> None:
    end = time.monotonic() + 20
    while not file.exists() and time.monotonic() < end:
        time.sleep(0.01)
    assert file.exists()


def run(place, *numbers, count=None, code=143):
    """Run CHILD until it receives `count` signals; this process receives `numbers` meanwhile."""

    def send():
        wait_for(place / "ready")
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(0.1)

    thread = threading.Thread(target=send)
    thread.start()
    words = [sys.executable, "-c", CHILD, place / "ready", count or len(numbers), code]
    try:
        with (place / "log").open("w") as log:
            return run_child(list(map(str, words)), log, {})
    finally:
        thread.join()


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_to_pipeline_reaches_stage(tmp_path, number):
    before = [signal.getsignal(n) for n in SIGNALS]
    with pytest.raises(Interrupted, match=f"{number.name}: the stage was stopped") as caught:
        run(tmp_path, number)
    assert (tmp_path / "log").read_text().split() == [str(int(number))]
    assert caught.value.exit_code == 128 + number
    assert [signal.getsignal(n) for n in SIGNALS] == before


def test_stage_that_finishes_despite_signal_counts(tmp_path):
    code, _ = run(tmp_path, signal.SIGTERM, code=0)
    assert code == 0


def test_third_signal_kills_stage(tmp_path):
    with pytest.raises(Interrupted, match="exit code -9"):
        run(tmp_path, *SIGNALS, count=9)


def test_signal_repeated_at_once_counts_once(tmp_path):
    with pytest.raises(Interrupted):
        run(tmp_path, signal.SIGTERM, signal.SIGTERM, signal.SIGINT, count=2)
    assert (tmp_path / "log").read_text().split() == ["15", "2"]


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="the sender of a signal is unknown")
def test_forked_process_ignores_signals_of_others(tmp_path):
    """Only SIGTERM of its parent ends it, which `terminate` sends."""
    script = """
import multiprocessing, os, signal, subprocess, time
from toolkit.runs.signals import receive_signals

def work(connection):
    connection.send("started")
    time.sleep(60)

receive_signals(lambda number, frame: print("received", number, flush=True))
receiver, sender = multiprocessing.Pipe()
child = multiprocessing.get_context("fork").Process(target=work, args=(sender,))
child.start()
receiver.recv()
for name in ("INT", "TERM", "HUP"):
    subprocess.run(["kill", f"-{name}", str(child.pid)], check=True)
time.sleep(0.3)
print("alive", child.is_alive(), flush=True)
child.terminate()
child.join(10)
print("ended", child.exitcode, flush=True)
"""
    words = [sys.executable, "-c", script]
    printed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert printed.stdout.split("\n") == ["alive True", "ended 0", ""], printed.stderr


def test_stage_of_killed_pipeline_stops(tmp_path):
    stage = f"""
import time
from pathlib import Path
from toolkit.runs.run import Run
from toolkit.runs.signals import stop_with_parent
stop_with_parent()
with Run.start({str(tmp_path / "run")!r}, recipe="sft"):
    Path({str(tmp_path / "ready")!r}).touch()
    time.sleep(30)
"""
    pipeline = f"""
import sys
from toolkit.runs.signals import run_child
run_child([sys.executable, "-c", {stage!r}], sys.stdout, {{}})
"""
    with subprocess.Popen(
        [sys.executable, "-c", pipeline], cwd=ROOT, stdout=subprocess.PIPE
    ) as process:
        wait_for(tmp_path / "ready")
        process.kill()
        process.wait()
        start = time.monotonic()
        process.stdout.read()  # ends when the stage has ended, too
    assert time.monotonic() - start < 10
    assert Run.load(tmp_path / "run").state == "failed"


def stop(folder, number, *, recipe="sft", work=lambda run: None):
    """A run that does its work, then receives a signal."""
    with Run.start(folder, recipe=recipe) as run:
        work(run)
        os.kill(os.getpid(), number)
        time.sleep(5)


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_while_loading_marks_run_failed(tmp_path, number):
    before = [signal.getsignal(n) for n in SIGNALS]
    with pytest.raises(Interrupted, match=f"{number.name}: .* was stopped before it finished"):
        stop(tmp_path, number)
    run = Run.load(tmp_path)
    assert run.state == "failed"
    assert number.name in run.error
    assert [signal.getsignal(n) for n in SIGNALS] == before


def test_error_that_hides_signal_is_interruption(tmp_path):
    """As in `datasets` with `dataset_num_proc`, which waits for its processes when it is interrupted."""

    def work():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            raise TimeoutError

    with pytest.raises(Interrupted, match="was stopped"), Run.start(tmp_path, recipe="sft"):
        work()
    assert "Interrupted" in Run.load(tmp_path).error


def test_signal_in_final_save_names_checkpoint(tmp_path):
    def train(run):
        run.begin()
        (tmp_path / "checkpoint-7").mkdir()

    with pytest.raises(Interrupted, match="checkpoint-7 is complete, continue with"):
        stop(tmp_path, signal.SIGTERM, work=train)
    assert Run.load(tmp_path).state == "failed"


def test_signal_after_finish_leaves_run_finished(tmp_path):
    with pytest.raises(Interrupted, match="is finished"):
        stop(tmp_path, signal.SIGTERM, recipe="reward", work=Run.finish)
    assert Run.load(tmp_path).state == "finished"


def test_hangup_stays_ignored_under_nohup(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Run.start(tmp_path, recipe="sft") as run:
            os.kill(os.getpid(), signal.SIGHUP)
            run.finish()
    finally:
        signal.signal(signal.SIGHUP, before)
    assert Run.load(tmp_path).state == "finished"
