"""The lines that a reader sees: the short form of every recipe, and the long one of `recipes/check.py`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from toolkit.preflight.dry_run import Peak, undisturbed
from toolkit.preflight.fake_model import base_config, recorded_parent
from toolkit.preflight.findings import DISK, Findings, check_disk, check_tokens, size, stored_parts
from toolkit.preflight.fit import Memory, Planner, plan_ppo, plan_trainer
from toolkit.preflight.isolated_process import LIMIT_S, apart
from toolkit.preflight.lengths import neediest_row, percentiles, row_tokens
from toolkit.preflight.stages import Stage
from toolkit.recipe import Options, Recipe

AT_START_S = 60.0  # that a run waits for its prediction
SHOWN = 4  # parts of a peak that the short form names
WORDS = {"kv_cache": "KV cache", "merged_weights": "merged weights"}


def print_report(
    recipe: Recipe,
    options: Options,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    collator: Any = None,
) -> None:
    """Print what a run is about to train on: rows, lengths, warnings, disk. It never stops the run.

    Args:
        recipe: the recipe.
        options: its options.
        tokenizer: the base's.
        rows: the trainer's rows, tokenized.
        collator: the trainer's.
    """
    try:
        lines = _report(Stage(recipe, options), tokenizer, rows, collator)
    except Exception as error:  # whatever an exotic model or row raises, the run goes on
        lines = [f"no report ({_one_line(error)})"]
    for line in lines:
        print(f"preflight: {line}", flush=True)


def _report(
    stage: Stage, tokenizer: PreTrainedTokenizerBase, rows: Dataset, collator: Any
) -> list[str]:
    found = Findings()
    lengths = row_tokens(stage.recipe.name, rows, stage.limit)
    check_disk(stage, stored_parts(stage), steps_of(stage, len(rows)), found)
    with undisturbed():
        text = base_config(stage.model, trust_remote_code=stage.args.trust_remote_code)
        check_tokens(stage, tokenizer, rows, lengths, collator, text.get_text_config(), found)
    disk = [note for note in found.notes if DISK in note]
    warnings = (f"warning: {line}" for line in (*found.errors, *found.warnings))
    return [summary(lengths), *disk, *warnings]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


def summary(lengths: Sequence[int]) -> str:
    """Rows and their tokens in one line."""
    ranks = percentiles(lengths)
    tokens = (
        f"{ranks['median']} tokens in the median, {ranks['95 %']} at 95 %, {ranks['most']} at most"
    )
    return f"{len(lengths)} rows, {tokens}"


def foresee(
    stage: Stage,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    lengths: Sequence[int],
    memory: Memory,
    *,
    ptx: Sequence[Sequence[int]] = (),
    always_largest: bool = True,
    fresh: bool | None = None,
    limit_s: float | None = None,
) -> tuple[list[Peak], int]:
    """Every phase's peak at the run's batch, and the largest batch that fits; in a process apart.

    Args:
        always_largest: look for the latter also where the run's own batch fits; else it is 0 then.
        fresh: see `apart`.
        limit_s: seconds after which it is given up; default five minutes, one without the search.

    Raises: ConfigError where it cannot be predicted.
    """
    needy = Needy.of(stage, rows, lengths, ptx)
    work = partial(_predict, stage.without_devices(), tokenizer, needy, memory, always_largest)
    if limit_s is None:
        limit_s = LIMIT_S if always_largest else AT_START_S
    return apart(work, limit_s=limit_s, fresh=fresh)


@dataclass(frozen=True)
class Needy:
    """Of the rows what decides the peak, small enough to be handed to another process.

    `longest` is in tokens, `row` one of the trainer's, empty for PPO; `ptx` the longest text.
    """

    longest: int
    row: dict[str, Any]
    ptx: int

    @classmethod
    def of(
        cls,
        stage: Stage,
        rows: Dataset,
        lengths: Sequence[int],
        ptx: Sequence[Sequence[int]] = (),
    ) -> "Needy":
        """From the trainer's rows and their lengths."""
        row = {} if stage.recipe.name == "ppo" else neediest_row(stage.recipe.name, rows, lengths)
        return cls(max(lengths), row, max(map(len, ptx), default=0))


