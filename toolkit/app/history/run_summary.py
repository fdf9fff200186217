"""Runs as text: state, lineage, results, and the settings of several runs side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

from toolkit.app.history.curves import CHOSEN_AT_FIRST
from toolkit.app.history.history import History, Record, base_name, duration, moment
from toolkit.app.texts import printable

MAX_REASON = 110  # characters in the table; the full reason is below it
MAX_VALUE = 200  # characters of a setting
MAX_SETTINGS = 500  # of one run; a recipe has about 250
MAIN, DIFFERENT, ALL = "The main ones", "Those that differ", "All"
# The main settings, in the order of the table; a run has those of its recipe.
MAIN_SETTINGS = """
dataset_name model_name_or_path seed learning_rate lr_scheduler_type num_train_epochs
max_steps total_episodes per_device_train_batch_size gradient_accumulation_steps
rollout_batch_size num_ppo_epochs num_mini_batches num_generations steps_per_generation
num_iterations beta kl_coef ptx_coef gamma lam
cliprange vf_coef temperature max_length max_completion_length response_length loss_type
use_peft peft_method lora_r lora_alpha lora_dropout load_in_4bit dtype ensemble
""".split()


def short_state(record: Record) -> str:
    """The state and its reason for the table; a long reason is cut."""
    reason = record.detail
    if len(reason) > MAX_REASON:
        reason = f"{reason[: MAX_REASON - 1]}…"
    return f"{record.state}: {reason}" if reason else record.state


def default_runs(records: Mapping[str, Record]) -> list[str]:
    """The ids of the runs that are training, or else of the latest finished runs with a log."""
    logged = [r for r in records.values() if (r.path / "metrics.jsonl").is_file()]
    for state in ("running", "finished"):
        ids = [r.id for r in logged if r.state == state]
        if ids:
            return ids[:CHOSEN_AT_FIRST]
    return [r.id for r in logged][:CHOSEN_AT_FIRST]


def latest_report(records: Mapping[str, Record]) -> str | None:
    """The id of the latest run with a report."""
    return next((k for k, r in records.items() if (r.path / "report.md").is_file()), None)


def run_story(record: Record, history: History) -> str:
    """State, time and ancestors as lines."""
    lines = [f"{record.name}: {record.state}"]
    if record.detail:
        lines.append(record.detail)
    if record.started is not None:
        took = f", took {duration(record.seconds)}" if record.seconds else ""
        lines.append(f"started {moment(record.started)}{took}")
    return "\n".join([*lines, "", history.lineage(record)])


def run_results(record: Record) -> str:
    """The manifest's results and versions as lines."""
    run = record.run
    if run is None:
        return ""
    results = list(run.results.items())[:MAX_SETTINGS]
    lines = [f"{printable(key)}: {_result(value)}" for key, value in results]
    if run.versions:
        known = list(run.versions.items())[:MAX_SETTINGS]
        versions = [f"  {printable(key)}: {_result(value)}" for key, value in known]
        lines += ["versions", *versions]
    return "\n".join(lines) or "nothing was recorded"


def _result(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 300 else f"{text[:299]}…"


def settings_table(records: Sequence[Record], which: str) -> tuple[list[str], list[list[str]]]:
    """A table of settings: headers, and rows of a setting and its value in each run.

    Args:
        records: runs; those without a readable manifest have no values.
        which: `MAIN`, `DIFFERENT` or `ALL`. Settings without a value in any run are left out.
    """
    configs = [_settings(record) for record in records]
    keys = dict.fromkeys(key for config in configs for key in config)
    if which == MAIN:
        shown = ["base", *(key for key in MAIN_SETTINGS if key in keys)]
    else:
        shown = ["base", *sorted(keys.keys() - {"base"})]
    rows = [[key, *(config.get(key, "") for config in configs)] for key in shown]
    rows = [row for row in rows if any(row[1:])]
    if which == DIFFERENT:
        rows = [row for row in rows if len(set(row[1:])) > 1]
    return ["Setting", *(record.name for record in records)], rows


def _settings(record: Record) -> dict[str, str]:
    """A run's config as text, without unset values."""
    run = record.run
    if run is None:
        return {}
    shown = [(k, v) for k, v in run.config.items() if v not in (None, [], {}, "")][:MAX_SETTINGS]
    return {"base": base_name(run)} | {printable(k): _setting(v) for k, v in shown}


def _setting(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    return printable(value, longest=MAX_VALUE)
