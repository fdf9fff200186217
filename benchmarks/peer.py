"""The other side of the benchmark: TRL 1.12's PPOTrainer, in its own environment.

    .venv/peer/bin/python benchmarks/peer.py CASE_FOLDER RESULT.json

The setup equals its own script with `--use_peft`. The policy is the base with a LoRA adapter. The
reference is the same base with the adapter switched off (its cheapest option). The reward model and
the critic are whole models, and all weights of the critic are trained.

Reads   the case's folder. Writes the numbers of `Meter.write`: one side of benchmark.json.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from meter import Meter
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    TrainerCallback,
    set_seed,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer


class Clock(TrainerCallback):
    """Ends a rollout after each step, because a step of this trainer is a whole rollout."""

    def __init__(self, meter):
        self.meter = meter

    def on_step_end(self, args, state, control, **_):
        self.meter.end_rollout()


def measure(trainer, meter, eos):
    """Mark where sampling, scoring and updating start. Returns: the list of completion lengths."""
    lengths = []
    generate, forward = ppo_trainer.batch_generation, trainer.model.forward

    def timed_generation(model, queries, *args):
        meter.mark("generate")
        output = generate(model, queries, *args)
        meter.mark("score")
        for row in output[0][:, queries.shape[1] :].tolist():
            ended = eos is not None and eos in row
            lengths.append(row.index(eos) + 1 if ended else len(row))
        return output

    def timed_forward(*args, **kwargs):  # policy and value together; only updates call it
        meter.mark("update")
        return forward(*args, **kwargs)

    ppo_trainer.batch_generation = timed_generation
    trainer.model.forward = timed_forward
    return lengths


def main(folder, result):
    """Train on the case in `folder`; write the meter's numbers to `result`."""
    case = json.loads((folder / "case.json").read_text())
    prompts = json.loads((folder / "prompts.json").read_text())["prompts"]
    data = Dataset.from_dict({"input_ids": [p["ids"] for p in prompts]})
    tokenizer = AutoTokenizer.from_pretrained(folder / "base", padding_side="left")
    meter = Meter()
    set_seed(1)
    options = {"dtype": getattr(torch, case["dtype"])}
    if case["cuda"]:
        options["device_map"] = {"": 0}
    small = dict(options)
    if case["bits"] == 4:
        small["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
    reward_folder = folder / "reward" if (folder / "reward").is_dir() else folder / "base"
    policy = AutoModelForCausalLM.from_pretrained(folder / "base", **small)
    scalar = AutoModelForSequenceClassification.from_pretrained
    reward = scalar(reward_folder, num_labels=1, **small)
    value = scalar(reward_folder, num_labels=1, **options)
    forced = case["forced"]
    if forced:
        policy.generation_config.eos_token_id = None
    with tempfile.TemporaryDirectory() as output:
        trainer = PPOTrainer(
            PPOConfig(
                output_dir=output,
                use_cpu=not case["cuda"],
                bf16=case["dtype"] == "bfloat16",
                gradient_checkpointing=False,
                report_to=[],
                disable_tqdm=True,
                save_strategy="no",
                num_sample_generations=0,
                seed=1,
                learning_rate=1e-5,
                total_episodes=case["batch"] * (1 + case["rollouts"]),
                per_device_train_batch_size=case["micro_batch"],
                gradient_accumulation_steps=case["batch"] // case["micro_batch"],
                num_mini_batches=case["minibatches"],
                num_ppo_epochs=case["epochs"],
                local_rollout_forward_batch_size=case["batch"],
                response_length=case["completion"],
                temperature=1.0,
                stop_token=None if forced else "eos",
            ),
            tokenizer,
            policy,
            None,
            reward,
            data,
            value,
            callbacks=[Clock(meter)],
            peft_config=LoraConfig(
                r=case["lora_r"],
                lora_alpha=32,
                target_modules="all-linear",
                task_type="CAUSAL_LM",
            ),
        )
        lengths = measure(trainer, meter, None if forced else tokenizer.eos_token_id)
        trainer.train()
    meter.write(result, episodes=case["batch"], tokens=lengths)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the case's folder, written by benchmark.py")
    parser.add_argument("result", type=Path, help="the JSON output")
    args = parser.parse_args()
    main(args.folder, args.result)
