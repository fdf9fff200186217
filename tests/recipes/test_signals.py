"""Ctrl-C and SIGTERM as a user meets them: exit status, a whole checkpoint, and how it goes on.

The reward function of the runs waits in the second rollout, after the first steps, until a file is
there: what a signal meets does not depend on how fast this machine is.
"""

import signal
import subprocess
import time

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ROOT
from tests.recipes.test_kill import command, run
from toolkit.runs import Run, checkpoints

PATIENCE = 120  # seconds, for a machine that does much else
REWARD = """
import pathlib
import time

CALLS = []


def brief(completions, **columns):
    here = pathlib.Path(__file__).parent
    CALLS.append(1)
    (here / f"called-{len(CALLS)}").touch()
    while len(CALLS) == 2 and not (here / "go").exists():
        time.sleep(0.005)
    return [-float(len(c[0]["content"] if isinstance(c, list) else c)) for c in completions]
"""
SETTINGS = {
    "total_episodes": 12,
    "num_ppo_epochs": 1,
    "logging_steps": 1,
    "save_strategy": "no",
    "eval_strategy": "no",
    "per_device_train_batch_size": 2,
    "num_mini_batches": 1,
    "save_steps": None,
    "eval_steps": None,
    "eval_prompts": None,
    "ptx_texts": None,
    "ptx_coef": None,
    "ptx_batch_size": None,
}


def until(true, process):
    """Wait for a condition, while the process lives."""
    end = time.monotonic() + PATIENCE
    while not true():
        assert process.poll() is None, "it ended before"
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.005)


class Runs:
    """Runs of one kind in folders of one directory."""

    def __init__(self, place, base, sft, reward):
        self.place, self.roles = place, (base, sft, reward)
        (place / "rewards.py").write_text(REWARD, encoding="utf-8")

    def command(self, name):
        function = f"{self.place / 'rewards.py'}:brief"
        return command(self.place / name, *self.roles, reward_funcs=function, **SETTINGS)

    def to_the_end(self, name, *more):
        """Run or go on, with nothing to wait for."""
        (self.place / "go").touch()
        run([*self.command(name), *more])

    def start(self, name):
        """A run that waits in its second rollout; its first step is done."""
        for left in ("go", "called-1", "called-2"):
            (self.place / left).unlink(missing_ok=True)
        self.said = self.place / f"{name}.log"
        with self.said.open("wb") as log:
            process = subprocess.Popen(
                self.command(name), cwd=ROOT, stdout=log, stderr=subprocess.STDOUT
            )
        try:
            until((self.place / "called-2").exists, process)
        except BaseException:
            process.kill()
            process.wait()
            raise
        return process

    def signalled(self, process, number):
        """Send a signal; until the run has said that it was received."""
        process.send_signal(number)
        until(lambda: "stopping after this step" in self.text(), process)

    def text(self):
        return self.said.read_text(encoding="utf-8", errors="replace")

    def adapter(self, name):
        return load_file(self.place / name / "adapter_model.safetensors")


@pytest.fixture
def runs(tiny_base, sft_run, reward_run, tmp_path):
    return Runs(tmp_path, tiny_base, sft_run, reward_run)


@pytest.mark.slow
def test_ctrl_c_and_sigterm_exit_130_and_143_and_resume_to_the_uninterrupted_run(runs):
    runs.to_the_end("whole")
    whole = runs.adapter("whole")
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        process = runs.start(number.name)
        try:
            steps = [row["step"] for row in Run.load(runs.place / number.name).metrics()]
            assert steps, "a step was done before the signal"
            runs.signalled(process, number)
            (runs.place / "go").touch()
            assert process.wait(PATIENCE) == status, runs.text()[-2000:]
        finally:
            process.kill()
            process.wait()
        folder = runs.place / number.name
        last = f"checkpoint-{steps[-1] + 1}"  # of the step that was being done
        assert [f.name for f in checkpoints(folder)] == [last]
        assert f"{number.name} at step {steps[-1] + 1}; {folder / last} is whole" in runs.text()
        assert Run.load(folder).state == "failed"
        assert not (folder / "adapter_model.safetensors").exists()
        runs.to_the_end(number.name, "--resume_from_checkpoint", "true")
        assert Run.load(folder).state == "finished"
        found = runs.adapter(number.name)
        assert found.keys() == whole.keys()
        for name, tensor in whole.items():
            assert torch.equal(found[name], tensor), (number.name, name)


@pytest.mark.slow
def test_a_second_signal_ends_a_run_at_once_without_waiting_for_its_step(runs):
    process = runs.start("twice")
    try:
        runs.signalled(process, signal.SIGTERM)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(20) in (130, -signal.SIGINT), runs.text()[-2000:]  # nobody said "go"
    finally:
        process.kill()
        process.wait()
    assert checkpoints(runs.place / "twice") == []
    assert Run.load(runs.place / "twice").state == "failed"
