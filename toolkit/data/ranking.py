"""Ranked completions: K completions of one prompt in a labeler's order, and the rows made from them.

Pairs, labels and the best completion all come from the same comparisons: a completion beats another
if its rank is lower and their texts differ.
"""

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from toolkit.data.messages import (
    Row,
    as_completion,
    as_dialogue,
    as_prompt,
    as_text,
    assistant,
    get_column,
    user,
)
from toolkit.data.row_errors import RowError
from toolkit.data.values import finite_number, read_number

Pairs = Literal["all", "best"]


def read_ranked(row: Row) -> Row:
    """Read `{"prompt", "completions", "ranks"}` from a row with ranks or, instead, scores.

    Ranks are whole numbers; 1 is best and ties are allowed. The highest score is best. After a
    prompt of messages, completions may be plain texts. If completions are messages, a text prompt
    becomes a user message. A completion of several messages must start with the prompt's messages.

    Raises: RowError if the columns do not fit together or contradict each other.
    """
    answers = read_answers(row)
    completions = answers["completions"]
    return _ranked(answers["prompt"], completions, _ranks(row, len(completions)))


def read_answers(row: Row) -> Row:
    """Read `{"prompt", "completions"}`; see `read_ranked`. Raises: RowError if they do not fit together."""
    prompt = as_prompt(get_column(row, "prompt"), '"prompt"')
    values = _completion_list(row)
    if isinstance(prompt, str) and any(isinstance(item, list | dict) for item in values):
        prompt = [user(prompt)]
    completions = [
        _completion(item, f'"completions" {i}', prompt) for i, item in enumerate(values, start=1)
    ]
    return {"prompt": prompt, "completions": completions}


def read_ultrafeedback(row: Row) -> Row:
    """An instruction, and completions as objects with a `response` and the judges' scores.

    The score is the mean of the aspects' ratings, from `fine-grained_score` or `annotations`.
    `overall_score` is used only without these columns: in the first published version, and its many
    copies, it is 10 for some completions that the judge rated 1. See
    https://github.com/OpenBMB/UltraFeedback (Update).

    Raises: RowError for a missing response or score.
    """
    instruction = as_text(get_column(row, "instruction"), '"instruction"')
    values = _completion_list(row)
    completions = []
    for i, item in enumerate(values, start=1):
        if not isinstance(item, dict):
            expected = f'"completions" {i} must have "response" and a score'
            raise RowError("not a list of completions", expected, item)
        text = as_text(item.get("response"), f'"completions" {i} "response"')
        completions.append([assistant(text)])
    return _ranked([user(instruction)], completions, _ranks_by_score(_judged_scores(values)))


def _completion_list(row: Row) -> list[Any]:
    values = get_column(row, "completions")
    if not isinstance(values, list) or len(values) < 2:
        expected = '"completions" must be a list of 2 or more'
        raise RowError("not a list of completions", expected, values)
    return values


def _completion(item: Any, name: str, prompt: Any) -> Any:
    """One completion; for a dialogue that starts with the prompt, its last message."""
    if isinstance(item, list) and len(item) > 1 and isinstance(prompt, list):
        dialogue = as_dialogue(item, name)
        if dialogue[:-1] != prompt:
            expected = f"{name} must be the prompt's {len(prompt)} messages and one more"
            problem = f"{expected}, got {len(dialogue)} messages that do not start with the prompt"
            raise RowError("prompt is not the prefix", problem)
    return as_completion(item, name, prompt=prompt, wrap=True)


