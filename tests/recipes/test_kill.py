"""PPO, RLOO and GRPO killed with SIGKILL, also while a checkpoint is written, resume exactly."""

import json
import os
import random
import signal
import time
from dataclasses import dataclass

import pytest
from safetensors.torch import load_file

from toolkit.runs.run import Run
from toolkit.trainers.callbacks import SAMPLES_FILE

SOAK = os.environ.get("TOOLKIT_SOAK")
MOMENTS = dict.fromkeys(("ppo", "rloo", "grpo"), 10) if SOAK else {"ppo": 2, "grpo": 1}
STEPS, SAVED, FILES = 16, 3, 14  # a checkpoint has about 14 files
ADAPTER = 28  # tensors of an adapter: A and B of seven layers in each of two blocks
# four rollouts or generations of eight answers to four prompts, each used for four steps
PPO = {
    "total_episodes": 32,
    "num_mini_batches": 2,
    "num_ppo_epochs": 2,
    "response_length": 12,
    "kl_target": 0.5,
    "kl_horizon": 32,
    "ema_decay": 0.8,
    "ptx_texts": "world:corpus",
    "ptx_coef": 0.2,
    "ptx_batch_size": 4,
}
GROUPS = {
    "max_steps": STEPS,
    "steps_per_generation": 4,
    "num_iterations": 2,
    "max_completion_length": 12,
}


def command(folder, base, sft, reward, *more, recipe="ppo", **changes):
    """The command line of a run; an option that is changed to None is left out."""
    options = (PPO if recipe == "ppo" else GROUPS) | {
        "model_name_or_path": base,
        "parent": sft,
        "output_dir": folder,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_generations": 2,
        "save_strategy": "steps",
        "save_steps": SAVED,
        "save_total_limit": 2,
        "logging_steps": 2,
        "max_rows": 12,
        "eval_strategy": "steps",
        "eval_steps": 3,
        "eval_prompts": 4,
    }
    words = [f"recipes/{recipe}.py", "--config", f"recipes/configs/world/{recipe}.yaml"]
    for name, value in (options | changes).items():
        if value is None:
            continue
        words += [f"--{name}", str(value)]
    return [*words, "--reward_model", str(reward), str(reward), *more]  # an ensemble of two


def outcome(folder):
    """Adapters and PPO's head, log, and samples of a finished run."""
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")) + sorted(folder.glob("[lv]a*/*.safetensors")):
        tensors |= {f"{file.relative_to(folder)}:{k}": v for k, v in load_file(file).items()}
    steps = [row for row in Run.load(folder).metrics() if "train_runtime" not in row]
    untimed = [
        {k: v for k, v in row.items() if not k.startswith("time/") and k != "step_time"}
        for row in steps
    ]
    return tensors, untimed, (folder / SAMPLES_FILE).read_text(encoding="utf-8")


@dataclass(frozen=True)
class Moment:
    """When to kill: after some files of a checkpoint, or `delay` seconds after the whole checkpoint."""

    step: int
    files: int | None = None
    delay: float = 0.0

    def is_reached(self, folder):
        """Whether the moment is reached; the checkpoint may get its name between two calls."""
        name = f"checkpoint-{self.step}"
        if (folder / name).exists():
            return True
        if self.files is None:
            return False
        return sum(f.is_file() for f in (folder / ".incoming" / name).rglob("*")) >= self.files


def watched(process, folder):
    """Wait for the end; returns the time at which each checkpoint got its name, in seconds."""
    times = {}
    while process.poll() is None:
        for checkpoint in folder.glob("checkpoint-*"):
            times.setdefault(int(checkpoint.name.split("-")[1]), time.monotonic())
        time.sleep(0.001)
    assert process.returncode == 0
    return times


def kill_at(process, folder, moment):
    """Kill a run at the moment; returns whether it was still running."""
    start = time.monotonic()
    while process.poll() is None and time.monotonic() - start < 300:
        if moment.is_reached(folder):
            time.sleep(moment.delay)
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.001)
    return process.wait() == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("recipe", MOMENTS)
def test_killed_run_resumes_bit_exactly(
    recipe, processes, tiny_base, sft_run, reward_run, tmp_path
):
    """The kill comes at a random moment of a rollout, an update, an evaluation or a checkpoint."""
    whole, log = tmp_path / "whole", tmp_path / "log"
    words = command(whole, tiny_base, sft_run, reward_run, recipe=recipe)
    named = watched(processes.start(words, log), whole)
    tensors, steps, samples = outcome(whole)
    trained = [row for row in steps if "loss" in row]
    assert [row["step"] for row in trained] == list(range(2, STEPS + 1, 2))
    if recipe == "ppo":
        assert len({row["objective/kl_coef"] for row in trained if "objective/kl_coef" in row}) > 1
    assert len(tensors) == {"ppo": 3}.get(recipe, 1) * ADAPTER + (2 if recipe == "ppo" else 0)
    sampled_at = [json.loads(line)["step"] for line in samples.split("\n")[:-1]]
    assert sampled_at == [step for step in (0, 3, 6, 9, 12, 15, STEPS) for _ in range(4)]
    rng = random.Random(os.environ.get("TOOLKIT_SOAK", "0"))
    for number in range(MOMENTS[recipe]):
        step, folder = SAVED * rng.randrange(1, STEPS // SAVED), tmp_path / f"killed-{number}"
        if number % 2 == 0:
            moment = Moment(step, files=rng.randrange(1, FILES + 1))
        else:  # in the three steps and the evaluation that follow
            moment = Moment(step, delay=rng.uniform(0, 0.9) * (named[step + SAVED] - named[step]))
        words = command(folder, tiny_base, sft_run, reward_run, recipe=recipe)
        assert kill_at(processes.start(words, log), folder, moment), moment
        assert Run.load(folder).state == "running"
        processes.run([*words, "--resume_from_checkpoint", "true"], log)
        resumed, logged, sampled = outcome(folder)
        assert resumed.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert (resumed[name] == tensor).all(), (moment, name)
        assert json.dumps(logged) == json.dumps(steps), moment
        assert sampled == samples, moment
        print(f"{moment}: the same to the bit")
