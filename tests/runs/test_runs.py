"""Run directories: manifests, lineage, checkpoints that may be resumed, and broken ones."""

import errno
import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import ROOT
from toolkit.errors import CheckpointError
from toolkit.runs.listing import BrokenRun, list_runs
from toolkit.runs.parents import require_adapter
from toolkit.runs.provenance import commit
from toolkit.runs.replacing import remove_leftovers
from toolkit.runs.resuming import CONTENTS, LOSS_FILE, last_checkpoint, list_contents
from toolkit.runs.run import Run

COMPLETE = ("adapter_config.json", "adapter_model.safetensors", "optimizer.pt", "scheduler.pt")


def checkpoint(folder, step, *, missing=None):
    place = folder / f"checkpoint-{step}"
    place.mkdir(parents=True)
    for name in COMPLETE:
        if name != missing:
            (place / name).write_bytes(b"x")
    (place / "trainer_state.json").write_text("{}")
    list_contents(place)
    return place


def test_run_is_written_read_and_finished(tmp_path):
    with Run.start(tmp_path / "a", recipe="sft", parents={"adapter": "b", "reward": None}) as run:
        assert Run.load(tmp_path / "a").state == "running"
        run.base = {"id": "world:base"}
        run.finish(steps=3)
    again = Run.load(tmp_path / "a")
    assert (again.state, again.results, again.parents) == (
        "finished",
        {"steps": 3},
        {"adapter": "b"},
    )
    assert "transformers" in again.versions
    assert "`b`" in (tmp_path / "a" / "README.md").read_text()


def test_failed_run_records_its_error(tmp_path):
    with pytest.raises(ZeroDivisionError), Run.start(tmp_path, recipe="sft"):
        _ = 1 / 0
    assert Run.load(tmp_path).error == "ZeroDivisionError: division by zero"


