"""The newest checkpoint is whole at every moment of a training, so that a kill costs none."""

import os
import sys
from contextlib import contextmanager

import pytest

from tests.ppo.setup import make, prompts
from toolkit.runs.replacing import checkpoints

pytestmark = pytest.mark.slow

CHANGES = {"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir"}
_watchers = []
_hooked = []


def _hook(event, args):
    if event in CHANGES:
        for watch in _watchers:
            watch(event, args)


@contextmanager
def watching(watch):
    """Call `watch(event, args)` before each change of the file system that Python makes."""
    if not _hooked:  # an audit hook stays until the process ends
        sys.addaudithook(_hook)
        _hooked.append(True)
    _watchers.append(watch)
    try:
        yield
    finally:
        _watchers.remove(watch)


def contents(checkpoint):
    """The files of a checkpoint and their sizes."""
    return {
        str(f.relative_to(checkpoint)): f.stat().st_size
        for f in checkpoint.rglob("*")
        if f.is_file()
    }


def train(ppo_roles, tokenizer, folder):
    """Eight steps, a checkpoint after every second, of which one is kept."""
    saving = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}
    make(ppo_roles, tokenizer, prompts(), folder, **saving).train()


def test_a_kill_at_any_moment_finds_the_newest_checkpoint_whole(ppo_roles, tokenizer, tmp_path):
    """What has the newest name is complete from its first moment, and there until the next one is."""
    folder, seen = tmp_path / "run", []

    def look(event, args):
        if event == "open" and not str(args[0]).startswith(str(folder)):
            return
        found = checkpoints(folder)
        now = (found[-1].name, contents(found[-1])) if found else None
        if not seen or seen[-1] != now:
            seen.append(now)

    with watching(look):
        train(ppo_roles, tokenizer, folder)
    names = [None if now is None else now[0] for now in seen]
    assert names == [None, *(f"checkpoint-{step}" for step in (2, 4, 6, 8))]
    needed = {
        "adapter_model.safetensors",
        "optimizer.pt",
        "trainer_state.json",
        "value/head.safetensors",
    }
    for _, files in seen[1:]:
        assert needed <= set(files)
        assert set(files) == set(contents(folder / "checkpoint-8"))


def test_an_older_checkpoint_goes_after_the_newer_has_its_name(
    ppo_roles, tokenizer, tmp_path, monkeypatch
):
    folder, replace, seen = tmp_path / "run", os.replace, []

    def names():
        return [f.name for f in checkpoints(folder)]

    def spied(source, target):
        before = names()
        replace(source, target)
        if os.path.basename(target).startswith("checkpoint-"):
            seen.append((before, names()))

    monkeypatch.setattr(os, "replace", spied)
    train(ppo_roles, tokenizer, folder)
    two, four, six, eight = (f"checkpoint-{step}" for step in (2, 4, 6, 8))
    assert seen == [
        ([], [two]),
        ([two], [two, four]),
        ([four], [four, six]),
        ([six], [six, eight]),
    ]
    assert names() == [eight]
