"""The demonstrations whose rewards shall average 0."""

from dataclasses import replace

from toolkit.data.loading import load_splits
from toolkit.options.arguments import DataArguments, RewardArguments, SourceArguments

Text = str | list[dict[str, str]]
MOST_DEMONSTRATIONS = 1000  # enough for a mean; a hub dataset may hold a million


def load_demonstrations(start: RewardArguments, *, seed: int) -> list[tuple[Text, Text]]:
    """(prompt, completion) of `start.demonstrations`, a sample; none where it is not set.

    Raises: DatasetError as `load_splits`.
    """
    if start.demonstrations is None:
        return []
    asked = DataArguments(drop_bad_rows=start.drop_bad_rows, max_rows=start.max_rows)
    return sample_demonstrations(start.demonstrations, asked, seed=seed)


def sample_demonstrations(name: str, asked: DataArguments, *, seed: int) -> list[tuple[Text, Text]]:
    """(prompt, completion) of a dataset's train split: all, or a thousand that the seed draws.

    Args:
        name: a prompt-completion dataset.
        asked: `drop_bad_rows` and `max_rows`, of which the sample is drawn.
        seed: another seed draws others.

    Raises: DatasetError as `load_splits`.
    """
    from trl import DatasetMixtureConfig, ScriptArguments

    # a source by itself: no other split is read, and no mixture of the training data's comes first
    only = replace(asked, sources=[SourceArguments(dataset_name=name)])
    rows = load_splits(
        ScriptArguments(dataset_name=None),
        DatasetMixtureConfig(),
        only,
        kind="prompt-completion",
        seed=seed,
        sample=MOST_DEMONSTRATIONS,
    )
    return [(row["prompt"], row["completion"]) for row in rows["train"]]