def test_unusable_output_folder_is_named_and_unchanged(tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    for path in (file, file / "run"):
        with pytest.raises(CheckpointError, match=r"notes\.txt.*: cannot be the output folder"):
            Run.start(path, recipe="sft")
    assert file.read_text() == "mine"


def test_two_processes_do_not_write_to_one_folder(tmp_path):
    """The first is left alone, and when it is killed its folder is free."""
    code = f"from toolkit.runs.run import Run; run = Run.start({str(tmp_path)!r}, recipe='sft'); "
    words = [sys.executable, "-c", code + "print('on', flush=True); input()"]
    first = subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert first.stdout.readline() == b"on\n"
    manifest = (tmp_path / "run.json").read_text()
    checkpoint(tmp_path, 3)
    with pytest.raises(CheckpointError, match="another process writes to it"):
        Run.start(tmp_path, recipe="ppo", resume=str(tmp_path / "checkpoint-3"))
    assert (tmp_path / "run.json").read_text() == manifest
    first.kill()
    first.communicate()
    with pytest.raises(CheckpointError, match="holds a run of sft, which ppo cannot continue"):
        Run.start(tmp_path, recipe="ppo", resume=str(tmp_path / "checkpoint-3"))
    Run.start(tmp_path, recipe="sft", resume=str(tmp_path / "checkpoint-3")).finish()
    assert Run.load(tmp_path).state == "finished"


def test_secrets_are_not_written(tmp_path):
    from trl import SFTConfig

    config = SFTConfig(output_dir=str(tmp_path), use_cpu=True, hub_token="hf_secret")
    Run.start(tmp_path, recipe="sft", configs=[config])
    assert "hf_secret" not in (tmp_path / "run.json").read_text()


def test_listing_includes_broken_runs(tmp_path):
    Run.start(tmp_path / "good", recipe="sft").finish()
    for name, text in (("cut", '{"schema": 1, "rec'), ("other", '{"schema": 9, "recipe": "x"}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(text)
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "adapter_config.json").write_text("{}")
    (tmp_path / "link").symlink_to("/")
    runs, broken = list_runs(tmp_path)
    assert [r.name for r in runs] == ["good"]
    assert [b.path.name for b in broken] == ["bare", "cut", "other"]
    assert all(isinstance(b, BrokenRun) and b.reason for b in broken)


def test_last_complete_checkpoint_is_chosen(tmp_path):
    checkpoint(tmp_path, 9)
    checkpoint(tmp_path, 10)
    checkpoint(tmp_path, 11, missing="optimizer.pt")
    (checkpoint(tmp_path, 12) / "trainer_state.json").write_text('{"cut')
    assert last_checkpoint(tmp_path, True).endswith("checkpoint-10")
    assert last_checkpoint(tmp_path, "true").endswith("checkpoint-10")
    assert last_checkpoint(tmp_path / "none", True) is None
    assert last_checkpoint(tmp_path, None) is None
    assert last_checkpoint(tmp_path, "false") is None
    with pytest.raises(CheckpointError, match="optimizer"):
        last_checkpoint(tmp_path, str(tmp_path / "checkpoint-11"))


def test_incomplete_checkpoint_is_not_chosen(tmp_path):
    checkpoint(tmp_path, 9)
    place = checkpoint(tmp_path, 10)
    (place / "value").mkdir()
    (place / "value" / "head.safetensors").write_bytes(b"four")
    list_contents(place)
    assert last_checkpoint(tmp_path, True).endswith("checkpoint-10")
    (place / "notes.txt").write_text("somebody's own")
    assert last_checkpoint(tmp_path, True).endswith("checkpoint-10")
    (place / "value" / "head.safetensors").write_bytes(b"two")
    assert last_checkpoint(tmp_path, True).endswith("checkpoint-9")
    with pytest.raises(CheckpointError, match=r"value/head\.safetensors has 3 bytes, expected 4"):
        last_checkpoint(tmp_path, str(place))
    (place / "value" / "head.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"value/head\.safetensors is missing"):
        last_checkpoint(tmp_path, str(place))
    (place / CONTENTS).write_text('{"cut')
    with pytest.raises(CheckpointError, match=rf"{CONTENTS} is damaged"):
        last_checkpoint(tmp_path, str(place))


def zero(file):
    """Same size, other content, as after a power failure."""
    file.write_bytes(b"\0" * file.stat().st_size)


@pytest.mark.parametrize("name", [*COMPLETE, "trainer_state.json", "value/head.safetensors"])
def test_zeroed_file_falls_back_to_older_checkpoint(tmp_path, capsys, name):
    older, newest = checkpoint(tmp_path, 9), checkpoint(tmp_path, 10)
    (newest / "value").mkdir()
    (newest / "value" / "head.safetensors").write_bytes(b"four")
    list_contents(newest)
    zero(newest / name)
    assert last_checkpoint(tmp_path, True) == str(older)
    reason = f"{name} was changed after it was written"
    assert f"{newest}: cannot resume from it ({reason}" in capsys.readouterr().out
    with pytest.raises(CheckpointError, match=f"{reason}.*name another checkpoint"):
        last_checkpoint(tmp_path, str(newest))
    zero(older / "optimizer.pt")
    with pytest.raises(
        CheckpointError, match=f"checkpoint-10: .*{reason}.* no older checkpoint is undamaged"
    ):
        last_checkpoint(tmp_path, True)


def test_swapped_files_of_two_checkpoints_are_detected(tmp_path):
    places = [checkpoint(tmp_path, step) for step in (8, 9, 10)]
    for step, place in enumerate(places):
        (place / "optimizer.pt").write_bytes(bytes([step]))
        list_contents(place)
    for name in ("optimizer.pt", CONTENTS):  # then of the lists themselves
        files = [place / name for place in places[1:]]
        first, second = (file.read_bytes() for file in files)
        files[0].write_bytes(second), files[1].write_bytes(first)
        expected = places[0] if name == "optimizer.pt" else places[2]
        assert last_checkpoint(tmp_path, True) == str(expected)


@pytest.mark.parametrize("content", ["", "{}", "[]", "3", "null", '{"optimizer.pt": "x"}', None])
def test_damaged_list_of_contents_is_detected(tmp_path, content):
    older, newest = checkpoint(tmp_path, 9), checkpoint(tmp_path, 10)
    if content is None:  # only a checkpoint of another program has no list
        (newest / LOSS_FILE).write_text("{}")
        (newest / CONTENTS).unlink()
    else:
        (newest / CONTENTS).write_text(content)
    assert last_checkpoint(tmp_path, True) == str(older)


@pytest.mark.parametrize("lists", [True, False])
@pytest.mark.parametrize("name", [None, *COMPLETE, "trainer_state.json", "rng_state.pth"])
def test_checkpoints_without_hashes_are_read(tmp_path, lists, name):
    """Of another program, or of an earlier version, which listed sizes only."""
    older, newest = checkpoint(tmp_path, 9), checkpoint(tmp_path, 10)
    for file in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"step": torch.arange(9)}, newest / file)
    save_file({"w": torch.ones(3)}, newest / "adapter_model.safetensors")
    for file in ("adapter_config.json", "trainer_state.json"):
        (newest / file).write_text("{}")
    (newest / CONTENTS).unlink()
    if lists:
        sizes = {file.name: file.stat().st_size for file in newest.iterdir()}
        (newest / CONTENTS).write_text(json.dumps(sizes))
    if name is not None:
        zero(newest / name)
    assert last_checkpoint(tmp_path, True) == str(newest if name is None else older)


def test_parent_with_changed_files_is_rejected(tmp_path):
    """A finished run, a role's folder in it, and a checkpoint."""
    run = Run.start(tmp_path / "run", recipe="ppo")
    run.begin()
    files = [folder / name for folder in (run.path, run.path / "value") for name in COMPLETE[:2]]
    (run.path / "value").mkdir()
    for file in files:
        file.write_bytes(b"x")
    place = checkpoint(run.path, 3)
    run.finish()
    for name in COMPLETE[2:]:
        (place / name).unlink()  # only its adapter is read
    for folder in (run.path, run.path / "value", place):
        require_adapter(str(folder), "parent")
        zero(folder / "adapter_model.safetensors")
        with pytest.raises(CheckpointError, match="safetensors was changed after"):
            require_adapter(str(folder), "parent")
        (folder / "adapter_model.safetensors").write_bytes(b"x")


def test_missing_parent_is_reported_at_the_start(tmp_path):
    with pytest.raises(CheckpointError, match=r"parent: .* holds no adapter"):
        require_adapter(str(tmp_path / "none"), "parent")


def test_unfinished_run_cannot_be_a_parent(tmp_path):
    run = Run.start(tmp_path / "run", recipe="sft")
    for name in COMPLETE[:2]:
        (run.path / name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match="is running, not finished"):
        require_adapter(str(run.path), "parent")
    run.fail(RuntimeError("out of memory"))
    with pytest.raises(CheckpointError, match="is failed, not finished"):
        require_adapter(str(run.path), "parent")
    run.finish()
    require_adapter(str(run.path), "parent")
    require_adapter(str(checkpoint(tmp_path / "run", 3)), "parent")


def test_new_run_does_not_use_checkpoints_of_finished_run(tmp_path):
    Run.start(tmp_path, recipe="sft").finish()
    checkpoint(tmp_path, 9)
    Run.start(tmp_path, recipe="sft", resume=str(tmp_path / "checkpoint-9"))
    assert last_checkpoint(tmp_path, True).endswith("checkpoint-9")
    Run.load(tmp_path).finish()
    Run.start(tmp_path, recipe="sft").begin()
    assert last_checkpoint(tmp_path, True) is None
    assert Run.load(tmp_path).state == "running"


@pytest.mark.parametrize("resumes", [False, True])
def test_finished_run_stays_until_the_next_begins(tmp_path, capsys, resumes):
    """What fails while data and models are loaded costs nothing."""
    Run.start(tmp_path, recipe="reward_ensemble").finish(steps=9)
    place = checkpoint(tmp_path, 9)
    (tmp_path / "member-1").mkdir()
    Run.start(tmp_path / "member-1", recipe="reward").finish()
    (tmp_path / "last").mkdir()
    (tmp_path / "last" / "adapter_config.json").write_text("{}")
    before = {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()}
    resume, recipe = (str(place), "reward_ensemble") if resumes else (None, "ppo")
    with (
        pytest.raises(ZeroDivisionError),
        Run.start(tmp_path, recipe=recipe, resume=resume),
    ):
        _ = 1 / 0
    assert {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()} == before
    assert "the finished reward_ensemble run is unchanged" in capsys.readouterr().out
    run = Run.start(tmp_path, recipe=recipe, resume=resume)
    run.begin()
    assert Run.load(tmp_path).state == "running"
    assert (
        "replaces the finished reward_ensemble run of" in capsys.readouterr().out
    ) is not resumes
    kept = [(tmp_path / name).exists() for name in ("checkpoint-9", "member-1", "last")]
    assert kept == [resumes] * 3
    run.begin()
    assert capsys.readouterr().out == ""
    run.fail(RuntimeError("out of memory"))
    assert (Run.load(tmp_path).state, Run.load(tmp_path).recipe) == ("failed", recipe)


@pytest.mark.parametrize("killed", [False, True])
def test_failed_start_keeps_the_finished_run(tmp_path, monkeypatch, killed):
    """Its manifest cannot be written: the disk is full, or the process is gone just before."""
    Run.start(tmp_path, recipe="sft").finish()
    checkpoint(tmp_path, 9)
    before = {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()}

    def dies(*_):
        if killed:
            monkeypatch.setattr("toolkit.runs.replacing.put_back", lambda _: None)
        raise OSError(errno.ENOSPC, "no space left")

    run = Run.start(tmp_path, recipe="sft")
    with monkeypatch.context() as patch:
        patch.setattr(Run, "save", dies)
        with pytest.raises(OSError, match="no space"):
            run.begin()
    assert (tmp_path / ".replaced").exists() is killed
    monkeypatch.undo()
    if killed:
        run._release()  # as the system does when a process ends
        again = Run.start(tmp_path, recipe="sft")
        again.fail(RuntimeError("out of memory"))
    assert {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()} == before


def test_resume_rejects_other_recipe_or_folder(tmp_path):
    Run.start(tmp_path / "sft", recipe="sft").fail(RuntimeError("out of memory"))
    Run.start(tmp_path / "dpo", recipe="dpo").fail(RuntimeError("out of memory"))
    own, other = checkpoint(tmp_path / "sft", 9), checkpoint(tmp_path / "dpo", 4)
    with pytest.raises(CheckpointError, match="holds a run of sft, which dpo cannot continue"):
        Run.start(tmp_path / "sft", recipe="dpo", resume=str(own))
    with pytest.raises(CheckpointError, match="checkpoint-9 of a run that did not finish"):
        Run.start(tmp_path / "sft", recipe="sft", resume=str(other))
    assert own.is_dir()


def test_renamed_checkpoint_is_kept_and_not_resumed(tmp_path):
    Run.start(tmp_path, recipe="sft").finish()
    checkpoint(tmp_path, 4).rename(tmp_path / "checkpoint-4-good")
    Run.start(tmp_path, recipe="sft").begin()
    assert (tmp_path / "checkpoint-4-good").is_dir()
    assert last_checkpoint(tmp_path, True) is None


def test_incomplete_checkpoints_are_named_with_the_reason(tmp_path):
    Run.start(tmp_path, recipe="sft").fail(RuntimeError("out of memory"))
    (checkpoint(tmp_path, 4) / "optimizer.pt").unlink()
    with pytest.raises(CheckpointError, match=r"checkpoint-4: cannot .*optimizer.pt is missing"):
        last_checkpoint(tmp_path, True)


def test_machine_without_git_has_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert commit() is None


def test_two_processes_do_not_finish_one_folder(tmp_path):
    """The lock is held until the block ends: a reward model is judged after it has finished."""
    code = f"from toolkit.runs.run import Run; Run.start({str(tmp_path)!r}, recipe='sft')"
    with Run.start(tmp_path, recipe="sft") as run:
        run.finish()
        second = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
        )
    assert "another process writes to it" in second.stderr


