"""Ctrl-C and SIGTERM: exit status, a complete checkpoint, and resuming.

The reward function waits in a process's second rollout, after its first step, until a file exists.
The moment of a signal therefore does not depend on the speed of the machine.
"""

import signal
import time
from contextlib import contextmanager

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.recipes.test_kill import SOAK, command
from toolkit.runs.replacing import checkpoints
from toolkit.runs.run import Run

PATIENCE = 120  # seconds, for a busy machine
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
    "logging_steps": 1,
    "save_strategy": "no",
    "eval_strategy": "no",
    "per_device_train_batch_size": 2,
    "save_steps": None,
    "eval_steps": None,
    "eval_prompts": None,
}
# five steps with one rollout or generation each
OWN = {"ppo": {"total_episodes": 20, "num_ppo_epochs": 1, "num_mini_batches": 1}}
OWN["ppo"] |= dict.fromkeys(("ptx_texts", "ptx_coef", "ptx_batch_size"))
OWN["grpo"] = {"max_steps": 5, "num_iterations": 1, "steps_per_generation": 2}
OWN["rloo"] = OWN["grpo"]


def wait_until(condition, process):
    """Wait for a condition while the process runs."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, "the process ended"
        assert time.monotonic() < end, "timeout"
        time.sleep(0.005)


class Runs:
    """Runs with the same settings, in folders of one directory."""

    recipe = "ppo"

    def __init__(self, processes, place, base, sft, reward):
        self.processes, self.place, self.roles = processes, place, (base, sft, reward)
        (place / "rewards.py").write_text(REWARD, encoding="utf-8")

    def command(self, name):
        function = f"{self.place / 'rewards.py'}:brief"
        options = SETTINGS | OWN[self.recipe] | {"reward_funcs": function}
        return command(self.place / name, *self.roles, recipe=self.recipe, **options)

    def finish(self, name, *more):
        """Start or resume a run, without waiting in its reward function."""
        (self.place / "go").touch()
        self.processes.run([*self.command(name), *more], self.place / f"{name}.log")

    @contextmanager
    def waiting(self, name, *more):
        """A running process that waits in its second rollout, after its first step."""
        for file in ("go", "called-1", "called-2"):
            (self.place / file).unlink(missing_ok=True)
        self.log = self.place / f"{name}.log"
        process = self.processes.start([*self.command(name), *more], self.log)
        try:
            wait_until((self.place / "called-2").exists, process)
            yield process
        finally:
            process.kill()
            process.wait()

    def send(self, process, number):
        """Send a signal, and wait until the run prints that it was received."""
        process.send_signal(number)
        wait_until(lambda: "stopping after this step" in self.text(), process)

    def text(self):
        return self.log.read_text(encoding="utf-8", errors="replace")

    def adapter(self, name):
        return load_file(self.place / name / "adapter_model.safetensors")


@pytest.fixture
def runs(processes, tiny_base, sft_run, reward_run, tmp_path):
    return Runs(processes, tmp_path, tiny_base, sft_run, reward_run)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", OWN if SOAK else ["ppo"])
def test_interrupted_run_exits_and_resumes_exactly(recipe, runs):
    """One run is interrupted twice, at its second and at its fourth step."""
    runs.recipe = recipe
    runs.finish("whole")
    folder, resume = runs.place / "stopped", ()
    for number, status, step in ((signal.SIGINT, 130, 2), (signal.SIGTERM, 143, 4)):
        with runs.waiting("stopped", *resume) as process:
            assert [row["step"] for row in Run.load(folder).metrics()] == list(range(1, step))
            runs.send(process, number)
            (runs.place / "go").touch()
            assert process.wait(PATIENCE) == status, runs.text()[-2000:]
        last = folder / f"checkpoint-{step}"  # of the current step
        assert checkpoints(folder)[-1] == last
        assert f"{number.name} at step {step}; {last} is complete" in runs.text()
        stopped = Run.load(folder)
        assert stopped.state == "failed"
        assert f"Interrupted: {number.name} at step {step}; {last} is complete" in stopped.error
        assert not (folder / "adapter_model.safetensors").exists()
        resume = ("--resume_from_checkpoint", "true")
    runs.finish("stopped", *resume)
    assert Run.load(folder).state == "finished"
    whole, stopped = runs.adapter("whole"), runs.adapter("stopped")
    assert stopped.keys() == whole.keys()
    for name, tensor in whole.items():
        assert torch.equal(stopped[name], tensor), name


@pytest.mark.slow
def test_second_signal_ends_run_at_once(runs):
    with runs.waiting("twice") as process:
        runs.send(process, signal.SIGTERM)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130, runs.text()[-2000:]  # the file `go` is missing
    message = "a second signal, SIGINT, at step 1; there is no checkpoint"
    assert f"Interrupted: {message}" in runs.text()
    assert "Traceback" not in runs.text()
    assert message in Run.load(runs.place / "twice").error
    assert checkpoints(runs.place / "twice") == []
    assert Run.load(runs.place / "twice").state == "failed"


WORKERS = ("--dataloader_num_workers", "2")


@pytest.mark.slow
def test_signal_to_data_workers_keeps_checkpoint(runs):
    """systemd and Slurm send a signal to all processes of a job, and a pipeline forwards it."""
    with runs.waiting("all", *WORKERS) as process:
        workers = psutil.Process(process.pid).children()
        assert len(workers) == 2
        for worker in workers:
            worker.send_signal(signal.SIGTERM)
        runs.send(process, signal.SIGTERM)
        process.send_signal(signal.SIGTERM)
        (runs.place / "go").touch()
        assert process.wait(PATIENCE) == 143, runs.text()[-2000:]
    assert [c.name for c in checkpoints(runs.place / "all")] == ["checkpoint-2"]
    assert runs.text().count("stopping after this step") == 1
    assert not psutil.wait_procs(workers, timeout=20)[1]


@pytest.mark.slow
def test_data_workers_of_killed_run_end(runs):
    with runs.waiting("killed", *WORKERS) as process:
        workers = psutil.Process(process.pid).children()
        process.kill()
        assert not psutil.wait_procs(workers, timeout=20)[1]
