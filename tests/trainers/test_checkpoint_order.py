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


def test_newest_checkpoint_is_complete_at_any_moment(ppo_roles, tokenizer, tmp_path, monkeypatch):
    """Each checkpoint is complete once it has its name, and stays until the next one exists."""
    folder, replace, states, renames = tmp_path / "run", os.replace, [], []

    def names():
        return [f.name for f in checkpoints(folder)]

    def record(event, args):
        if event == "open" and not str(args[0]).startswith(str(folder)):
            return
        existing = checkpoints(folder)
        state = (existing[-1].name, contents(existing[-1])) if existing else None
        if not states or states[-1] != state:
            states.append(state)

    def recorded_replace(source, target):
        before = names()
        replace(source, target)
        if os.path.basename(target).startswith("checkpoint-"):
            renames.append((before, names()))

    monkeypatch.setattr(os, "replace", recorded_replace)
    saving = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}
    with watching(record):
        make(ppo_roles, tokenizer, prompts(), folder, **saving).train()
    two, four, six, eight = (f"checkpoint-{step}" for step in (2, 4, 6, 8))
    assert [state and state[0] for state in states] == [None, two, four, six, eight]
    needed = {
        "adapter_model.safetensors",
        "optimizer.pt",
        "trainer_state.json",
        "value/head.safetensors",
    }
    for _, files in states[1:]:
        assert needed <= set(files)
        assert set(files) == set(contents(folder / eight))
    assert renames == [
        ([], [two]),
        ([two], [two, four]),
        ([four], [four, six]),
        ([six], [six, eight]),
    ]
    assert names() == [eight]
