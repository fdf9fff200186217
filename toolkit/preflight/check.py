"""`toolkit check`: rows, lengths, samples, adapters, memory and disk of a run, without training it."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from toolkit.errors import ConfigError, ToolkitError
from toolkit.options.arguments import LabelArguments, SampleArguments
from toolkit.preflight.dry_run import DryTraining, Peak, undisturbed
from toolkit.preflight.fake_model import base_config
from toolkit.preflight.findings import (
    Findings,
    check_adapters,
    check_disk,
    check_saving,
    check_tokens,
    size,
    stored_parts,
)
from toolkit.preflight.fit import Memory, device_memory, predict
from toolkit.preflight.report import optimizer_steps, summary
from toolkit.preflight.requirements import check_requirements
from toolkit.preflight.rows import (
    decoded_sample,
    full_row,
    histogram,
    layout_of,
    longest_row,
    percentiles,
    row_tokens,
)
from toolkit.stages import Stage, is_planned, written_by
from toolkit.training import Training

SAMPLES = 2
NO_LIMIT_LENGTH = 512  # tokens of a row that an earlier stage writes, if no option limits them
SHOWN_PARTS = 4  # parts of a peak that one line shows
PARTS = {"kv_cache": "KV cache", "merged_weights": "merged weights"}
PHASES = {"update": "updating", "evaluation": "evaluating", "reading": "reading prompts"}
# options that lower the memory of a batch of one
SMALLER = ["max_length", "local_rollout_forward_batch_size", "generation_batch_size"]
SMALLER += ["response_length"]


def check_stage(stage: Stage, *, gpu_memory_gb: float | None = None) -> Findings:
    """Check a run and print all findings; nothing is trained, written, or loaded on a GPU.

    Returns: the findings; if they contain `errors`, the run would fail.
    Raises: ToolkitError for data, a model or options that cannot be read.
    """
    findings = Findings()
    options, _ = check_requirements(
        stage.recipe, stage.options, planned=stage.planned if stage.name else None
    )
    stage = replace(stage, options=options)
    tokenizer = load_stage_tokenizer(stage)
    check_adapters(stage, tokenizer, findings)
    dataset = stage.script.dataset_name
    if is_planned(dataset, stage.planned):
        findings.notes.append(
            f"{dataset}: an earlier stage will write it, so its rows are not checked"
        )
        rows = full_rows(stage, tokenizer)
        lengths = row_tokens(rows, stage.max_length)
    else:
        rows, collator = _trainer_rows(stage, tokenizer)
        lengths = row_tokens(rows, stage.max_length)
        _print_rows(rows, lengths, tokenizer, collator)
        config = base_config(stage.model, trust_remote_code=stage.args.trust_remote_code)
        check_tokens(tokenizer, rows, lengths, collator, config.get_text_config(), findings)
    memory = device_memory(gpu_memory_gb, use_cpu=stage.args.use_cpu)
    parts = _check_memory(stage, tokenizer, longest_row(rows, lengths), memory, findings)
    check_disk(stage, parts or stored_parts(stage), optimizer_steps(stage.args, rows), findings)
    check_saving(stage.args, findings)
    return findings


def load_stage_tokenizer(stage: Stage) -> PreTrainedTokenizerBase:
    """The run's tokenizer, with the chat template that its parent has or will have."""
    parent, model = stage.starting_adapter()
    training = Training(stage.recipe, stage.options)
    training.parent, training.rewards, training.model = parent, [], copy.copy(stage.model)
    training.model.chat_template = stage.model.chat_template or model.chat_template
    return training.tokenizer


def _trainer_rows(stage: Stage, tokenizer: PreTrainedTokenizerBase) -> tuple[Dataset, Any]:
    """The rows as the recipe's own trainer prepares them, and its collator."""
    training = Training(stage.recipe, stage.options)
    training.tokenizer = tokenizer
    with undisturbed():
        table = training.splits["train"]
        trainer = DryTraining(stage, tokenizer, table, layers=1).build()
    rows: Dataset = trainer.train_dataset
    if len(rows) == 0:
        raise ConfigError("no row is left to train on: all were dropped or exceed `max_length`")
    if layout_of(rows.column_names) not in ("ranking", "prompt") and len(rows) != len(table):
        is_packed = getattr(stage.args, "packing", False)
        reason = "packed together" if is_packed else "rows without a loss are left out"
        print(f"{len(table)} rows become {len(rows)}: {reason}")
    return rows, trainer.data_collator


