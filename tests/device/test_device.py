"""With the model on an accelerator, all its tensors are there too; see simulated.py."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_tensors_are_on_the_models_device():
    files = ["tests/device/on_device.py", "tests/device/on_device_answers.py"]
    process = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:xdist", *files],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert process.returncode == 0, process.stdout[-8000:]
