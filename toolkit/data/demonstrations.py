"""The demonstrations whose rewards shall average 0."""

from toolkit.arguments import DataArguments, RewardArguments
from toolkit.data.loading import load_splits

Text = str | list[dict[str, str]]
MOST_DEMONSTRATIONS = 1000  # enough for a mean; a hub dataset may hold a million


def load_demonstrations(start: RewardArguments, *, seed: int) -> list[tuple[Text, Text]]:
    """(prompt, completion) of `start.demonstrations`, at most a thousand; none where it is not set.

    Raises: DatasetError as `load_splits`.
    """
    if start.demonstrations is None:
        return []
    from trl import DatasetMixtureConfig, ScriptArguments

    source = ScriptArguments(dataset_name=start.demonstrations)
    # the training data's mixture would take precedence, and its format is another
    most = min(start.max_rows or MOST_DEMONSTRATIONS, MOST_DEMONSTRATIONS)
    asked = DataArguments(drop_bad_rows=start.drop_bad_rows, max_rows=most)
    rows = load_splits(source, DatasetMixtureConfig(), asked, kind="prompt-completion", seed=seed)
    return [(row["prompt"], row["completion"]) for row in rows["train"]]
