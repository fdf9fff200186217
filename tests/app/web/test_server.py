"""The folder of Gradio's files."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from gradio.utils import get_upload_folder

from tests.conftest import ROOT
from toolkit.app.web.server import TEMP_DIR, private_files

WAIT = """
import os, time
from toolkit.app.web.server import TEMP_DIR, private_files
with private_files():
    print(os.environ[TEMP_DIR], flush=True)
    time.sleep(60)
"""


def test_files_are_private_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TEMP_DIR, raising=False)
    with private_files():
        folder = Path(get_upload_folder())
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "batch.csv").touch()
    assert not folder.exists() and TEMP_DIR not in os.environ
    monkeypatch.setenv(TEMP_DIR, str(tmp_path))
    with private_files():
        assert get_upload_folder() == str(tmp_path)
    assert tmp_path.exists()


def test_sigterm_removes_the_files() -> None:
    variables = {k: v for k, v in os.environ.items() if k != TEMP_DIR}
    words = [sys.executable, "-c", WAIT]
    with subprocess.Popen(
        words, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        assert folder.is_dir()
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    assert not folder.exists()
