"""The data of an evaluation: from its options, or else the rows that the runs held out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from toolkit.data.auxiliary import Text, load_demonstrations, load_split
from toolkit.data.messages import Row
from toolkit.evaluation.held_out import held_out_prompts, held_out_rows
from toolkit.models.arguments import ModelArguments
from toolkit.models.base import base_tokenizer
from toolkit.options.arguments import AnswerArguments, DataArguments, EvaluateArguments
from toolkit.runs.run import MANIFEST, Run
from toolkit.sampling.settings import Sampling

FEW_SHOT = 4  # demonstrations before each prompt of a base without a chat template of its own


@dataclass(frozen=True)
class Inputs:
    """Prompts, their other columns, demonstrations, comparisons, and the labelers' agreement.

    The agreement is the share of pairs of sampled answers for which two labelers prefer the same one.
    """

    prompts: list[Text]
    columns: dict[str, list[Any]]
    demonstrations: list[tuple[Text, Text]]
    comparisons: list[Row]
    labeler_agreement: float | None


def read_inputs(
    args: EvaluateArguments, runs: Sequence[Run], tokenizer: PreTrainedTokenizerBase
) -> Inputs:
    """Read the data of an evaluation.

    Args:
        runs: the evaluated runs; without `prompts`, the first of them that held out prompts decides.

    Raises: DatasetError or ConfigError for data that is missing, was changed or cannot be read.
    """
    options: dict[str, Any] = {"drop_bad_rows": args.drop_bad_rows, "seed": args.seed}
    options["tokenizer"] = tokenizer
    prompts, columns = read_prompts(args, runs, tokenizer)
    demonstrations = load_demonstrations(
        args.demonstrations,
        DataArguments(drop_bad_rows=args.drop_bad_rows),
        seed=args.seed,
        tokenizer=tokenizer,
    )
    dataset, comparisons = args.comparisons, []
    if dataset is not None:
        comparisons = load_split(
            dataset, "test", option="comparisons", kind="preference", **options
        )
    elif args.reward_model is not None and _has_manifest(args.reward_model):
        reward = Run.load(args.reward_model)
        dataset, comparisons = reward.config.get("dataset_name"), held_out_rows(reward, tokenizer)
    agreement = None
    if dataset is not None and _has_manifest(dataset):  # a run of recipes/label.py
        agreement = Run.load(dataset).results.get("test_agreement")
    return Inputs(prompts, columns, demonstrations, comparisons, agreement)


def read_prompts(
    args: AnswerArguments, runs: Sequence[Run], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[Text], dict[str, list[Any]]]:
    """The prompts, each `samples_per_prompt` times, and their other columns; see `read_inputs`."""
    if args.prompts is None:
        rows = held_out_prompts(runs, tokenizer)
    else:
        rows = load_split(
            args.prompts,
            args.prompts_split,
            option="prompts_split",
            drop_bad_rows=args.drop_bad_rows,
            seed=args.seed,
            tokenizer=tokenizer,
        )
    rows = rows[: args.max_prompts] * args.samples_per_prompt
    others = [name for name in (rows[0] if rows else ()) if name != "prompt"]
    columns = {name: [row.get(name) for row in rows] for name in others}
    return [row["prompt"] for row in rows], columns


def samplings(args: EvaluateArguments) -> tuple[Sampling, dict[str, Sampling] | None]:
    """The main sampling, and the others by name; None for the default of `evaluate_all`."""
    main = Sampling(args.max_new_tokens, args.temperature)
    if args.other_temperatures is None:
        return main, None
    return main, {f"{t:g}": replace(main, temperature=t) for t in args.other_temperatures}


def shown_to_base(
    args: EvaluateArguments,
    model: ModelArguments,
    demonstrations: Sequence[tuple[Text, Text]],
    tokenizer: PreTrainedTokenizerBase,
) -> list[tuple[str, str]]:
    """The (question, answer) pairs in the base's prompt.

    By default there are none if the base's own tokenizer has the chat template of the runs.
    """
    count = args.few_shot
    if count is None:
        own = base_tokenizer(model, parent=None, trust_remote_code=args.trust_remote_code)
        has_template = own.chat_template and own.chat_template == tokenizer.chat_template
        count = 0 if has_template else FEW_SHOT
    return [(_last_text(prompt), _last_text(answer)) for prompt, answer in demonstrations[:count]]


def _has_manifest(folder: str) -> bool:
    return (Path(folder) / MANIFEST).is_file()


def _last_text(side: Text) -> str:
    """The text of a prompt or a completion, or of its last message."""
    return side if isinstance(side, str) else str(side[-1]["content"])
