"""The report that every recipe prints when it starts: rows, lengths, disk and warnings."""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from toolkit.preflight.dry_run import undisturbed
from toolkit.preflight.fake_model import base_config
from toolkit.preflight.findings import (
    DISK,
    Findings,
    check_disk,
    check_saving,
    check_tokens,
    stored_parts,
)
from toolkit.preflight.rows import layout_of, percentiles, row_tokens
from toolkit.recipe import Options, Recipe
from toolkit.stages import Stage


def print_report(
    recipe: Recipe,
    options: Options,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    collator: Any = None,
) -> None:
    """Print rows, lengths, disk and warnings of a run. It predicts no memory and raises no error.

    `rows` and `collator` are the trainer's.
    """
    try:
        lines = _report(Stage(recipe, options), tokenizer, rows, collator)
    except Exception as error:  # an unknown kind of model or rows must not stop the run
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        lines = [f"no report ({reason})"]
    for line in lines:
        print(f"preflight: {line}", flush=True)


def _report(
    stage: Stage, tokenizer: PreTrainedTokenizerBase, rows: Dataset, collator: Any
) -> list[str]:
    findings = Findings()
    lengths = row_tokens(rows, stage.max_length)
    check_disk(stage, stored_parts(stage), optimizer_steps(stage.args, rows), findings)
    check_saving(stage.args, findings)
    with undisturbed():
        config = base_config(stage.model, trust_remote_code=stage.args.trust_remote_code)
        check_tokens(tokenizer, rows, lengths, collator, config.get_text_config(), findings)
    disk = [note for note in findings.notes if DISK in note]
    warnings = (f"warning: {line}" for line in (*findings.errors, *findings.warnings))
    return [summary(lengths), *disk, *warnings]


def summary(lengths: Sequence[int]) -> str:
    """The number of rows and their lengths in one line."""
    ranks = percentiles(lengths)
    return (
        f"{len(lengths)} rows, tokens: median {ranks['median']}, 95 % {ranks['95 %']}, "
        f"most {ranks['most']}"
    )


def optimizer_steps(args: Any, rows: Dataset) -> int | None:
    """Optimizer steps of a run; None if its trainer computes them from its rollouts."""
    if args.max_steps > 0:
        return int(args.max_steps)
    if layout_of(rows.column_names) == "prompt":
        return None
    per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps
    return int(-(-len(rows) // per_step) * args.num_train_epochs)