def _predict(
    stage: Stage,
    tokenizer: PreTrainedTokenizerBase,
    needy: Needy,
    memory: Memory,
    always_largest: bool,
) -> tuple[list[Peak], int]:
    _ = stage.args.device  # asked first: its other properties need to know
    batch = stage.args.per_device_train_batch_size
    plan = planner(stage, tokenizer, needy, memory)
    peaks = plan.peaks(batch)
    highest = max(peaks, key=lambda peak: peak.total)
    if highest.total <= memory.total and not always_largest:
        return peaks, 0
    return peaks, plan.largest_batch(memory.total, batch, peaks)


def planner(
    stage: Stage, tokenizer: PreTrainedTokenizerBase, needy: Needy, memory: Memory
) -> Planner:
    """Predicts the run's memory from its config and its rows.

    An adapter that an earlier stage of a pipeline will make has the shape that its options say.
    """
    parent, model = stage.starting_adapter()
    if stage.recipe.name == "ppo":
        return plan_ppo(
            stage.args,
            model,
            needy.longest,
            parent=parent,
            reward_model=[recorded_parent(run) or parent for run in stage.rewards],
            reference=stage.parent is not None,
            ptx=needy.ptx,
            cuda=memory.cuda,
        )
    return plan_trainer(
        stage.recipe.name,
        stage.args,
        model,
        tokenizer,
        needy.row,
        parent=parent,
        cuda=memory.cuda,
    )


def fit_line(peak: Peak, memory: Memory) -> str:
    """The peak against the memory, with its largest parts."""
    parts = sorted(peak.parts.items(), key=lambda part: -part[1])
    named = ", ".join(f"{WORDS.get(n, n)} {size(count)}" for n, count in parts[:SHOWN] if count)
    of = f"{size(memory.total)} ({memory.of})"
    return f"predicted peak {size(peak.total)} of {of}, while {_doing(peak.phase)}: {named}"


def too_much(largest: int, stage: Stage, peak: Peak, memory: Memory) -> str:
    """What would fit in the place of what does not; `largest` batch, 0 for none."""
    line = f"{size(peak.total)} will not fit in {size(memory.total)}"
    if largest:
        return f"{line}; the largest `per_device_train_batch_size` that does is {largest}"
    smaller = "`max_length`"
    if stage.recipe.name == "ppo":
        smaller = "`local_rollout_forward_batch_size`, `generation_batch_size` or `response_length`"
    return (
        f"{line}, and neither does a batch of 1: set `gradient_checkpointing`, load the base in 4 bit, "
        f"or lower {smaller}"
    )


def parts_table(peaks: Sequence[Peak]) -> list[str]:
    """Every phase's parts, a line each."""
    names = list(dict.fromkeys(name for peak in peaks for name in peak.parts))
    width = max(len(WORDS.get(n, n)) for n in names)
    heads = "".join(f"{peak.phase:>12}" for peak in peaks)
    lines = [" " * width + heads]
    cell: Callable[[Peak, str], str] = lambda peak, n: f"{size(peak.parts.get(n, 0)):>12}"  # noqa: E731
    lines += [f"{WORDS.get(n, n):<{width}}" + "".join(cell(p, n) for p in peaks) for n in names]
    return [*lines, f"{'together':<{width}}" + "".join(f"{size(p.total):>12}" for p in peaks)]


def steps_of(stage: Stage, rows: int) -> int | None:
    """Optimizer steps of the run, None for PPO, whose trainer counts them."""
    args = stage.args
    if args.max_steps > 0:
        return int(args.max_steps)
    if stage.recipe.name == "ppo":
        return None
    per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps
    return int(-(-rows // per_step) * args.num_train_epochs)


def _doing(phase: str) -> str:
    return {"update": "updating", "reading": "reading prompts"}.get(phase, phase)
