"""Checkpoints are whole or not there; a signal ends a run without loss."""

import errno
import os
import signal

import pytest
import torch
from transformers import TrainerCallback

from tests.trainers.ppo_setup import make, prompts
from toolkit.errors import CheckpointError, Interrupted
from toolkit.runs import last_checkpoint
from toolkit.trainers.checkpoints import INCOMING, interruptible

SAVING = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}


class AtStep(TrainerCallback):
    """Does something when a step begins."""

    def __init__(self, step, act):
        self.step, self.act = step, act

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.act()


def files(folder):
    return sorted(f.name for f in folder.iterdir())


def test_a_checkpoint_has_its_name_only_when_it_is_whole(
    ppo_roles, tokenizer, tmp_path, monkeypatch
):
    """While anything is being written, no folder called checkpoint-… lacks a file."""
    seen = []
    save = torch.save

    def watched(*args, **kwargs):
        seen.append([f.name for f in (tmp_path / "run").glob("checkpoint-*")])
        return save(*args, **kwargs)

    monkeypatch.setattr(torch, "save", watched)
    make(ppo_roles, tokenizer, prompts(), tmp_path / "run", **SAVING).train()
    assert seen[0] == []
    assert set(map(len, seen)) == {0, 1}
    assert not (tmp_path / "run" / INCOMING).exists()
    names = [f.name for f in (tmp_path / "run").glob("checkpoint-*")]
    assert names == ["checkpoint-8"]  # the others were removed after it was there
    expected = {
        "base.json",
        "experience.safetensors",
        "optimizer.pt",
        "trainer_state.json",
        "value",
    }
    assert expected <= set(files(tmp_path / "run" / "checkpoint-8"))


def test_a_full_disk_is_a_clear_error_and_the_last_checkpoint_stays(
    ppo_roles, tokenizer, tmp_path, monkeypatch
):
    run, save, room = tmp_path / "run", torch.save, [6]

    def full(*args, **kwargs):
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return save(*args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match=r"checkpoint-\d.*No space left.*resume_from"):
        make(ppo_roles, tokenizer, prompts(), run, **SAVING).train()
    assert last_checkpoint(run, True) is not None
    assert not (run / INCOMING).exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_run_resumes_to_the_same_policy(
    make_ppo_roles, tokenizer, tmp_path, number
):
    whole = make_ppo_roles()
    make(whole, tokenizer, prompts(), tmp_path / "whole").train()
    stopped = make_ppo_roles()
    trainer = make(stopped, tokenizer, prompts(), tmp_path / "run")
    trainer.add_callback(AtStep(3, lambda: os.kill(os.getpid(), number)))
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="at step 4"), interruptible(trainer):
        trainer.train()
    assert signal.getsignal(number) is before
    resumed = make_ppo_roles()
    trainer = make(resumed, tokenizer, prompts(), tmp_path / "run")
    trainer.train(resume_from_checkpoint=last_checkpoint(tmp_path / "run", True))
    expected = dict(whole.model.named_parameters())
    for name, parameter in resumed.model.named_parameters():
        assert torch.equal(parameter, expected[name]), name
