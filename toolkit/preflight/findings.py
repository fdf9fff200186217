"""What would make a run fail or learn the wrong thing: special tokens, lengths, adapters, the disk."""

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
from toolkit.preflight.requirements import is_planned
from toolkit.preflight.samples import IGNORED
from toolkit.preflight.stages import Stage
from toolkit.runs.run import WEIGHTS_FILE

LOOKED_AT = 200  # rows read for the sanity of special tokens
DISK = "checkpoints take"
SMALL_FILES = 20 << 20  # of a checkpoint: tokenizer, state, random generators


@dataclass
class Findings:
    """Lines for the reader: errors end the check with another exit code than 0."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check_adapters(stage: Stage, tokenizer: PreTrainedTokenizerBase, found: Findings) -> None:
    """Parent and reward models: there, whole, and of this base."""
    base = None
    for run in filter(None, [stage.parent, *stage.rewards]):
        if is_planned(run, stage.planned) or is_planned(str(Path(run).parent), stage.planned):
            found.notes.append(f"{run}: made by an earlier stage, so not checked")
            continue
        try:
            read_adapter(Path(run))
            base = base or fingerprint(stage.model, tokenizer)
            check_fingerprint(Path(run), base)
        except CheckpointError as error:
            found.errors.append(str(error))
        else:
            found.notes.append(f"{run}: an adapter of this base")


def check_tokens(
    stage: Stage,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    lengths: Sequence[int],
    collator: Any,
    config: Any,
    found: Findings,
) -> None:
    """Pad, EOS, BOS, and whether tokens and lengths fit the base.

    Args:
        stage: the run.
        tokenizer: the base's.
        rows: as the trainer reads them.
        lengths: their tokens, of all of them.
        collator: the trainer's.
        config: the base's text config.
        found: gets the lines.
    """
    pad, eos = tokenizer.pad_token, tokenizer.eos_token
    same = " (the same: masks come from lengths, so EOS stays in the loss)" if pad == eos else ""
    found.notes.append(f"EOS {eos!r}, pad {pad!r}{same}")
    if len(tokenizer) > config.vocab_size:
        found.errors.append(
            f"the tokenizer has {len(tokenizer)} tokens, the base embeds {config.vocab_size}: a text "
            "with one of the others would stop the run; take the base's own tokenizer"
        )
    some = [rows[i] for i in range(min(len(rows), LOOKED_AT))]
    firsts = [_first_ids(stage.recipe.name, row) for row in some]
    bos = tokenizer.bos_token_id
    if bos is not None and any(ids[:2] == [bos, bos] for ids in firsts):
        found.warnings.append(
            f"rows begin with two {tokenizer.bos_token}: the template writes one and the tokenizer adds "
            "another; leave it out of the template"
        )
    room = getattr(config, "max_position_embeddings", None)
    if room is not None and stage.recipe.name != "ppo":
        long = sum(n > room for n in lengths)
        if long:
            found.errors.append(
                f"{long} of {len(lengths)} rows have more tokens than the base's context of {room}, the "
                f"longest {max(lengths)}: set `max_length`"
            )
    if stage.recipe.name == "sft":
        _check_sft_end(some, collator, tokenizer, found)


def _check_sft_end(
    some: list[dict[str, Any]], collator: Any, tokenizer: PreTrainedTokenizerBase, found: Findings
) -> None:
    eos, ended, trained = tokenizer.eos_token_id, 0, 0
    for row in some:
        labels = collator([row])["labels"]
        trained += int((labels != IGNORED).any())
        ended += int((labels == eos).any())
    share = f"{ended} of the first {len(some)} rows"
    if ended == 0:
        found.warnings.append(
            f"no row teaches to end: EOS {tokenizer.eos_token!r} carries a loss in none of the first "
            f"{len(some)} rows; answers may not stop. Is `max_length` too small, or the template's end "
            "of turn outside of the loss?"
        )
    else:
        found.notes.append(f"EOS carries a loss in {share}")
    if trained < len(some):
        found.warnings.append(f"{len(some) - trained} of the first {len(some)} rows carry no loss")


def _first_ids(recipe: str, row: dict[str, Any]) -> list[int]:
    if recipe == "sft":
        return list(row["input_ids"])
    if recipe == "reward":
        answers: list[list[int]] = row["ids"]
        return max(answers, key=len)
    return list(row["prompt_ids"])


def stored_parts(stage: Stage) -> dict[str, int] | None:
    """Bytes of a checkpoint where no memory is predicted, from the runs that the stage starts from.

    Adam's two states are counted. None where a new adapter is trained, whose size nobody knows.
    """
    names = [stage.parent, *(stage.rewards[:1] if stage.recipe.name == "ppo" else [])]
    files = [Path(name) / WEIGHTS_FILE for name in names if name is not None]
    if not files or not all(file.is_file() for file in files):
        return None
    held = sum(file.stat().st_size for file in files)
    return {"adapters": held, "heads": 0, "optimizer": 2 * held}


def check_disk(
    stage: Stage, parts: dict[str, int] | None, steps: int | None, found: Findings
) -> None:
    """Whether the checkpoints find room.

    An ensemble keeps those of every member. What an earlier attempt has left in `output_dir` is
    removed, or counts among what is kept, and so is not needed twice.

    Args:
        stage: the run.
        parts: predicted bytes of adapters, heads and optimizer, None if they are not known.
        steps: of the whole run, if known.
        found: gets the lines.
    """
    args = stage.args
    folder = Path(str(args.output_dir)).absolute()
    there = [f for f in folder.glob("**/checkpoint-*/**/*") if f.is_file()]
    freed = sum(file.stat().st_size for file in there)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if parts is None:
        found.notes.append(f"what {DISK} of disk is not known, {size(free)} are free")
        return
    one = parts["adapters"] + parts["heads"] + parts["optimizer"] + SMALL_FILES
    kept = 1
    strategy = str(getattr(args.save_strategy, "value", args.save_strategy))
    if strategy != "no":
        made = math.ceil(args.num_train_epochs) if strategy == "epoch" else None
        if strategy == "steps" and steps:
            every = args.save_steps if args.save_steps >= 1 else math.ceil(steps * args.save_steps)
            made = max(1, int(steps // every))
        # one more than the limit while the new one is written beside
        kept = min(x for x in (args.save_total_limit or math.inf, made or math.inf) if x)  # type: ignore[assignment]
        kept = 10 if kept == math.inf else int(kept) + 1
    need = (kept * one + one) * getattr(stage.own, "ensemble", 1)
    line = f"{DISK} up to {size(need)} of disk, {size(free)} are free"
    if freed:
        line += f" and {size(freed)} are taken by checkpoints there"
    if need > free + freed:
        found.errors.append(f"{line}: lower `save_total_limit`, or free some")
    else:
        found.notes.append(line)


def size(count: float) -> str:
    """Bytes for reading: 240 MB, 5.3 GB (1 GB = 2^30)."""
    if count < 1 << 30:
        return f"{count / 2**20:.0f} MB"
    return f"{count / 2**30:.1f} GB"
