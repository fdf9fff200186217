"""One side of the benchmark of SFT, reward and DPO: startup and seconds per optimizer step.

    python -m benchmarks.steps CASE_FOLDER RESULT.json --side ours

The sides are the recipe's command, and the trainer of TRL 1.16 that it wraps, with the same options.

Reads   the case's folder, written by benchmark.py. Writes one side of benchmark.json.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from transformers import TrainerCallback, trainer

from benchmarks.cases import BASE, POLICY, ROWS_FILE, Case, read
from benchmarks.common import parser
from toolkit.errors import ToolkitError

MAX_LENGTH = 128  # as in the preset smollm2-135m/sft


class _Clock(TrainerCallback):  # type: ignore[misc]
    """Reads the clock at the first step's start and at each step's end."""

    started = 0.0

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Only the first call counts."""
        self.started = self.started or time.time()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """The trainer's own work between steps counts to the next step."""
        self.ends.append(time.time())


def main(folder: Path, result: Path, side: str) -> None:
    """Train the case with one side; write the seconds to `result`."""
    case, _, _ = read(folder)
    clock = _Clock()
    trainer.DEFAULT_CALLBACKS.append(clock)  # of every trainer in this process
    with tempfile.TemporaryDirectory() as output:
        words = _options(case, output)
        if side == "ours":
            _ours(case, folder, words)
        else:
            _stock(case, folder, words)
    numbers = {
        "startup_s": clock.started - psutil.Process().create_time(),
        "step_s": (clock.ends[-1] - clock.ends[0]) / (len(clock.ends) - 1),
        "steps": len(clock.ends) - 1,
    }
    result.write_text(json.dumps(numbers), encoding="utf-8")


def _options(case: Case, output: str) -> dict[str, Any]:
    """The trainer's options on both sides."""
    return {
        "output_dir": output,
        "use_cpu": not case.cuda,
        "bf16": case.dtype == "bfloat16",
        "gradient_checkpointing": False,
        "per_device_train_batch_size": case.batch,
        "max_steps": 1 + case.rollouts,
        "max_length": MAX_LENGTH,
        "learning_rate": 1e-5,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "seed": 0,
    }


def _ours(case: Case, folder: Path, options: dict[str, Any]) -> None:
    from toolkit.cli import main as toolkit

    options |= {"dataset_name": folder / ROWS_FILE, "dtype": case.dtype}
    options["model_name_or_path"] = folder / BASE
    if case.recipe == "dpo":
        options["parent"] = folder / POLICY
    else:
        options |= {"use_peft": True, "lora_r": case.lora_r, "lora_target_modules": "all-linear"}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    if toolkit([case.recipe, *words]):
        raise ToolkitError(f"{folder}: `toolkit {case.recipe}` failed; its message is above")


def _stock(case: Case, folder: Path, options: dict[str, Any]) -> None:
    import torch
    import trl
    from datasets import load_dataset
    from peft import LoraConfig, PeftModel
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        set_seed,
    )

    set_seed(0)
    rows = load_dataset("json", data_files=str(folder / ROWS_FILE), split="train")
    tokenizer = AutoTokenizer.from_pretrained(folder / BASE)
    dtype = getattr(torch, case.dtype)
    if case.recipe == "reward":
        model = AutoModelForSequenceClassification.from_pretrained(
            folder / BASE, num_labels=1, dtype=dtype
        )
    else:
        model = AutoModelForCausalLM.from_pretrained(folder / BASE, dtype=dtype)
    adapter = LoraConfig(
        r=case.lora_r,
        target_modules="all-linear",
        task_type="SEQ_CLS" if case.recipe == "reward" else "CAUSAL_LM",
    )
    if case.recipe == "dpo":  # the reference is a copy of this adapter, on both sides
        model = PeftModel.from_pretrained(model, folder / POLICY, is_trainable=True)
        adapter = None
    name = {"sft": "SFT", "reward": "Reward", "dpo": "DPO"}[case.recipe]
    getattr(trl, f"{name}Trainer")(
        model=model,
        args=getattr(trl, f"{name}Config")(**options),
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=adapter,
    ).train()


if __name__ == "__main__":
    options: argparse.ArgumentParser = parser(__doc__)
    options.add_argument("folder", type=Path, help="the case's folder, written by benchmark.py")
    options.add_argument("result", type=Path, help="the JSON output")
    options.add_argument("--side", choices=["ours", "stock"], required=True)
    args = options.parse_args()
    main(args.folder, args.result, args.side)
