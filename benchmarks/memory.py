"""Peak memory of two real training steps on SmolLM2 against the prediction of `check`.

    python benchmarks/memory.py --cases sft-bfloat16 dpo-4bit

Each case trains in its own process, with the system's allocator as in any run. Measured is the memory that
training adds: the peak resident size minus the size before the base is loaded.

Writes  docs/results/preflight.json, where other cases are kept: the table of docs/preflight.md.
"""

import json
import os
import platform
import subprocess
import sys
import time
from argparse import SUPPRESS, Namespace
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import parser, read_json, require_known, run_main
from benchmarks.meter import process_megabytes
from benchmarks.real_model import obtain
from toolkit.models.arguments import ModelArguments
from toolkit.models.tokenizer import load_tokenizer
from toolkit.preflight.dry_run import DryTraining, Peak
from toolkit.preflight.online_dry_run import dry_run
from toolkit.recipe import Options, find_recipe
from toolkit.stages import Stage

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
COMPLETIONS = 4  # per prompt of the reward model's rankings
BATCHES = {"sft": 8, "reward": 2, "dpo": 4, "kto": 8, "ppo": 8}
EVALUATED = {"sft": 16, "reward": 8, "dpo": 16, "kto": 16, "ppo": 64}


@dataclass(frozen=True)
class Case:
    """One configuration; the default base has the shape of SmolLM2-135M.

    `length` is tokens per row, prompt and completion together, also in PPO. `precision` is float32,
    bfloat16 or 4bit. `evaluated` is the number of rows that are evaluated together; 0: no evaluation.
    """

    name: str
    recipe: str
    hidden: int = 576
    layers: int = 30
    vocabulary: int = 49152
    batch: int = 16
    length: int = 128
    precision: str = "float32"
    checkpointing: bool = False
    evaluated: int = 0

    def save_base(self, folder: Path, *, weights: bool = True) -> None:
        """Write a random Llama of this shape, with the embedded world's tokenizer."""
        from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, set_seed

        from toolkit.world import resolve_base

        set_seed(0)
        tokenizer = AutoTokenizer.from_pretrained(resolve_base(None))
        heads = self.hidden // 64
        config = LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.hidden * 8 // 3 // 64 * 64,
            num_hidden_layers=self.layers,
            num_attention_heads=heads,
            num_key_value_heads=heads if heads % 3 else heads // 3,
            tie_word_embeddings=True,
            max_position_embeddings=4096,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        (LlamaForCausalLM(config) if weights else config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    def model(self, folder: Path) -> ModelArguments:
        """The options of the base and of a new LoRA on every linear layer."""
        four_bit = self.precision == "4bit"
        return ModelArguments(
            model_name_or_path=str(folder),
            dtype="bfloat16" if four_bit else self.precision,
            use_peft=True,
            lora_r=16,
            lora_target_modules=TARGETS,
            load_in_4bit=four_bit,
            bnb_4bit_quant_type="nf4",
            use_bnb_nested_quant=four_bit,
        )

    def training(self, folder: Path) -> Any:
        """The trainer's config: two optimizer steps, nothing saved."""
        common: dict[str, Any] = {
            "output_dir": str(folder),
            "use_cpu": True,
            "bf16": self.precision != "float32",
            "gradient_checkpointing": self.checkpointing,
            "per_device_train_batch_size": self.batch,
            "per_device_eval_batch_size": self.evaluated or 8,
            "gradient_accumulation_steps": 1,
            "max_steps": 2,
            "eval_strategy": "steps" if self.evaluated else "no",
            "eval_steps": 1,
            "save_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
        }
        if self.recipe == "ppo":
            common |= {"response_length": self.length // 2, "num_ppo_epochs": 2}
        else:
            common["max_length"] = self.length
        return find_recipe(self.recipe).arguments()[0](**common)

    def stage(self, folder: Path) -> Stage:
        """The training run, with new adapters: the runs that it starts from do not exist."""
        from trl import DatasetMixtureConfig, ScriptArguments

        recipe = find_recipe(self.recipe)
        own = recipe.arguments()[1]()
        if recipe.needs_parent:
            own.parent = str(folder / "parent")
        if self.recipe == "ppo":
            own.reward_model, own.eval_prompts = [str(folder / "reward")], self.evaluated or 1
        configs = (self.training(folder / "run"), self.model(folder), DatasetMixtureConfig(), own)
        return Stage(recipe, Options(ScriptArguments(), *configs))

    def row(self) -> dict[str, Any]:
        """A tokenized row of the trainer's dataset; PPO's prompts are half as long."""
        half = self.length // 2
        ids, answer = [5] * self.length, [5] * (self.length - half)
        ranked = [ids[1:] + [6 + i] for i in range(COMPLETIONS)]
        rows: dict[str, dict[str, Any]] = {
            "sft": {"input_ids": ids, "completion_mask": [0] * half + [1] * len(answer)},
            "dpo": {"prompt_ids": ids[:half], "chosen_ids": answer, "rejected_ids": answer},
            "kto": {
                "prompt_ids": ids[:half],
                "completion_ids": answer,
                "KL_completion_ids": answer,
                "label": True,
            },
            "reward": {
                "ids": ranked,
                "better": [0, 1, 2],
                "worse": [1, 2, 3],
                "margins": [0.0] * 3,
            },
            "ppo": {"prompt": "", "prompt_ids": answer},
        }
        return rows[self.recipe]


CASES = (
    *(
        Case(
            f"{recipe}-{precision}{'-checkpointing' if checkpointing else ''}",
            recipe,
            batch=batch,
            precision=precision,
            checkpointing=checkpointing,
        )
        for recipe, batch in BATCHES.items()
        for precision in ("float32", "bfloat16", "4bit")
        for checkpointing in (False, True)
    ),
    *(
        Case(f"{recipe}-evaluation", recipe, batch=2, checkpointing=True, evaluated=rows)
        for recipe, rows in EVALUATED.items()
    ),
    Case("sft-large", "sft", batch=8, length=256, precision="bfloat16"),
    Case("reward-large", "reward", batch=4, length=256, precision="bfloat16"),
)


class RealBase(DryTraining):
    """Loads the base; its adapters are new, as those of a dry run."""

    def load_base(self, *, scalar: bool = False) -> Any:
        """The base with its weights."""
        from toolkit.models.base import load_base

        return load_base(self.model, scalar=scalar)[0]


def train(case: Case, base: Path) -> None:
    """Train two optimizer steps of a case with its recipe's trainer."""
    from datasets import Dataset

    training = RealBase(case.stage(base), load_tokenizer(str(base)))
    trainer = training.recipe.build(training)
    trainer.train_dataset = Dataset.from_list([case.row()] * case.batch)
    trainer.base_fingerprint = {}
    if case.evaluated:
        trainer.eval_dataset = Dataset.from_list([case.row()] * case.evaluated)
        trainer.args.eval_strategy = "steps"
    if case.recipe == "ppo":
        trainer.rollouts.stop = []  # all completions have full length
    trainer.train()


def predict_case(case: Case, base: Path, *, layers: int | None = None) -> list[Peak]:
    """Every phase's predicted peak of a case, from its base's config.json alone."""
    training = DryTraining(case.stage(base), load_tokenizer(str(base)), layers=layers)
    return dry_run(training, case.row()).peaks(case.batch)


def measure_here(case: Case, base: Path) -> float:
    """Megabytes that training a case adds to this process."""
    import torch

    torch.set_num_threads(1)
    before = process_megabytes("VmRSS")
    train(case, base)
    return process_megabytes("VmHWM") - before


def measure(case: Case, base: Path) -> float:
    """`measure_here` in a new process."""
    child = ["--base", str(base), "--child", json.dumps(asdict(case))]
    command = [sys.executable, "-m", "benchmarks.memory", *child]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if process.returncode != 0:
        raise RuntimeError(f"{case.name}: {process.stderr[-2000:]}")
    return float(process.stdout.strip().splitlines()[-1].removeprefix("added_mb "))


def compare(case: Case, base: Path) -> dict[str, Any]:
    """A case's measured and predicted peak in megabytes, and the parts of the prediction."""
    highest = max(predict_case(case, base), key=lambda peak: peak.total)
    predicted, measured = highest.total / 2**20, measure(case, base)
    return {
        "case": asdict(case),
        "measured_mb": round(measured),
        "predicted_mb": round(predicted),
        "off": round(predicted / measured - 1, 3),
        "phase": highest.phase,
        "parts_mb": {name: round(size / 2**20) for name, size in highest.parts.items()},
    }


def main(args: Namespace) -> None:
    """Compare the cases; write the JSON after each."""
    if args.child:
        print(f"added_mb {measure_here(Case(**json.loads(args.child)), args.base)}")
        return
    cases = {case.name: case for case in CASES}
    require_known("case", args.cases, cases)
    base = obtain(args.base)
    kept = read_json(args.out, fix="remove it")["cases"] if args.out.is_file() else []
    rows = {row["case"]["name"]: row for row in kept}
    for name in args.cases:
        row = rows[name] = compare(cases[name], base)
        numbers = f"{row['predicted_mb']:.0f} MB predicted, {row['measured_mb']:.0f} MB measured"
        print(f"{name}: {numbers}, {row['off']:+.1%}", flush=True)
        content = {
            "date": time.strftime("%Y-%m-%d"),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, one used",
            "command": "python benchmarks/memory.py",
            "cases": [rows[name] for name in cases if name in rows],
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--cases", nargs="*", default=[c.name for c in CASES], help="(all)")
    options.add_argument("--out", type=Path, default=Path("docs/results/preflight.json"))
    options.add_argument("--base", type=Path, default=Path("build/smollm2-135m"), help="SmolLM2")
    options.add_argument("--child", help=SUPPRESS)
    run_main(main, options.parse_args())
