"""The lock of a folder: one writer, and no file outside the folder is changed."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from toolkit.errors import CheckpointError
from toolkit.runs.locking import LOCK, lock_folder
from toolkit.runs.run import Run


@pytest.mark.parametrize("name", [LOCK, "run.json", "metrics.jsonl", "ppo.log"])
def test_links_to_files_are_rejected(tmp_path, name):
    target, folder = tmp_path / "thesis.txt", tmp_path / "run"
    target.write_text("three years of work")
    folder.mkdir()
    (folder / name).symlink_to(target)
    with pytest.raises(CheckpointError, match=f"{name} is a symbolic link.*remove the link"):
        lock_folder(folder)
    assert target.read_text() == "three years of work"


def test_dangling_link_creates_no_file(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / LOCK).symlink_to(tmp_path / "created")
    with pytest.raises(CheckpointError, match="is a symbolic link"):
        Run.start(folder, recipe="sft")
    assert not (tmp_path / "created").exists()


def test_folder_in_the_place_of_the_lock_is_rejected(tmp_path):
    (tmp_path / LOCK).mkdir()
    with pytest.raises(CheckpointError, match=r"\.lock: Is a directory"):
        lock_folder(tmp_path)


def test_existing_content_of_the_lock_file_stays(tmp_path):
    other = tmp_path / "notes.txt"
    other.write_text("mine")
    (tmp_path / "run").mkdir()
    os.link(other, tmp_path / "run" / LOCK)
    lock_folder(tmp_path / "run").release()
    assert other.read_text() == "mine"


@pytest.mark.slow
def test_other_descriptors_do_not_release_the_lock(tmp_path):
    """POSIX record locks end when any descriptor of the file is closed."""
    lock = lock_folder(tmp_path)
    (tmp_path / LOCK).read_bytes()
    code = (
        "from pathlib import Path; import toolkit.runs.locking as locking; "
        f"locking.lock_folder(Path({str(tmp_path)!r}))"
    )
    words = [sys.executable, "-c", code]
    second = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "another process writes to it" in second.stderr
    lock.release()
    assert subprocess.run(words, cwd=ROOT, check=False).returncode == 0


def test_one_process_cannot_lock_a_folder_twice(tmp_path):
    first = Run.start(tmp_path, recipe="sft")
    with pytest.raises(CheckpointError, match="another process writes to it"):
        Run.start(tmp_path, recipe="sft")
    first.finish()
    Run.start(tmp_path, recipe="sft").finish()


def test_failed_start_releases_the_lock(tmp_path):
    (tmp_path / "checkpoint-2").mkdir()
    with pytest.raises(CheckpointError, match="did not finish") as error:
        Run.start(tmp_path, recipe="sft")
    lock_folder(tmp_path).release()
    assert error.value is not None
