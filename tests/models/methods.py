"""A short run of a recipe on the tiny base with an adapter of some kind."""

from pathlib import Path

from toolkit.cli import run
from toolkit.recipe import find

COMMON = {
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "save_strategy": "no",
    "logging_steps": 1,
    "learning_rate": 1e-2,
    "per_device_train_batch_size": 4,
    "max_rows": 16,
    "max_length": 128,
    "max_steps": 3,
    "disable_tqdm": True,
}
DATA = {
    "sft": {"dataset_name": "world:demonstrations", "use_peft": True},
    "dpo": {"dataset_name": "world:comparisons"},
    "reward": {"dataset_name": "world:comparisons"},
    "kto": {"dataset_name": "world:comparisons"},
    "ppo": {
        "dataset_name": "world:prompts",
        "total_episodes": 8,
        "gradient_accumulation_steps": 1,
        "response_length": 4,
        "max_steps": 2,
        "max_length": None,
    },
}


def call(recipe: str, folder: Path, base: Path, **options) -> int:
    """Run a recipe and return its exit code."""
    words = []
    options = COMMON | DATA[recipe] | {"model_name_or_path": base, "output_dir": folder} | options
    for name, value in options.items():
        if value is not None:
            values = value if isinstance(value, list) else [value]
            words += [
                f"--{name}",
                *(str(v).lower() if isinstance(v, bool) else str(v) for v in values),
            ]
    return run(find(recipe), words)
