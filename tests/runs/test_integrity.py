"""Nothing is read through a link out of the runs folder, from a pipe, or from files that changed."""

import json
import os
from pathlib import Path

import pytest

from toolkit.errors import CheckpointError
from toolkit.runs.integrity import hashes, open_inside, read_inside
from toolkit.runs.listing import list_runs
from toolkit.runs.run import Run

SECRET = "SECRET of another folder"


@pytest.fixture
def root(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.json").write_text(json.dumps({"schema": 1, "recipe": SECRET}))
    root = tmp_path / "runs"
    Run.start(root / "good", recipe="sft").finish()
    return root


def reasons(root: Path) -> dict[str, str]:
    """Broken run -> reason, after checking that the good one is still listed alone."""
    found, broken = list_runs(root)
    assert [run.name for run in found] == ["good"]
    assert SECRET not in str(broken)
    return {b.path.name: b.reason for b in broken}


@pytest.mark.parametrize("name", ["run.json", "base.json", "adapter_config.json", "value"])
def test_link_out_of_the_folder_is_not_followed(root, name):
    (root / "bad").mkdir()
    (root / "bad" / "run.json").write_text('{"schema": 1, "recipe": "sft"}')
    (root / "bad" / name).unlink(missing_ok=True)
    secret = root.parent / "outside"
    (root / "bad" / name).symlink_to(secret if name == "value" else secret / "secret.json")
    assert reasons(root) == {"bad": f"{name} is a link that leads out of the runs folder"}


def test_link_inside_a_role_folder_is_not_followed(root):
    (root / "bad" / "value").mkdir(parents=True)
    (root / "bad" / "run.json").write_text('{"schema": 1, "recipe": "ppo"}')
    (root / "bad" / "value" / "head.safetensors").symlink_to(root.parent / "outside/secret.json")
    assert "head.safetensors is a link" in reasons(root)["bad"]


def test_link_to_the_inside_is_read(root):
    (root / "good" / "metrics.jsonl").symlink_to(root / "good" / "run.json")
    assert reasons(root) == {}


@pytest.mark.parametrize("name", ["run.json", "adapter_model.safetensors", "metrics.jsonl"])
@pytest.mark.timeout(10)
def test_pipe_does_not_block(root, name):
    (root / "bad").mkdir()
    (root / "bad" / "run.json").write_text('{"schema": 1, "recipe": "sft"}')
    (root / "bad" / name).unlink(missing_ok=True)
    os.mkfifo(root / "bad" / name)
    assert "neither a file nor a folder" in reasons(root)["bad"]
    with pytest.raises(OSError, match="not a regular file"):
        open_inside(root / "bad" / name, root)
    if name == "run.json":
        with pytest.raises(CheckpointError, match="a pipe"):
            Run.load(root / "bad")


def test_device_is_not_read(root):
    (root / "bad").mkdir()
    (root / "bad" / "run.json").symlink_to("/dev/zero")
    assert "out of the runs folder" in reasons(root)["bad"]
    with pytest.raises(OSError, match="out of the runs folder"):
        open_inside(root / "bad" / "run.json", root)


@pytest.mark.parametrize("name", ["../../outside/secret.json", "a\0b"])
def test_unsafe_names_open_no_file(root, name):
    with pytest.raises((OSError, ValueError)):
        open_inside(root / "good" / name, root)


def test_too_large_file_is_not_read(root):
    (root / "good" / "long").write_bytes(b"x" * 11)
    assert read_inside(root / "good" / "long", root, at_most=11) == b"x" * 11
    with pytest.raises(OSError, match="more than"):
        read_inside(root / "good" / "long", root, at_most=10)


def test_finish_records_hashes_of_files(root):
    run = Run.start(root / "sft", recipe="sft")
    (run.path / "value").mkdir()
    for name in ("adapter_model.safetensors", "value/head.safetensors"):
        (run.path / name).write_bytes(b"abc")
    run.finish()
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1
    recorded = Run.load(run.path).weights
    assert recorded == {"adapter_model.safetensors": abc, "value/head.safetensors": abc}
    assert hashes(run.path) == recorded
