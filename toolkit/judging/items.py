"""What is judged: a prompt with two or more answers, from a dataset, from runs or from people's votes."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from toolkit.app.judgements.judgement import NAMED, SKIP, Judgement, Reply
from toolkit.app.judgements.store import Store
from toolkit.data.auxiliary import load_split
from toolkit.errors import DatasetError
from toolkit.judging.arguments import JudgeArguments


@dataclass(frozen=True)
class Item:
    """A prompt and its answers, each a text or messages.

    `replies` has the origin of each answer, and `sampled` a judgement with the same base and sampling, if
    they are known; `ranks` are those of the dataset.
    """

    prompt: Any
    completions: tuple[Any, ...]
    replies: tuple[Reply, ...] = ()
    ranks: tuple[int, ...] | None = None
    sampled: Judgement | None = None

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


def read_votes(file: str | None) -> list[Judgement]:
    """The blind judgements in the app's file, without skipped ones; none without a file.

    Raises: DatasetError if the file is missing or damaged.
    """
    if file is None:
        return []
    path = Path(file).expanduser()
    if not path.is_file():
        raise DatasetError(f"votes: {path} is not a file; name the app's judgements.sqlite")
    return [j for j in Store(path).all() if j.verdict != SKIP and NAMED not in j.sampling]


def items_of(votes: Sequence[Judgement], *, most: int | None) -> list[Item]:
    """The prompts and answers that people judged, each once."""
    items: dict[Any, Item] = {}
    for vote in votes:
        completions = tuple(reply.text for reply in vote.replies)
        answers = tuple([{"role": "assistant", "content": text}] for text in completions)
        key = json.dumps([vote.prompt, sorted(completions)])
        items.setdefault(key, Item(list(vote.prompt), answers, vote.replies, sampled=vote))
    return list(items.values())[:most]


def require_questions(items: Sequence[Item]) -> None:
    """Raises: DatasetError if no item has two different answers."""
    if not any(len(item.distinct) > 1 for item in items):
        raise DatasetError(
            f"judge: none of {len(items)} prompts has two different answers; there is nothing to judge"
        )
