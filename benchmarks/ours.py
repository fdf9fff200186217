"""Our side of the benchmark: PPO on one base, on a case that benchmark.py prepared.

    python -m benchmarks.ours CASE_FOLDER RESULT.json [--value_role head]

Reads   the case's folder. Writes the numbers of `Meter.write`: one side of benchmark.json.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import TrainerCallback, set_seed
from trl import ModelConfig

from benchmarks.cases import ADAPTER, BASE, Case, read
from benchmarks.common import parser
from benchmarks.meter import Meter
from toolkit.ppo.config import PPOConfig
from toolkit.ppo.experience import Experience
from toolkit.ppo.roles import load_ppo_roles
from toolkit.ppo.trainer import PPOTrainer


class _Clock(TrainerCallback):  # type: ignore[misc]
    """Ends a rollout after its last optimizer step."""

    def __init__(self, meter: Meter, steps: int) -> None:
        self.meter, self.steps = meter, steps

    def on_step_end(self, args, state, control, **_):  # type: ignore[no-untyped-def]
        """Ends the rollout at its last step."""
        if state.global_step % self.steps == 0:
            self.meter.end_rollout()


class Timed(PPOTrainer):
    """Marks where sampling, scoring and updating start."""

    meter: Meter
    lengths: list[int]

    def make_experience(self, rows: list[dict[str, Any]]) -> Experience:
        """The same experience, timed."""
        self.meter.mark("generate")
        experience = super().make_experience(rows)
        generate_seconds = float(self.open_rollout.metrics["time/generate"][-1])
        self.meter.moments["score"] = self.meter.moments["generate"] + generate_seconds
        self.meter.mark("update")
        self.lengths += map(len, experience.completions)
        return experience


def main(folder: Path, result: Path, value_role: str, trainer_class: type[Timed] = Timed) -> None:
    """Train on the case in `folder`; write the meter's numbers to `result`."""
    case, prompts, runs = read(folder)
    data = Dataset.from_list([{"prompt": p["prompt"]} for p in prompts])
    model = ModelConfig(
        model_name_or_path=None if case.world else str(folder / BASE),
        dtype=case.dtype,
        load_in_4bit=case.bits == 4,
        use_peft=True,
        lora_r=case.lora_r,
        lora_target_modules=["all-linear"],
    )
    meter = Meter()
    set_seed(1)
    roles, tokenizer = load_ppo_roles(
        model,
        policy=runs.get("sft"),
        rewards=[runs.get("reward", str(folder / ADAPTER))],
        value=value_role,
    )
    with tempfile.TemporaryDirectory() as output:
        trainer = trainer_class(
            roles,
            _config(case, output, value_role),
            processing_class=tokenizer,
            train_dataset=data,
            callbacks=[_Clock(meter, case.epochs * case.minibatches)],
        )
        trainer.meter, trainer.lengths = meter, []
        if case.forced:
            trainer.rollouts.stop = []
        trainer.train()
    meter.write(result, episodes=case.batch, tokens=trainer.lengths)


def _config(case: Case, output: str, value_role: str) -> PPOConfig:
    return PPOConfig(
        output_dir=output,
        use_cpu=not case.cuda,
        bf16=case.dtype == "bfloat16",
        gradient_checkpointing=False,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        seed=1,
        learning_rate=1e-5,
        total_episodes=case.batch * (1 + case.rollouts),
        per_device_train_batch_size=case.micro_batch,
        gradient_accumulation_steps=case.batch // case.micro_batch // case.minibatches,
        num_mini_batches=case.minibatches,
        num_ppo_epochs=case.epochs,
        local_rollout_forward_batch_size=case.micro_batch,
        generation_batch_size=case.batch,
        response_length=case.completion,
        temperature=1.0,
        value_role=value_role,
        logging_steps=case.epochs * case.minibatches,
    )


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The command line, shared with profile_updates.py."""
    options = parser(description)
    options.add_argument("folder", type=Path, help="the case's folder, written by benchmark.py")
    options.add_argument("--value_role", default="adapter", choices=["adapter", "head"])
    return options


if __name__ == "__main__":
    options = arguments(__doc__)
    options.add_argument("result", type=Path, help="the JSON output")
    args = options.parse_args()
    main(args.folder, args.result, args.value_role)
