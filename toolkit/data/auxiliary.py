"""Data that recipes read besides their training rows: demonstrations, prompts, pretraining text."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.data.checks import check_texts
from toolkit.data.loading import load_splits
from toolkit.data.messages import Message, Row
from toolkit.errors import ConfigError, DatasetError
from toolkit.options.arguments import DataArguments, SourceArguments
from toolkit.world.corpus import documents

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Text = str | list[Message]
MOST_DEMONSTRATIONS = 1000  # enough for a mean; a hub dataset may have a million
# Seeds of the embedded world's corpus. Its base was pretrained on the corpus of another seed.
HELD_OUT_SEED, PTX_SEED = 10_000, 10_001


def load_split(
    name: str | None,
    split: str,
    *,
    option: str,
    kind: str = "prompt-only",
    drop_bad_rows: bool,
    seed: int,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
) -> list[Row]:
    """Load one split of a dataset, and no other split; without a name, the result has no rows.

    Args:
        name: a dataset, in any form that `dataset_name` accepts.
        split: the split to read.
        option: the option that names the split, used in error messages.
        kind, seed: see `load_splits`.
        tokenizer: used to check the rows' texts (see `check_texts`); None skips the check.

    Raises: DatasetError if `load_splits` or `check_texts` raises it.
    """
    if name is None:
        return []
    source = SourceArguments(dataset_name=name, split=split)
    data_args = DataArguments(drop_bad_rows=drop_bad_rows)
    try:
        return _load_train(source, data_args, tokenizer, kind=kind, seed=seed)
    except DatasetError as error:  # it names the option of a mixture's source
        raise DatasetError(str(error).replace("(`split`)", f"(`{option}`)")) from error


def load_demonstrations(
    name: str | None,
    data_args: DataArguments,
    *,
    seed: int,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
) -> list[tuple[Text, Text]]:
    """(prompt, completion) pairs of a dataset's train split: all rows, or a thousand random ones.

    Args:
        name: a prompt-completion dataset; None gives an empty list.
        data_args: only `drop_bad_rows` and `max_rows` are used; the sample comes from the first `max_rows`.
        seed: another seed draws other rows.
        tokenizer: as for `load_split`.

    Raises: DatasetError if `load_splits` or `check_texts` raises it.
    """
    if name is None:
        return []
    source = SourceArguments(dataset_name=name)
    only = DataArguments(drop_bad_rows=data_args.drop_bad_rows, max_rows=data_args.max_rows)
    options: dict[str, Any] = {"kind": "prompt-completion", "sample": MOST_DEMONSTRATIONS}
    rows = _load_train(source, only, tokenizer, seed=seed, **options)
    return [(row["prompt"], row["completion"]) for row in rows]


def _load_train(
    source: SourceArguments,
    data_args: DataArguments,
    tokenizer: "PreTrainedTokenizerBase | None",
    **options: Any,
) -> list[Row]:
    """The train rows of one source, without its other splits and without a mixture."""
    from trl import DatasetMixtureConfig, ScriptArguments

    data_args = replace(data_args, sources=[source])
    script, mixture = ScriptArguments(dataset_name=None), DatasetMixtureConfig()
    splits = load_splits(script, mixture, data_args, **options)
    if tokenizer is not None:
        splits = check_texts(splits, tokenizer, data_args)
    return list(splits["train"])


def held_out_texts(
    source: str | None, tokenizer: "PreTrainedTokenizerBase", *, count: int = 200
) -> list[str]:
    """Documents that no training has used; arguments and errors as for `pretraining_texts`."""
    return _read_texts(source, tokenizer, count=count, seed=HELD_OUT_SEED)


def pretraining_texts(
    source: str | None, tokenizer: "PreTrainedTokenizerBase", *, count: int = 20_000
) -> list[str]:
    """Documents that PPO mixes into its updates (PPO-ptx).

    Args:
        source: `world:corpus`, a JSONL file with `text` in each row, or None for no texts.
        tokenizer: renders the dialogues of the embedded world.
        count: the largest number of documents.

    Raises: ConfigError if the file cannot be read.
    """
    return _read_texts(source, tokenizer, count=count, seed=PTX_SEED)


def _read_texts(
    source: str | None, tokenizer: "PreTrainedTokenizerBase", *, count: int, seed: int
) -> list[str]:
    if source is None:
        return []
    if source == "world:corpus":
        return [
            d if isinstance(d, str) else str(tokenizer.apply_chat_template(d, tokenize=False))
            for d in itertools.islice(documents(seed), count)
        ]
    try:
        with Path(source).open(encoding="utf-8") as file:
            # Not splitlines(), which also splits at U+2028; JSON may contain it.
            lines = itertools.islice(filter(str.strip, file), count)
            return [str(json.loads(line)["text"]) for line in lines]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{source}: must be JSONL with `text` in each row ({error!r})") from error