def _ranks(row: Row, k: int) -> list[int]:
    """The ranks of K completions, from the row's `ranks` or else from its `scores`."""
    name = "scores" if row.get("ranks") is None and "scores" in row else "ranks"
    if name not in row:
        raise RowError("missing column", '"ranks" or "scores" is missing')
    values = row[name]
    if not isinstance(values, list) or len(values) != k:
        expected = f'"{name}" must be a list of {k} numbers, one for each completion'
        raise RowError("ranks do not fit", expected, values)
    for value in values:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if name == "ranks" and (not is_number or value < 1 or value != value // 1):
            expected = '"ranks" must be whole numbers from 1 (the best)'
            raise RowError("ranks do not fit", expected, value)
        if not is_number or (isinstance(value, float) and not math.isfinite(value)):
            raise RowError("ranks do not fit", '"scores" must be numbers', value)
    if name == "scores":
        return _ranks_by_score(values)
    ranks = [int(v) for v in values]
    _check_agreement(ranks, row.get("scores"))
    return ranks


def _check_agreement(ranks: list[int], scores: Any) -> None:
    """Raise RowError if ranks and scores order two completions differently."""
    if not isinstance(scores, list) or len(scores) != len(ranks):
        return
    numbers = [read_number(score, "scores") for score in scores]
    pairs = itertools.permutations(zip(ranks, numbers, strict=True), 2)
    for (rank, score), (other_rank, other) in pairs:
        if rank < other_rank and score is not None and other is not None and score < other:
            expected = '"ranks" (1 is best) must agree with "scores" or be left out'
            raise RowError("contradictory ranks", expected, ranks, scores)


def _ranks_by_score(scores: list[Any]) -> list[int]:
    return [1 + sum(other > value for other in scores) for value in scores]


def _judged_scores(completions: list[dict[str, Any]]) -> list[float]:
    """A score for each completion, all from the same field of UltraFeedback."""
    for name in ("fine-grained_score", "annotations", "overall_score"):
        values = [item.get(name) for item in completions]
        numbers = (
            _mean_ratings(values) if name == "annotations" else list(map(finite_number, values))
        )
        scores = [number for number in numbers if number is not None]
        if len(scores) == len(completions):
            return scores
    fields = [sorted(map(str, item)) for item in completions]
    expected = 'every completion must have a "fine-grained_score", ratings of a shared aspect in '
    expected += '"annotations", or an "overall_score"'
    raise RowError("no scores", expected, fields)


def _mean_ratings(annotations: list[Any]) -> list[float | None]:
    """The mean rating of each completion, over the aspects that are rated for all completions."""
    ratings = [
        {
            aspect: rating
            for aspect, judgement in item.items()
            if isinstance(judgement, dict)
            and (rating := finite_number(judgement.get("Rating"))) is not None
        }
        for item in annotations
        if isinstance(item, dict)
    ]
    shared = sorted(set.intersection(*map(set, ratings))) if ratings else []
    if not shared or len(ratings) < len(annotations):
        return [None] * len(annotations)
    return [sum(item[aspect] for aspect in shared) / len(shared) for item in ratings]


def _ranked(prompt: Any, completions: list[Any], ranks: list[int]) -> Row:
    ranked = {"prompt": prompt, "completions": completions, "ranks": ranks}
    texts = [_text(completion) for completion in completions]
    wins = {(texts[i], texts[j]) for i, j in _wins(ranked)}
    if any((b, a) in wins for a, b in wins):
        expected = '"completions" must not have the same text above and below another completion'
        raise RowError("contradictory ranks", expected, ranks)
    return ranked


def _text(completion: Any) -> str:
    """A completion's text without blanks at its ends; completions of equal text are tied."""
    text = completion if isinstance(completion, str) else completion[0]["content"]
    return str(text).strip()


def _wins(ranked: Row) -> Iterator[tuple[int, int]]:
    """The indices (better, worse) of each pair of completions that is not tied."""
    ranks, texts = ranked["ranks"], [_text(completion) for completion in ranked["completions"]]
    for i, j in itertools.combinations(range(len(texts)), 2):
        if ranks[i] != ranks[j] and texts[i] != texts[j]:
            yield (i, j) if ranks[i] < ranks[j] else (j, i)


def ranked_to_pairs(row: Row, *, pairs: Pairs = "all") -> list[Row]:
    """The pairs of a ranked row that are not tied, as `{"prompt", "chosen", "rejected"}`.

    Two equal completions are tied even if their ranks differ: no model can prefer one of them.

    Args:
        row: `{"prompt", "completions": [K], "ranks": [K]}`, or "scores" instead of "ranks".
        pairs: "all", at most C(K,2); or "best", the best completion against each of the others
            (if several share the best rank, each of them).

    Returns: rows in the order of the completions.
    Raises: DatasetError if the row is malformed.
    """
    return pairs_of(read_ranked(row), pairs=pairs)


def pairs_of(ranked: Row, *, pairs: Pairs) -> list[Row]:
    """Like `ranked_to_pairs`, for a result of `read_ranked`."""
    completions, best = ranked["completions"], min(ranked["ranks"])
    return [
        {"prompt": ranked["prompt"], "chosen": completions[i], "rejected": completions[j]}
        for i, j in _wins(ranked)
        if pairs == "all" or ranked["ranks"][i] == best
    ]


def labels_of(ranked: Row, *, pairs: Pairs) -> list[Row]:
    """Each completion with a label, as `{"prompt", "completion", "label"}`.

    A completion is good if it wins more of the row's pairs than it loses, and bad if it loses more.
    A completion with as many wins as losses (the second of three) is left out. With `pairs="best"`
    the best is good and all others are bad. Equal completions give one row.
    """
    completions: dict[str, Any] = {}
    for completion in ranked["completions"]:
        completions.setdefault(_text(completion), completion)
    balance = dict.fromkeys(completions, 0)
    for pair in pairs_of(ranked, pairs=pairs):
        balance[_text(pair["chosen"])] += 1
        balance[_text(pair["rejected"])] -= 1
    return [
        {"prompt": ranked["prompt"], "completion": completions[text], "label": net > 0}
        for text, net in balance.items()
        if net
    ]


def best_completion(ranked: Row) -> Any:
    """The completion with the lowest rank; the first one if several share it."""
    ranks = ranked["ranks"]
    return ranked["completions"][ranks.index(min(ranks))]


def group_id(ranked: Row) -> int:
    """The number of a ranking; all rows that are made from the ranking have it."""
    return hash_id([ranked["prompt"], ranked["completions"]])


def ranking_id(row: Mapping[str, Any]) -> int:
    """The number of the ranking of a pair, from its prompt and any `group_id`.

    A dataset's own `group_id` may cover several prompts, but one ranking has only one prompt.
    """
    return hash_id([row["prompt"], row.get("group_id")])


def hash_id(value: Any) -> int:
    """63 bits of a hash of the value's JSON: enough that different values get different numbers."""
    text = json.dumps(value, default=str)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1
