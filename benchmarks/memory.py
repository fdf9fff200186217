"""Peak memory of two real training steps against the prediction of `check`.

    python benchmarks/memory.py --cases sft-small dpo-small

Each case trains in its own process. Measured is the memory that training adds: the peak resident size
minus the size before the base is loaded. A toy of the same kind trains first, so that libraries, thread
pools and caches do not count. glibc returns freed memory at once.

Writes  docs/results/preflight.json, where other cases are kept: the table of docs/preflight.md.
"""

import gc
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from argparse import SUPPRESS, Namespace
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.common import parser, read_json, require_known, run_main
from benchmarks.meter import process_megabytes, reset_peak
from toolkit.models.arguments import ModelArguments
from toolkit.ppo.config import PPOConfig
from toolkit.preflight.dry_run import Peak, Rehearsal
from toolkit.preflight.ppo_dry_run import PPORehearsal

ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_TOP_PAD_": "0",
}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
COMPLETIONS = 4  # per prompt of the reward model's rankings


@dataclass(frozen=True)
class Case:
    """One configuration. `length` is tokens per row, prompt and completion together, also in PPO.

    `generation` is the number of rows that PPO samples together; 0 is `batch`.
    """

    name: str
    recipe: str
    hidden: int = 256
    layers: int = 4
    vocabulary: int = 4096
    batch: int = 16
    length: int = 256
    checkpointing: bool = False
    four_bit: bool = False
    accumulate: int = 1
    bf16: bool = False
    generation: int = 0

    def save_base(self, folder: Path) -> None:
        """Write a random Llama of this shape, with the embedded world's tokenizer."""
        from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, set_seed

        from toolkit.world import resolve_base

        set_seed(0)
        tokenizer = AutoTokenizer.from_pretrained(resolve_base(None))
        config = LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.hidden * 8 // 3 // 64 * 64,
            num_hidden_layers=self.layers,
            num_attention_heads=self.hidden // 64,
            max_position_embeddings=4096,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        LlamaForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    def model(self, folder: Path) -> ModelArguments:
        """The options of the base and of a new LoRA on every linear layer."""
        return ModelArguments(
            model_name_or_path=str(folder),
            dtype="bfloat16" if self.four_bit or self.bf16 else "float32",
            use_peft=True,
            lora_r=16,
            lora_target_modules=TARGETS,
            load_in_4bit=self.four_bit,
            bnb_4bit_quant_type="nf4",
            use_bnb_nested_quant=self.four_bit,
        )

    def training(self, folder: Path) -> Any:
        """The trainer's config: two optimizer steps, nothing saved."""
        from trl import DPOConfig, RewardConfig, SFTConfig

        kinds = {"sft": SFTConfig, "dpo": DPOConfig, "reward": RewardConfig, "ppo": PPOConfig}
        common: dict[str, Any] = {
            "output_dir": str(folder),
            "use_cpu": True,
            "bf16": self.bf16,
            "gradient_checkpointing": self.checkpointing,
            "per_device_train_batch_size": self.batch,
            "gradient_accumulation_steps": self.accumulate,
            "max_steps": 2,
            "save_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
        }
        if self.recipe == "ppo":
            common |= {
                "response_length": self.length // 2,
                "num_ppo_epochs": 1,
                "local_rollout_forward_batch_size": self.batch,
                "generation_batch_size": self.generation or self.batch,
            }
        else:
            common["max_length"] = self.length
        return kinds[self.recipe](**common)

    def row(self) -> dict[str, Any]:
        """A tokenized row of the trainer's dataset (PPO has prompts instead)."""
        half = self.length // 2
        ids = [5] * self.length
        if self.recipe == "sft":
            return {"input_ids": ids, "completion_mask": [0] * half + [1] * (self.length - half)}
        if self.recipe == "dpo":
            answer = ids[half:]
            return {"prompt_ids": ids[:half], "chosen_ids": answer, "rejected_ids": answer}
        ranked = [[5] * (self.length - 1) + [6 + i] for i in range(COMPLETIONS)]
        return {"ids": ranked, "better": [0, 1, 2], "worse": [1, 2, 3], "margins": [0.0] * 3}


CASES = (
    Case("sft-small", "sft"),
    Case("sft-small-checkpointing", "sft", batch=32, checkpointing=True, accumulate=2),
    Case("sft-large", "sft", 768, 12, 32000, batch=2, length=128),
    Case("sft-large-4bit", "sft", 768, 12, 32000, batch=4, length=128, four_bit=True),
    Case("dpo-small", "dpo", batch=8),
    Case("dpo-large-checkpointing", "dpo", 768, 12, 32000, batch=2, length=192, checkpointing=True),
    Case("reward-small", "reward", batch=4),
    Case("reward-large", "reward", 768, 12, 32000, batch=1, length=96),
    Case("ppo-small", "ppo", batch=32, length=128),
    Case("ppo-large", "ppo", 768, 12, 32000, batch=4, length=96),
    Case("ppo-sampling", "ppo", batch=1, length=384, accumulate=64, generation=64),
)