def test_folder_named_like_a_member_is_kept(tmp_path):
    Run.start(tmp_path / "member-1", recipe="sft").finish()
    Run.start(tmp_path, recipe="sft").finish()
    Run.start(tmp_path, recipe="sft").begin()
    assert Run.load(tmp_path / "member-1").state == "finished"


def test_finished_members_of_an_ensemble_are_kept(tmp_path):
    Run.start(tmp_path, recipe="reward_ensemble").fail(RuntimeError("out of memory"))
    Run.start(tmp_path / "member-0", recipe="reward").finish()
    with pytest.raises(CheckpointError, match="holds member-0 of a run that did not finish"):
        Run.start(tmp_path, recipe="reward_ensemble")
    Run.start(tmp_path, recipe="reward_ensemble", resume=str(tmp_path)).finish()
    assert Run.load(tmp_path / "member-0").state == "finished"
    # a member beyond those that were wanted in the end
    Run.start(tmp_path / "member-3", recipe="reward").fail(RuntimeError("out of memory"))
    checkpoint(tmp_path / "member-3", 9)
    with pytest.raises(CheckpointError, match=r"holds member-3/checkpoint-9 of a run that did not"):
        Run.start(tmp_path, recipe="reward_ensemble")
    assert last_checkpoint(tmp_path / "member-3", True).endswith("checkpoint-9")


