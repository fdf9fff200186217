"""The memory that a container or a job may use, on copies of a system's folders."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT
from toolkit.runs.integrity import too_large
from toolkit.runs.memory import memory_limit

MB = 1 << 20
UNLIMITED = 9223372036854771712  # of cgroup v1


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        ("0::/", {"memory.max": 64 * MB}, 64 * MB),  # a container with a namespace of its own
        ("0::/", {"memory.max": "max"}, None),
        ("0::/a/b.scope", {"a/b.scope/memory.max": 32 * MB, "a/memory.max": 64 * MB}, 32 * MB),
        ("0::/a/b.scope", {"a/b.scope/memory.max": "max", "a/memory.max": 64 * MB}, 64 * MB),
        ("0::/a", {"a/memory.max": "max", "other/memory.max": 16 * MB}, None),
        ("0::/../other", {"memory.max": 48 * MB}, 48 * MB),
        ("5:cpu,memory:/job/1", {"memory/job/1/memory.limit_in_bytes": 32 * MB}, 32 * MB),
        ("5:memory:/docker/abc", {"memory/memory.limit_in_bytes": 16 * MB}, 16 * MB),
        ("5:memory:/\n0::/", {"memory/memory.limit_in_bytes": UNLIMITED}, None),
        ("5:cpu:/\n0::/a", {"unified/a/memory.max": 8 * MB}, 8 * MB),
        (None, {"memory.max": 24 * MB}, 24 * MB),  # without /proc
        (None, {}, None),
    ],
)
def test_lowest_limit_of_the_groups_is_used(tmp_path, groups, limits, expected):
    if groups is not None:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(f"{groups}\n")
    for name, limit in limits.items():
        file = tmp_path / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{limit}\n")
    machine = memory_limit(tmp_path / "nothing")
    assert memory_limit(tmp_path) == (machine if expected is None else expected)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on the address space")
def test_limit_on_address_space_is_used(tmp_path):
    code = (
        "import resource; from toolkit.runs.memory import memory_limit; "
        f"resource.setrlimit(resource.RLIMIT_AS, ({256 * MB}, -1)); print(memory_limit())"
    )
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) == 256 * MB


def test_large_file_is_compared_with_the_limit(tmp_path, monkeypatch):
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(bytes(3 * MB))
    monkeypatch.setattr("toolkit.runs.integrity.memory_limit", lambda: 8 * MB)
    assert too_large(file) is None
    monkeypatch.setattr("toolkit.runs.integrity.memory_limit", lambda: 4 * MB)
    assert "more than half" in too_large(file)
