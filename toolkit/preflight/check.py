"""The long form: everything that can be known of a run before it starts, from its config and data."""

from dataclasses import replace
from functools import partial

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from toolkit.data.auxiliary import load_demonstrations, pretraining_texts
from toolkit.data.checks import check_texts
from toolkit.data.loading import load_splits
from toolkit.data.splits import Splits
from toolkit.errors import ConfigError, ToolkitError
from toolkit.models.tokenizer import load_tokenizer
from toolkit.options.arguments import LabelArguments
from toolkit.ppo.prompts import encode_prompts, encode_texts
from toolkit.preflight.dry_run import Rehearsal, require_rows, undisturbed
from toolkit.preflight.fake_model import base_config
from toolkit.preflight.findings import (
    Findings,
    check_adapters,
    check_disk,
    check_tokens,
    stored_parts,
)
from toolkit.preflight.fit import device_memory
from toolkit.preflight.lengths import histogram, percentiles, row_tokens
from toolkit.preflight.ppo_dry_run import PPORehearsal
from toolkit.preflight.report import fit_line, foresee, parts_table, steps_of, summary, too_much
from toolkit.preflight.requirements import check_requirements, is_planned
from toolkit.preflight.samples import shown_sample
from toolkit.preflight.stages import Stage
from toolkit.reward.training import Comparisons
from toolkit.world import resolve_base

SAMPLES = 2


def check_stage(stage: Stage, *, gpu_memory_gb: float | None = None) -> Findings:
    """Print what is known of a run; nothing is trained, written, or put on a GPU.

    Returns: what was found; `errors` is not empty where the run would fail.
    Raises: ToolkitError for data, a model or options that cannot be read.
    """
    found = Findings()
    options, _ = check_requirements(
        stage.recipe, stage.options, planned=stage.planned if stage.name else None
    )
    stage = replace(stage, options=options)
    tokenizer = _tokenizer(stage)
    check_adapters(stage, tokenizer, found)
    waiting = _made_later(stage)
    if waiting:
        found.notes.append(f"{waiting}: made by an earlier stage, so its rows are not checked")
        rows, collator = full_rows(stage, tokenizer), None
    else:
        with undisturbed():
            rows, collator = _rows(stage, tokenizer)
    _describe(stage, rows, tokenizer, collator, found, real=not waiting)
    _fit(stage, rows, tokenizer, found, gpu_memory_gb)
    return found


