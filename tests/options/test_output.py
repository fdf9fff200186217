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


def run(stdout, command=COMMAND, **variables):
    words = [sys.executable, "-c", command]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"} | variables
    return subprocess.run(
        words, stdout=stdout, stderr=subprocess.PIPE, cwd=ROOT, env=environment, check=False
    )


CONTROLS = """
from toolkit.options.output import keep_going
keep_going()
print("title \\x1b]0;owned\\x07, screen \\x9b2J, \\x1b[31mred\\x1b[0m\\r\\ttab")
from tqdm import tqdm
for _ in tqdm(range(1), position=1): pass
"""


def test_control_characters_are_escaped_and_nested_bars_stay():
    result = run(subprocess.PIPE, CONTROLS)
    assert result.stdout == b"title \\x1b]0;owned\\x07, screen \\x9b2J, \x1b[31mred\x1b[0m\r\ttab\n"
    assert b"100%" in result.stderr and b"\x1b[A" in result.stderr and b"\\x" not in result.stderr


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


def test_closed_streams_get_no_other_file(tmp_path):
    script = f"""
import sys
from toolkit.options.output import keep_going
keep_going()
with open({str(tmp_path / "rows")!r}, "w") as file:
    assert file.fileno() > 2
    print("out")
    print("error", file=sys.stderr)
    assert sys.stdin.read() == ""
    file.write("done")
"""
    words = [sys.executable, "-c", script]
    subprocess.run(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *words], cwd=ROOT, check=True)
    assert (tmp_path / "rows").read_text() == "done"
