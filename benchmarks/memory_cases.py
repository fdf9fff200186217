"""Small training runs on random bases, whose predicted memory is held against what they take."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from toolkit.models.arguments import ModelArguments
from toolkit.ppo.config import PPOConfig
from toolkit.preflight.dry_run import Peak, Rehearsal
from toolkit.preflight.ppo_dry_run import PPORehearsal

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
COMPLETIONS = 4  # per prompt of the reward model's rankings


@dataclass(frozen=True)
class Case:
    """One configuration. `length` is tokens per row: of prompt and completion together, in PPO too.

    `generation` is how many rows PPO samples together, 0 for as many as `batch`.
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

    def as_row(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def save_base(self, folder: Path) -> None:
        """A random Llama of this shape, with the embedded world's tokenizer."""
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
        """The base and a new LoRA on every linear layer."""
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
