"""The rows that runs held out: the test split of their own data, read again with the recorded options."""

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from toolkit.data.checks import check_texts
from toolkit.data.loading import load_splits
from toolkit.data.messages import Row
from toolkit.data.splits import hash_rows, question_key
from toolkit.errors import ConfigError
from toolkit.options.arguments import DataArguments
from toolkit.recipe import find_recipe
from toolkit.runs.replacing import members
from toolkit.runs.run import ENSEMBLE, Run
from toolkit.runs.settings import ROWS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def held_out_rows(run: Run, tokenizer: "PreTrainedTokenizerBase | None" = None) -> list[Row]:
    """The rows that a training run held out; no rows if its data has no test split.

    Args:
        tokenizer: used to check the rows' texts (see `check_texts`); None skips the check.

    Raises: DatasetError if the data cannot be read; ConfigError if it has changed since the training.
    """
    from trl import DatasetMixtureConfig, ScriptArguments

    config = run.config
    if not any(name in run.inputs for name in ROWS.values()):  # not a training run
        return []
    one = Run.load(members(run.path)[0]) if run.recipe == ENSEMBLE else run
    recipe = find_recipe(one.recipe)
    script, mixture, data_args = (
        cls(**{f.name: config[f.name] for f in fields(cls) if f.name in config})
        for cls in (ScriptArguments, DatasetMixtureConfig, DataArguments)
    )
    splits = load_splits(
        script,
        mixture,
        data_args,
        kind=recipe.rows,
        seed=config["seed"],
        texts=recipe.takes_texts,
        turns=config.get("turns", "last"),
    )
    if "test" not in splits:
        return []
    checked = splits if tokenizer is None else check_texts(splits, tokenizer, data_args)
    trained_with = run.inputs.get(ROWS["test"])
    if trained_with not in (hash_rows(splits["test"]), hash_rows(checked["test"])):
        raise ConfigError(
            f"{run.path}: its dataset was changed, and has other test rows than in training; name a "
            "file with prompts instead"
        )
    return list(checked["test"])


def held_out_prompts(
    runs: Sequence[Run], tokenizer: "PreTrainedTokenizerBase"
) -> list[dict[str, Any]]:
    """The distinct prompts that the first of these runs held out.

    Raises: ConfigError if no run held out prompts; errors of `held_out_rows`.
    """
    for run in runs:
        rows = [row for row in held_out_rows(run, tokenizer) if "prompt" in row]
        distinct = list({question_key(row): row for row in reversed(rows)}.values())[::-1]
        if distinct:
            print(f"prompts: {len(distinct)} that {run.path} held out", flush=True)
            return distinct
    raise ConfigError(
        "evaluate: no run held out prompts; name a dataset as `prompts`, or set `test_split_size` "
        "in training"
    )
