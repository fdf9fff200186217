"""PPO killed with SIGKILL, also while it writes a checkpoint, resumes to what it would have been."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

import pytest
from safetensors.torch import load_file

from tests.conftest import ROOT
from toolkit.runs.run import Run
from toolkit.trainers.callbacks import SAMPLES_FILE

MOMENTS = 10 if os.environ.get("TOOLKIT_SOAK") else 2
STEPS, SAVED, FILES = 16, 3, 14  # files of a checkpoint, about


def command(folder, base, sft, reward, *more, **changes):
    """A run's words; what is changed to None is left out."""
    options = {
        "model_name_or_path": base,
        "parent": sft,
        "output_dir": folder,
        "total_episodes": 32,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_generations": 2,
        "num_mini_batches": 2,
        "num_ppo_epochs": 2,
        "response_length": 12,
        "save_strategy": "steps",
        "save_steps": SAVED,
        "save_total_limit": 2,
        "logging_steps": 2,
        "max_rows": 24,
        "kl_target": 0.5,
        "kl_horizon": 32,
        "ema_decay": 0.8,
        "eval_strategy": "steps",
        "eval_steps": 3,
        "eval_prompts": 4,
        "ptx_texts": "world:corpus",
        "ptx_coef": 0.2,
        "ptx_batch_size": 4,
    }
    words = [sys.executable, "recipes/ppo.py", "--config", "recipes/configs/world/ppo.yaml"]
    for name, value in (options | changes).items():
        if value is None:
            continue
        words += [f"--{name}", str(value)]
    return [*words, "--reward_model", str(reward), str(reward), *more]  # an ensemble of two


def run(words):
    found = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-2000:]


def outcome(folder):
    """Everything that a user takes from a run: adapters, head, its log, and what it sampled."""
    tensors = {}
    for file in ("adapter_model", "last/adapter_model", "value/adapter_model", "value/head"):
        tensors |= {f"{file}:{k}": v for k, v in load_file(folder / f"{file}.safetensors").items()}
    steps = [row for row in Run.load(folder).metrics() if "train_runtime" not in row]
    untimed = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in steps]
    return tensors, untimed, (folder / SAMPLES_FILE).read_text(encoding="utf-8")


@dataclass(frozen=True)
class Moment:
    """When to kill: once so many files of a checkpoint are written, or some seconds after it is."""

    step: int
    files: int | None = None
    delay: float = 0.0

    def has_come(self, folder):
        """Whether the checkpoint is that far; it may have got its name between two looks."""
        name = f"checkpoint-{self.step}"
        if (folder / name).exists():
            return True
        if self.files is None:
            return False
        return sum(f.is_file() for f in (folder / ".incoming" / name).rglob("*")) >= self.files


def watched(words, folder):
    """Run to the end; when each checkpoint got its name, in seconds."""
    process, seen = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL), {}
    while process.poll() is None:
        for checkpoint in folder.glob("checkpoint-*"):
            seen.setdefault(int(checkpoint.name.split("-")[1]), time.monotonic())
        time.sleep(0.001)
    assert process.returncode == 0
    return seen


def kill_at(words, folder, moment):
    """Start a run and kill it; whether it lived until then."""
    process = subprocess.Popen(
        words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    began = time.monotonic()
    while process.poll() is None and time.monotonic() - began < 300:
        if moment.has_come(folder):
            time.sleep(moment.delay)
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.001)
    process.wait()
    return process.returncode == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kill_and_resume_is_the_uninterrupted_run_to_the_bit(
    tiny_base, sft_run, reward_run, tmp_path
):
    """Killed in a rollout, an update, an evaluation or a checkpoint: wherever the clock strikes."""
    whole = tmp_path / "whole"
    named = watched(command(whole, tiny_base, sft_run, reward_run), whole)
    tensors, steps, samples = outcome(whole)
    trained = [row for row in steps if "loss/policy_avg" in row]
    assert [row["step"] for row in trained] == list(range(2, STEPS + 1, 2))
    assert len({row["objective/kl_coef"] for row in trained if "objective/kl_coef" in row}) > 1
    sampled_at = [json.loads(line)["step"] for line in samples.split("\n")[:-1]]
    assert sampled_at == [step for step in (3, 6, 9, 12, 15, STEPS) for _ in range(4)]
    rng = random.Random(os.environ.get("TOOLKIT_SOAK", "0"))
    for number in range(MOMENTS):
        step, folder = SAVED * rng.randrange(1, STEPS // SAVED), tmp_path / f"killed-{number}"
        if number % 2 == 0:
            moment = Moment(step, files=rng.randrange(1, FILES + 1))
        else:  # anywhere in the three steps and the evaluation that follow
            moment = Moment(step, delay=rng.uniform(0, 0.9) * (named[step + SAVED] - named[step]))
        words = command(folder, tiny_base, sft_run, reward_run)
        assert kill_at(words, folder, moment), moment
        assert Run.load(folder).state == "running"
        run([*words, "--resume_from_checkpoint", "true"])
        found, logged, sampled = outcome(folder)
        assert found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert (found[name] == tensor).all(), (moment, name)
        assert json.dumps(logged) == json.dumps(steps), moment
        assert sampled == samples, moment
        print(f"{moment}: the same to the bit")