def test_run_of_another_recipe_removes_old_roles(tmp_path):
    """An SFT run in the place of a reward model is none, nor has it PPO's value."""
    Run.start(tmp_path, recipe="reward").finish()
    (tmp_path / "value").mkdir()
    for name in ("head.safetensors", "value/head.safetensors", "reward_report.json"):
        (tmp_path / name).write_bytes(b"x")
    Run.start(tmp_path, recipe="evaluate").begin()
    assert not (tmp_path / "head.safetensors").exists()
    Run.load(tmp_path).finish()
    (tmp_path / "reward_report.json").write_bytes(b"of the last one, and the next may have none")
    Run.start(tmp_path, recipe="reward").begin()
    assert sorted(f.name for f in tmp_path.iterdir()) == [".lock", "README.md", "run.json"]


def test_unknown_folder_is_kept(tmp_path):
    Run.start(tmp_path, recipe="reward").finish()
    for name in ("last", "value"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text("mine")
    Run.start(tmp_path, recipe="sft").begin()
    assert (tmp_path / "last" / "notes.txt").exists()
    assert (tmp_path / "value" / "notes.txt").exists()


def test_checkpoints_on_another_disk_are_kept(tmp_path):
    run = tmp_path / "run"
    Run.start(run, recipe="sft").finish()
    checkpoint(tmp_path / "disk", 4)
    (run / "checkpoint-4").symlink_to(tmp_path / "disk" / "checkpoint-4")
    Run.start(run, recipe="sft").begin()
    assert last_checkpoint(run, True) is None
    assert (tmp_path / "disk" / "checkpoint-4" / "optimizer.pt").exists()


def test_finished_run_that_cannot_be_moved_stays_finished(tmp_path, monkeypatch):
    Run.start(tmp_path, recipe="sft").finish()
    checkpoint(tmp_path, 4)

    def fails(*_):
        raise PermissionError("not yours")

    with monkeypatch.context() as patch, Run.start(tmp_path, recipe="ppo") as run:
        patch.setattr("toolkit.runs.replacing.os.replace", fails)
        with pytest.raises(PermissionError):
            run.begin()
        run.fail(PermissionError("not yours"))
    assert (Run.load(tmp_path).state, Run.load(tmp_path).recipe) == ("finished", "sft")
    assert last_checkpoint(tmp_path, True).endswith("checkpoint-4")


def test_checkpoints_of_unfinished_run_are_kept(tmp_path):
    Run.start(tmp_path, recipe="sft").fail(RuntimeError("out of memory"))
    checkpoint(tmp_path, 9)
    with pytest.raises(CheckpointError, match=r"checkpoint-9 of a run that did not finish"):
        Run.start(tmp_path, recipe="sft")
    assert last_checkpoint(tmp_path, True).endswith("checkpoint-9")


def test_metrics_with_a_truncated_line_are_read(tmp_path):
    run = Run.start(tmp_path, recipe="sft")
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1}) + '\n{"step": 2, "lo')
    assert run.metrics() == [{"step": 1}]


def test_next_start_removes_files_of_killed_process(tmp_path):
    folder = tmp_path / "run"
    (folder / ".incoming" / "checkpoint-3").mkdir(parents=True)
    names = (".run.json.4194304999", f".metrics.jsonl.{os.getpid()}", ".pipeline.json.1")
    for name in (*names, ".notes.txt", "data.1"):
        (folder / name).write_text("{")
    Run.start(folder, recipe="sft").finish()
    left = {f.name for f in folder.iterdir()}
    assert left == {".lock", ".notes.txt", "README.md", "data.1", "run.json"}


def test_unlocked_cleaning_keeps_files_of_running_processes(tmp_path):
    mine, dead = tmp_path / f".rows.jsonl.{os.getpid()}", tmp_path / ".rows.jsonl.4194304999"
    for file in (mine, dead):
        file.write_text("")
    remove_leftovers(tmp_path, locked=False)
    assert [f.name for f in tmp_path.iterdir()] == [mine.name]