def train(case: Case, base: Path) -> None:
    """Train two optimizer steps of a case with its recipe's trainer."""
    from datasets import Dataset

    from toolkit.models.base import fingerprint, load_base
    from toolkit.models.peft_methods import build_peft_config
    from toolkit.models.roles import POLICY, Roles
    from toolkit.ppo.trainer import PPOTrainer
    from toolkit.preflight.dry_run import with_score_head
    from toolkit.preflight.ppo_dry_run import attach_shapes
    from toolkit.reward.ranking import RankingCollator, RankingTrainer
    from toolkit.trainers.supervised import DPOTrainer, SFTTrainer

    model, training = case.model(base), case.training(base / "run")
    loaded, tokenizer = load_base(model, scalar=case.recipe == "reward")
    config = build_peft_config(model, loaded)
    options: dict[str, Any] = {"args": training, "processing_class": tokenizer}
    if case.recipe == "ppo":
        roles = Roles(loaded, fingerprint(model, tokenizer))
        attach_shapes(roles, config, [config], reference=False, value="adapter")
        tokens = case.length - case.length // 2
        prompts = Dataset.from_list(
            [{"prompt": prompt_of(tokenizer, tokens)}] * case.batch * case.accumulate
        )
        trainer: Any = PPOTrainer(roles, train_dataset=prompts, **options)
    else:
        row = case.row()
        if case.recipe == "dpo":  # TRL's trainer takes no tokenized rows
            half = case.length // 2
            answer = " a" * (case.length - half - 1)  # EOS is added
            row = {"prompt": prompt_of(tokenizer, half), "chosen": answer, "rejected": answer}
        options["train_dataset"] = Dataset.from_list([row] * case.batch * case.accumulate)
        if case.recipe == "sft":
            trainer = SFTTrainer(loaded, peft_config=config, **options)
        elif case.recipe == "dpo":
            roles = Roles(loaded, fingerprint(model, tokenizer))
            assert config is not None
            roles.create(POLICY, config)
            assert roles.model is not None
            trainer = DPOTrainer(roles.model, **options)
        else:
            collator = RankingCollator(int(tokenizer.pad_token_id))
            adapted = with_score_head(loaded, config)
            trainer = RankingTrainer(adapted, data_collator=collator, **options)
    trainer.base_fingerprint = {}
    trainer.train()


def prompt_of(tokenizer: Any, tokens: int) -> str:
    """A text of exactly `tokens` tokens."""
    text = ""
    while len(tokenizer(text + " a")["input_ids"]) <= tokens:
        text += " a"
    assert len(tokenizer(text)["input_ids"]) == tokens
    return text


def predict_case(case: Case, base: Path, *, layers: int | None = None) -> list[Peak]:
    """Every phase's predicted peak of a case, from its base's config.json alone."""
    from datasets import Dataset

    from toolkit.models.tokenizer import load_tokenizer

    training, model = case.training(base / "run"), case.model(base)
    if case.recipe == "ppo":
        ppo = PPORehearsal(training, model, parent=None, reward_model=[], layers=layers)
        return ppo.peaks(case.length - case.length // 2, case.batch)
    rows = Dataset.from_list([case.row()] * case.batch)
    dry = Rehearsal(
        case.recipe,
        training,
        model,
        rows,
        load_tokenizer(str(base)),
        parent=None,
        layers=layers,
    )
    return [dry.step(dry.trainer.train_dataset[0], case.batch)]


def measure_here(case: Case) -> float:
    """Megabytes that training a case adds to this process."""
    import torch

    from toolkit.models.runtime import release_memory

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        toy, base = Path(folder) / "toy", Path(folder) / "base"
        small = replace(case, hidden=64, layers=1, vocabulary=2048, batch=2, length=32)
        small.save_base(toy)
        case.save_base(base)
        train(small, toy)
        gc.collect()
        release_memory()
        reset_peak()
        before = process_megabytes("VmRSS")
        train(case, base)
        return process_megabytes("VmHWM") - before


def measure(case: Case) -> float:
    """`measure_here` in a new process."""
    child = ["--child", json.dumps(asdict(case))]
    command = [sys.executable, "-m", "benchmarks.memory", *child]
    environment = os.environ | ALLOCATOR | {"HF_HUB_OFFLINE": "1"}
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if process.returncode != 0:
        raise RuntimeError(f"{case.name}: {process.stderr[-2000:]}")
    return float(process.stdout.strip().splitlines()[-1].removeprefix("added_mb "))


def compare(case: Case) -> dict[str, Any]:
    """A case's measured and predicted peak in megabytes, and the parts of the prediction."""
    with tempfile.TemporaryDirectory() as folder:
        case.save_base(Path(folder))
        highest = max(predict_case(case, Path(folder)), key=lambda peak: peak.total)
    predicted, measured = highest.total / 2**20, measure(case)
    return {
        "case": asdict(case),
        "measured_mb": round(measured, 1),
        "predicted_mb": round(predicted, 1),
        "off": round(predicted / measured - 1, 3),
        "phase": highest.phase,
        "parts_mb": {name: round(size / 2**20, 1) for name, size in highest.parts.items()},
    }


def main(args: Namespace) -> None:
    """Compare the cases; write the JSON after each."""
    if args.child:
        print(f"added_mb {measure_here(Case(**json.loads(args.child)))}")
        return
    cases = {case.name: case for case in CASES}
    require_known("case", args.cases, cases)
    kept = read_json(args.out, fix="remove it")["cases"] if args.out.is_file() else []
    rows = {row["case"]["name"]: row for row in kept}
    for name in args.cases:
        row = rows[name] = compare(cases[name])
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
    options.add_argument("--child", help=SUPPRESS)
    run_main(main, options.parse_args())