def _tokenizer(stage: Stage) -> PreTrainedTokenizerBase:
    """The run's, with the template that it will find."""
    parent, model = stage.starting_adapter()
    asked = stage.model.chat_template or model.chat_template
    try:
        return load_tokenizer(
            resolve_base(stage.model.model_name_or_path),
            revision=stage.model.model_revision,
            chat_template=asked,
            parent=parent,
            trust_remote_code=stage.args.trust_remote_code,
        )
    except (OSError, ValueError, ImportError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{stage.model.model_name_or_path}: no tokenizer ({reason})") from error


def _made_later(stage: Stage) -> str | None:
    """The dataset, if it is what an earlier stage will write."""
    name = stage.script.dataset_name
    return str(name) if is_planned(name, stage.planned) else None


def _splits(stage: Stage, tokenizer: PreTrainedTokenizerBase) -> Splits:
    splits = load_splits(
        stage.script,
        stage.mixture,
        stage.own,
        kind=stage.recipe.rows,
        seed=stage.args.seed,
        texts=stage.recipe.takes_texts,
        turns=getattr(stage.own, "turns", "last"),
    )
    truncates = not stage.recipe.drops_long_rows
    return check_texts(splits, tokenizer, stage.own, max_length=stage.limit, truncates=truncates)


def _rows(stage: Stage, tokenizer: PreTrainedTokenizerBase) -> tuple[Dataset, object]:
    """The rows as the recipe's own trainer prepares them, and its collator."""
    splits, training = _splits(stage, tokenizer), stage.args
    if stage.recipe.name == "reward":
        data = Comparisons.prepare(
            splits,
            tokenizer,
            load_demonstrations(stage.own.demonstrations, stage.own, seed=training.seed),
            max_length=training.max_length,
            shuffle_pairs=stage.own.shuffle_pairs,
        )
        return data.train, None
    parent, model = stage.starting_adapter()
    if stage.recipe.name == "ppo":
        shapes = PPORehearsal(training, model, parent=parent, reward_model=[], layers=1)
        return encode_prompts(splits["train"], tokenizer, shapes.roles, training), None
    dry = Rehearsal(
        stage.recipe.name, training, model, splits["train"], tokenizer, parent=parent, layers=1
    )
    require_rows(dry.trainer.train_dataset)
    kept, given = len(dry.trainer.train_dataset), len(splits["train"])
    if kept != given:
        packed = getattr(training, "packing", False)
        what = "packed together" if packed else "the others carry no loss and are left out"
        print(f"{given} rows become {kept}: {what}")
    return dry.trainer.train_dataset, dry.trainer.data_collator


def full_rows(stage: Stage, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """A row as long as the limit allows, in the place of rows that are not there yet."""
    limit = stage.limit or getattr(stage.args, "max_prompt_length", None) or 512
    ids, half = [int(tokenizer.eos_token_id)] * limit, limit // 2
    row: dict[str, object] = {"input_ids": ids, "completion_mask": [1] * limit}
    if stage.recipe.name == "reward":
        answers = _planned_answers(stage)
        row = {"ids": [ids] * answers, "better": [0], "worse": [answers - 1], "margins": [0.0]}
    elif stage.recipe.name == "dpo":
        row = {"prompt_ids": ids[:half], "chosen_ids": ids[half:], "rejected_ids": ids[half:]}
    elif stage.recipe.name == "kto":
        row = {"prompt_ids": ids[:half], "completion_ids": ids[half:], "label": True}
        row["KL_completion_ids"] = ids[half:]
    elif stage.recipe.name == "ppo":
        row = {"prompt_ids": ids}
    return Dataset.from_list([row])


def _planned_answers(stage: Stage) -> int:
    """How many answers of a prompt an earlier stage will rank; two where that is not known."""
    labels = stage.planned.get(str(stage.script.dataset_name))
    if not isinstance(labels, LabelArguments) or stage.own.shuffle_pairs:
        return 2
    return labels.completions + labels.base_completions + labels.written_vices


def _describe(
    stage: Stage,
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    collator: object,
    found: Findings,
    *,
    real: bool,
) -> None:
    if not real:
        return
    lengths = row_tokens(stage.recipe.name, rows, stage.limit)
    ranks = ", ".join(f"{name} {n}" for name, n in percentiles(lengths).items())
    print(f"{summary(lengths)}\ntokens: {ranks}")
    print("".join(f"  {line}\n" for line in histogram(lengths)), end="")
    print("samples, as the trainer reads them; ⟦ ⟧ holds the tokens with a loss:")
    for number in range(min(SAMPLES, len(rows))):
        for name, text in shown_sample(stage.recipe.name, dict(rows[number]), tokenizer, collator):
            print(f"--- {number + 1}, {name}\n{text}")
    print("---")
    config = base_config(stage.model, trust_remote_code=stage.args.trust_remote_code)
    check_tokens(stage, tokenizer, rows, lengths, collator, config.get_text_config(), found)


def _fit(
    stage: Stage,
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    found: Findings,
    gpu_memory_gb: float | None,
) -> None:
    args = stage.args
    lengths = row_tokens(stage.recipe.name, rows, stage.limit)
    memory = device_memory(gpu_memory_gb, use_cpu=args.use_cpu)
    ptx: list[list[int]] = []
    if stage.recipe.name == "ppo" and args.ptx_coef:
        ptx = encode_texts(pretraining_texts(stage.own.ptx_texts, tokenizer), tokenizer, args)
    see = partial(foresee, stage, tokenizer, rows, lengths, memory, ptx=ptx)
    try:
        with undisturbed():
            try:
                peaks, largest = see()
            except ToolkitError as error:  # a large base whose every batch takes long to try
                peaks, largest = see(always_largest=False)
                found.notes.append(f"the largest batch that fits was not looked for ({error})")
    except ToolkitError as error:  # an exotic model: the rest of the check stands
        found.warnings.append(f"memory is not predicted ({error})")
        check_disk(stage, stored_parts(stage), steps_of(stage, len(rows)), found)
        return
    peak = max(peaks, key=lambda each: each.total)
    print(fit_line(peak, memory))
    print("".join(f"  {line}\n" for line in parts_table(peaks)), end="")
    if largest or peak.total > memory.total:
        print(f"largest `per_device_train_batch_size` that fits: {largest or 'none'}")
    if peak.total > memory.total:
        found.errors.append(too_much(largest, stage, peak, memory))
    check_disk(stage, peak.parts, steps_of(stage, len(rows)), found)
