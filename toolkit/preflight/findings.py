"""Checks for causes of failed or wrong training: special tokens, lengths, adapters, disk."""

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from toolkit.errors import CheckpointError
from toolkit.models.adapters import read_adapter
from toolkit.models.base import check_fingerprint, fingerprint
from toolkit.models.independence import independent_length
from toolkit.models.vocabulary import check_vocabulary
from toolkit.preflight.rows import IGNORED, first_ids, layout_of
from toolkit.runs.run import WEIGHTS_FILE
from toolkit.stages import Stage, is_planned

CHECKED_ROWS = 200  # for special tokens
DISK = "checkpoints need"
SMALL_FILES = 20 << 20  # bytes of a checkpoint's other files: tokenizer, state, random generators


@dataclass
class Findings:
    """The lines of the report; a run with `errors` would fail."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check_adapters(stage: Stage, tokenizer: PreTrainedTokenizerBase, findings: Findings) -> None:
    """Check that the parent and the reward models are complete adapters of this base."""
    base = None
    for run in filter(None, [stage.parent, *stage.rewards]):
        if is_planned(run, stage.planned) or is_planned(str(Path(run).parent), stage.planned):
            findings.notes.append(f"{run}: an earlier stage will write it, so it is not checked")
            continue
        try:
            read_adapter(Path(run))
            base = base or fingerprint(stage.model, tokenizer)
            check_fingerprint(Path(run), base)
        except CheckpointError as error:
            findings.errors.append(str(error))
        else:
            findings.notes.append(f"{run}: an adapter of this base")


def check_tokens(
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    lengths: Sequence[int],
    collator: Any,
    config: Any,
    findings: Findings,
) -> None:
    """Check pad, EOS and BOS, and whether tokens and lengths fit the base.

    `rows` and `collator` are the trainer's; `lengths` are in tokens; `config` is the base's text config.
    """
    pad, eos, layout = tokenizer.pad_token, tokenizer.eos_token, layout_of(rows.column_names)
    same = " (the same token; masks come from lengths, so EOS has a loss)" if pad == eos else ""
    findings.notes.append(f"EOS {eos!r}, pad {pad!r}{same}")
    try:
        check_vocabulary(tokenizer, config.vocab_size, tokenizer.name_or_path)
    except CheckpointError as error:
        findings.errors.append(str(error))
    checked = [rows[i] for i in range(min(len(rows), CHECKED_ROWS))]
    bos = tokenizer.bos_token_id
    if bos is not None and any(first_ids(row)[:2] == [bos, bos] for row in checked):
        findings.warnings.append(
            f"rows begin with two {tokenizer.bos_token}: the chat template writes one and the tokenizer "
            "adds another; remove it from the template"
        )
    limit = independent_length(config)
    if limit is not None and layout != "prompt" and min(lengths) <= limit < max(lengths):
        findings.warnings.append(
            f"rows of more than {limit} tokens change the base's output for the other rows of their "
            f"batch: set `max_length: {limit}`"
        )
    context = getattr(config, "max_position_embeddings", None)
    if context is not None and layout != "prompt":  # PPO's trainer checks the length of prompts
        long = sum(n > context for n in lengths)
        if long:
            findings.errors.append(
                f"{long} of {len(lengths)} rows are longer than the base's context of {context} tokens; "
                f"the longest has {max(lengths)}: set `max_length`"
            )
    if layout == "sequence":
        _check_end(checked, collator, tokenizer, findings)


def _check_end(
    rows: list[dict[str, Any]],
    collator: Any,
    tokenizer: PreTrainedTokenizerBase,
    findings: Findings,
) -> None:
    """Check that EOS has a loss, so that the model learns to stop."""
    ended = trained = 0
    for row in rows:
        labels = collator([row])["labels"]
        trained += int((labels != IGNORED).any())
        ended += int((labels == tokenizer.eos_token_id).any())
    if ended == 0:
        findings.warnings.append(
            f"EOS {tokenizer.eos_token!r} has no loss in the first {len(rows)} rows, so answers "
            "may not stop; raise `max_length`, or put the end of the turn into {% generation %}"
        )
    else:
        findings.notes.append(f"EOS has a loss in {ended} of the first {len(rows)} rows")
    if trained < len(rows):
        findings.warnings.append(
            f"{len(rows) - trained} of the first {len(rows)} rows have no token with a loss"
        )


def stored_parts(stage: Stage) -> dict[str, int] | None:
    """Bytes of a checkpoint if there is no prediction: the size of the adapters that the run starts from.

    Includes Adam's two states. None for a new adapter, whose size is not known.
    """
    # PPO's value has the shape of the first reward model
    names = [stage.parent, *stage.rewards[:1]]
    files = [Path(name) / WEIGHTS_FILE for name in names if name is not None]
    if not files or not all(file.is_file() for file in files):
        return None
    size = sum(file.stat().st_size for file in files)
    return {"adapters": size, "heads": 0, "optimizer": 2 * size}


def check_saving(args: Any, findings: Findings) -> None:
    """Report an option that makes checkpoints unusable for resuming."""
    if (
        args.save_only_model
        and str(getattr(args.save_strategy, "value", args.save_strategy)) != "no"
    ):
        findings.warnings.append(
            "with `save_only_model` the run cannot be resumed, because its checkpoints hold no optimizer; "
            "set it to false if the run may be interrupted"
        )


def check_disk(
    stage: Stage, parts: dict[str, int] | None, steps: int | None, findings: Findings
) -> None:
    """Check that the disk has space for the checkpoints (of all members, for an ensemble).

    Checkpoints of an earlier run in `output_dir` count as free space: they are removed, or kept instead of
    new ones. `parts` holds the bytes of adapters, heads and optimizer. Both are None if unknown.
    """
    args = stage.args
    folder = Path(str(args.output_dir)).absolute()
    old_files = [f for f in folder.glob("**/checkpoint-*/**/*") if f.is_file()]
    old_bytes = sum(file.stat().st_size for file in old_files)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if parts is None:
        findings.notes.append(
            f"{DISK} disk; {size(free)} are free; `toolkit check` predicts how much"
        )
        return
    checkpoint = parts["adapters"] + parts["heads"] + parts["optimizer"] + SMALL_FILES
    kept = 1.0
    strategy = str(getattr(args.save_strategy, "value", args.save_strategy))
    if strategy != "no":
        written = math.ceil(args.num_train_epochs) if strategy == "epoch" else None
        if strategy == "steps" and steps:
            every = args.save_steps if args.save_steps >= 1 else math.ceil(steps * args.save_steps)
            written = max(1, int(steps // every))
        limits = (args.save_total_limit or math.inf, written or math.inf)
        # one more than the limit, since the new checkpoint is written before the oldest is removed
        kept = 10 if min(limits) == math.inf else int(min(limits)) + 1
    needed = (kept * checkpoint + checkpoint) * getattr(stage.own, "ensemble", 1)
    line = f"{DISK} up to {size(needed)} of disk; {size(free)} are free"
    if old_bytes:
        line += f", and checkpoints in `output_dir` use {size(old_bytes)}"
    if needed > free + old_bytes:
        findings.errors.append(f"{line}: lower `save_total_limit`, or free some space")
    else:
        findings.notes.append(line)


def size(count: float) -> str:
    """Bytes as text, such as 240 MB or 5.3 GB (1 GB = 2^30)."""
    if count < 1 << 30:
        return f"{count / 2**20:.0f} MB"
    return f"{count / 2**30:.1f} GB"
