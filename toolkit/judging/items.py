"""What is judged: a prompt with two or more answers, from a dataset, from runs or from people's votes."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from toolkit.app.judgements.judgement import Reply
from toolkit.data.auxiliary import load_split
from toolkit.errors import DatasetError
from toolkit.judging.arguments import JudgeArguments


@dataclass(frozen=True)
class Item:
    """A prompt and its answers, each a text or messages.

    `replies` describes the origin of each answer, if it is known; `ranks` are those of the dataset.
    """

    prompt: Any
    completions: tuple[Any, ...]
    replies: tuple[Reply, ...] = ()
    ranks: tuple[int, ...] | None = None

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """The answers' texts, without blanks at their ends."""
        return tuple(map(_text, self.completions))

    @cached_property
    def distinct(self) -> list[str]:
        """The different texts, in order."""
        return list(dict.fromkeys(self.texts))


def _text(completion: Any) -> str:
    return str(completion if isinstance(completion, str) else completion[-1]["content"]).strip()


def read_items(args: JudgeArguments) -> list[Item]:
    """The rows of `dataset_name`.

    Raises: DatasetError if a row has no prompt with two answers.
    """
    rows = load_split(
        args.dataset_name,
        args.dataset_split,
        option="dataset_split",
        kind="answers",
        drop_bad_rows=args.drop_bad_rows,
        seed=args.seed,
    )
    return [
        Item(
            row["prompt"],
            tuple(row["completions"]),
            ranks=None if row.get("ranks") is None else tuple(row["ranks"]),
        )
        for row in rows[: args.max_prompts]
    ]


def require_questions(items: Sequence[Item]) -> None:
    """Raises: DatasetError if no item has two different answers."""
    if not any(len(item.distinct) > 1 for item in items):
        raise DatasetError(
            f"judge: none of {len(items)} prompts has two different answers; there is nothing to judge"
        )
