"""A kill at any moment of a training leaves a complete newest checkpoint."""

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
    """Eight steps with a checkpoint after every second step; one is kept."""
    saving = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}
    make(ppo_roles, tokenizer, prompts(), folder, **saving).train()


def test_newest_checkpoint_is_complete_at_any_moment(ppo_roles, tokenizer, tmp_path):
    """Each checkpoint is complete from the moment it has its name until the next one exists."""
    folder, states = tmp_path / "run", []

    def record(event, args):
        if event == "open" and not str(args[0]).startswith(str(folder)):
            return
        existing = checkpoints(folder)
        state = (existing[-1].name, contents(existing[-1])) if existing else None
        if not states or states[-1] != state:
            states.append(state)

    with watching(record):
        train(ppo_roles, tokenizer, folder)
    names = [None if state is None else state[0] for state in states]
    assert names == [None, *(f"checkpoint-{step}" for step in (2, 4, 6, 8))]
    needed = {
        "adapter_model.safetensors",
        "optimizer.pt",
        "trainer_state.json",
        "value/head.safetensors",
    }
    for _, files in states[1:]:
        assert needed <= set(files)
        assert set(files) == set(contents(folder / "checkpoint-8"))


def test_older_checkpoint_is_removed_after_newer_exists(
    ppo_roles, tokenizer, tmp_path, monkeypatch
):
    folder, replace, renames = tmp_path / "run", os.replace, []

    def names():
        return [f.name for f in checkpoints(folder)]

    def recorded(source, target):
        before = names()
        replace(source, target)
        if os.path.basename(target).startswith("checkpoint-"):
            renames.append((before, names()))

    monkeypatch.setattr(os, "replace", recorded)
    train(ppo_roles, tokenizer, folder)
    two, four, six, eight = (f"checkpoint-{step}" for step in (2, 4, 6, 8))
    assert renames == [
        ([], [two]),
        ([two], [two, four]),
        ([four], [four, six]),
        ([six], [six, eight]),
    ]
    assert names() == [eight]
