"""Ctrl-C and SIGTERM as a user meets them: exit status, a whole checkpoint, and how it goes on.

The reward function of the runs waits in a process's second rollout, after its first step, until a
file is there: what a signal meets does not depend on how fast this machine is.
"""

import signal
import subprocess
import time
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ROOT
from tests.recipes.test_kill import command, run
from toolkit.runs.replacing import checkpoints
from toolkit.runs.run import Run

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
    "total_episodes": 20,  # five steps, each of a rollout of its own
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

    @contextmanager
    def waiting(self, name, *more):
        """A run that waits in its second rollout; its first step is done."""
        for left in ("go", "called-1", "called-2"):
            (self.place / left).unlink(missing_ok=True)
        self.said = self.place / f"{name}.log"
        with self.said.open("wb") as log:
            process = subprocess.Popen(
                [*self.command(name), *more], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT
            )
        try:
            until((self.place / "called-2").exists, process)
            yield process
        finally:
            process.kill()
            process.wait()

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
    """One run that is interrupted twice, at its second step and at its fourth."""
    runs.to_the_end("whole")
    folder, resume = runs.place / "stopped", ()
    for number, status, step in ((signal.SIGINT, 130, 2), (signal.SIGTERM, 143, 4)):
        with runs.waiting("stopped", *resume) as process:
            assert [row["step"] for row in Run.load(folder).metrics()] == list(range(1, step))
            runs.signalled(process, number)
            (runs.place / "go").touch()
            assert process.wait(PATIENCE) == status, runs.text()[-2000:]
        last = folder / f"checkpoint-{step}"  # of the step that was being done
        assert checkpoints(folder)[-1] == last
        assert f"{number.name} at step {step}; {last} is complete" in runs.text()
        stopped = Run.load(folder)
        assert stopped.state == "failed"
        assert f"Interrupted: {number.name} at step {step}; {last} is complete" in stopped.error
        assert not (folder / "adapter_model.safetensors").exists()
        resume = ("--resume_from_checkpoint", "true")
    runs.to_the_end("stopped", *resume)
    assert Run.load(folder).state == "finished"
    whole, found = runs.adapter("whole"), runs.adapter("stopped")
    assert found.keys() == whole.keys()
    for name, tensor in whole.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.slow
def test_a_second_signal_ends_a_run_at_once_without_waiting_for_its_step(runs):
    with runs.waiting("twice") as process:
        runs.signalled(process, signal.SIGTERM)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130, runs.text()[-2000:]  # nobody said "go"
    said = "a second signal, SIGINT, at step 1; there is no checkpoint"
    assert f"Interrupted: {said}" in runs.text()
    assert "Traceback" not in runs.text()
    assert said in Run.load(runs.place / "twice").error
    assert checkpoints(runs.place / "twice") == []
    assert Run.load(runs.place / "twice").state == "failed"