def full_rows(stage: Stage, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """One row of the greatest possible length, for a dataset that does not exist yet."""
    length = stage.max_length or getattr(stage.args, "max_prompt_length", None) or NO_LIMIT_LENGTH
    trainer = DryTraining(stage, tokenizer, layers=1).build()
    toy_row = dict(trainer.train_dataset[0])
    labels = stage.planned.get(written_by(stage.script.dataset_name))
    answers = 2
    if isinstance(labels, LabelArguments) and not getattr(stage.own, "shuffle_pairs", False):
        answers = labels.completions + labels.base_completions + labels.written_vices
    if isinstance(labels, SampleArguments) and labels.write_pairs == "all":
        answers = labels.num_generations
    token = int(tokenizer.eos_token_id)
    return Dataset.from_list([full_row(toy_row, token, length, answers=answers)])


def _print_rows(
    rows: Dataset, lengths: Sequence[int], tokenizer: PreTrainedTokenizerBase, collator: Any
) -> None:
    ranks = ", ".join(f"{name} {n}" for name, n in percentiles(lengths).items())
    print(f"{summary(lengths)}\ntokens: {ranks}")
    print("".join(f"  {line}\n" for line in histogram(lengths)), end="")
    print("samples, as the trainer reads them; tokens with a loss stand between ⟦ and ⟧:")
    for number in range(min(SAMPLES, len(rows))):
        for name, text in decoded_sample(dict(rows[number]), tokenizer, collator):
            print(f"--- {number + 1}, {name}\n{text}")
    print("---")


def _check_memory(
    stage: Stage,
    tokenizer: PreTrainedTokenizerBase,
    row: dict[str, Any],
    memory: Memory,
    findings: Findings,
) -> dict[str, int] | None:
    """Predict the memory and print it.

    Returns: the parts of the highest peak, None if memory cannot be predicted.
    """
    try:
        try:
            peaks, largest = predict(stage, tokenizer, row, memory)
        except ToolkitError as error:  # for a large base each batch takes long
            peaks, largest = predict(stage, tokenizer, row, memory, always_largest=False)
            findings.notes.append(f"the largest batch that fits cannot be determined ({error})")
    except ToolkitError as error:  # a model of an unknown kind
        findings.warnings.append(f"memory cannot be predicted ({error})")
        return None
    peak = max(peaks, key=lambda phase: phase.total)
    print(peak_line(peak, memory))
    print("".join(f"  {line}\n" for line in parts_table(peaks)), end="")
    if largest or peak.total > memory.total:
        print(f"largest `per_device_train_batch_size` that fits: {largest or 'none'}")
    if peak.total > memory.total:
        findings.errors.append(too_large(stage.args, peak, memory, largest))
    return peak.parts


def peak_line(peak: Peak, memory: Memory) -> str:
    """One line with the peak, its largest parts, and the device's memory."""
    parts = sorted(peak.parts.items(), key=lambda part: -part[1])
    names = ", ".join(
        f"{PARTS.get(n, n)} {size(count)}" for n, count in parts[:SHOWN_PARTS] if count
    )
    device = f"{size(memory.total)} ({memory.name})"
    phase = PHASES.get(peak.phase, peak.phase)
    return f"predicted peak {size(peak.total)} of {device}, while {phase}: {names}"


def parts_table(peaks: Sequence[Peak]) -> list[str]:
    """A table as lines: a row for each part, a column for each phase."""
    rows = [("", [peak.phase for peak in peaks])]
    for part in dict.fromkeys(name for peak in peaks for name in peak.parts):
        rows.append((PARTS.get(part, part), [size(peak.parts.get(part, 0)) for peak in peaks]))
    rows.append(("total", [size(peak.total) for peak in peaks]))
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}" + "".join(f"{cell:>12}" for cell in cells) for name, cells in rows]


def too_large(args: Any, peak: Peak, memory: Memory, largest: int) -> str:
    """The error and fix for a run that does not fit; `largest` is the largest batch that fits, or 0."""
    line = f"{size(peak.total)} do not fit into {size(memory.total)}"
    if largest:
        return f"{line}; the largest `per_device_train_batch_size` that fits is {largest}"
    options = " or ".join(f"`{name}`" for name in SMALLER if hasattr(args, name))
    return (
        f"{line}, even with a batch of 1: set `gradient_checkpointing`, load the base in 4 bit, or "
        f"lower {options}"
    )
