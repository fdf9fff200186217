"""Output that cannot be written is lost, and the command finishes."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

COMMAND = """
import sys
from toolkit.options.output import keep_going
keep_going()
for number in range(3000):
    print("a line with \\u2026 and", number)
print("warning: \\u03b2", file=sys.stderr)
sys.stdout.flush()
"""


def run(stdout, **variables):
    words = [sys.executable, "-c", COMMAND]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"} | variables
    return subprocess.run(
        words, stdout=stdout, stderr=subprocess.PIPE, cwd=ROOT, env=environment, check=False
    )


def test_closed_pipe_does_not_end_command():
    read, write = os.pipe()
    os.close(read)
    result = run(write)
    os.close(write)
    assert (result.returncode, result.stderr) == (0, "warning: β\n".encode())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_full_disk_does_not_end_command():
    with open("/dev/full", "wb") as full:
        result = run(full)
    assert (result.returncode, result.stderr) == (0, "warning: β\n".encode())


def test_ascii_output_has_escapes():
    result = run(subprocess.PIPE, PYTHONIOENCODING="ascii")
    assert (result.returncode, result.stderr) == (0, b"warning: \\u03b2\n")
    lines = result.stdout.splitlines()
    assert (len(lines), lines[7]) == (3000, b"a line with \\u2026 and 7")
