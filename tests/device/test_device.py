"""With the model on an accelerator nothing is left on the CPU: see simulated.py."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("file", ["on_device.py", "on_device_answers.py"])
def test_all_tensors_are_where_the_model_is(file):
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", f"tests/device/{file}"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:]
