"""Run the app: `app.py` in its own process, to its end or as a server, or in this process."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import gradio as gr
import pytest

import app
from tests.conftest import ROOT
from toolkit.app.arguments import PASSWORD
from toolkit.app.web.server import free_port


def run_app(*words: str, password: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run `python app.py` with these arguments until it ends."""
    return subprocess.run(
        [sys.executable, "app.py", *words],
        cwd=ROOT,
        env=environment(password),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


@contextmanager
def served(*words: str, password: str | None = None) -> Iterator[str]:
    """Run the app as a server; yields its URL."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "app.py", "--port", str(port), *words],
        cwd=ROOT,
        env=environment(password) | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        line, started = "", time.monotonic()
        while "Compare checkpoints at" not in line:
            line = process.stdout.readline()
            if not line and process.poll() is not None:
                pytest.fail(f"the app ended with {process.returncode}")
            assert time.monotonic() - started < 180
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def served_here(*words: str, password: str | None = None) -> Iterator[str]:
    """Run the app as a server in a thread of this process; yields its URL when the base is loaded."""
    port, loaded, ended = free_port(), threading.Event(), threading.Event()

    def block(_: gr.Blocks) -> None:
        loaded.set()
        ended.wait()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gr.Blocks, "block_thread", block)
        patch.delenv(PASSWORD, raising=False)
        if password:
            patch.setenv(PASSWORD, password)
        with ThreadPoolExecutor(1) as pool:
            code = pool.submit(app.main, ["--port", str(port), *words])
            code.add_done_callback(lambda _: loaded.set())
            try:
                assert loaded.wait(180)
                assert not code.done(), "the app ended"
                yield f"http://127.0.0.1:{port}/"
            finally:
                ended.set()
            assert code.result(30) == 0


def environment(password: str | None) -> dict[str, str]:
    """The environment with one thread and only this password."""
    others = {k: v for k, v in os.environ.items() if k != PASSWORD}
    return others | {"OMP_NUM_THREADS": "1"} | ({PASSWORD: password} if password else {})
