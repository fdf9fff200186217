"""The settings of several runs side by side: the ones that matter, those that differ, or all."""

from collections.abc import Sequence
from typing import Any

from toolkit.app.catalog import printable
from toolkit.app.history.history import Record, base_of

MAIN, DIFFERENT, ALL = "The main ones", "Those that differ", "All"
LONGEST = 200  # characters of a value
# In the order in which they are shown; a run has those of its recipe.
IMPORTANT = (
    "dataset_name",
    "model_name_or_path",
    "seed",
    "learning_rate",
    "lr_scheduler_type",
    "num_train_epochs",
    "max_steps",
    "total_episodes",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "rollout_batch_size",
    "num_ppo_epochs",
    "num_mini_batches",
    "beta",
    "kl_coef",
    "ptx_coef",
    "gamma",
    "lam",
    "cliprange",
    "vf_coef",
    "temperature",
    "max_length",
    "max_completion_length",
    "response_length",
    "loss_type",
    "use_peft",
    "peft_method",
    "lora_r",
    "lora_alpha",
    "lora_dropout",
    "load_in_4bit",
    "dtype",
    "ensemble",
)


def settings_table(records: Sequence[Record], which: str) -> tuple[list[str], list[list[str]]]:
    """Headers and rows: a setting and its value in each run.

    Args:
        records: runs; those without a readable manifest have no values.
        which: `MAIN`, `DIFFERENT` or `ALL`; settings that no run has a value for are left out.
    """
    configs = [_settings(record) for record in records]
    keys = dict.fromkeys(key for config in configs for key in config)
    if which == MAIN:
        shown = ["base", *(key for key in IMPORTANT if key in keys)]
    else:
        shown = ["base", *sorted(keys.keys() - {"base"})]
    rows = [[key, *(config.get(key, "") for config in configs)] for key in shown]
    rows = [row for row in rows if any(row[1:])]
    if which == DIFFERENT:
        rows = [row for row in rows if len(set(row[1:])) > 1]
    return ["setting", *(record.name for record in records)], rows


def _settings(record: Record) -> dict[str, str]:
    """A run's config as text; what is not set is left out."""
    run = record.run
    if run is None:
        return {}
    config = run.config if isinstance(run.config, dict) else {}
    found = {printable(k): _shown(v) for k, v in config.items() if v not in (None, [], {}, "")}
    return {"base": base_of(run)} | found


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return printable(", ".join(map(str, value)), longest=LONGEST)
    return printable(value, longest=LONGEST)
