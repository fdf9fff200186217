"""Ranked completions: K answers to one prompt in a labeler's order, and what is made of them.

Pairs, labels and the best answer all come from the same comparisons: an answer beats another if
its rank is lower and the two are not the same text.
"""

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from toolkit.data.messages import BadRow, Row, answer, column, dialogue, prompt, shown, text

Pairs = Literal["all", "best"]


def read_ranked(row: Row) -> Row:
    """`{"prompt", "completions", "ranks"}` of a row that has ranks, or scores in their place.

    Ranks are whole numbers, 1 is best, ties are allowed; of scores the highest is best. A prompt
    of messages may have plain texts as completions; a text with completions of messages becomes
    the user's message. A completion of several messages must start with the prompt's.

    Raises: BadRow if they do not fit together, or contradict themselves.
    """
    asked = prompt(column(row, "prompt"), '"prompt"')
    given = _listed(column(row, "completions"))
    if isinstance(asked, str) and any(isinstance(item, list | dict) for item in given):
        asked = [{"role": "user", "content": asked}]
    completions = [
        _completion(item, f'"completions" {i}', asked) for i, item in enumerate(given, start=1)
    ]
    return _ranked(asked, completions, _ranks(row, len(given)))


def read_ultrafeedback(row: Row) -> Row:
    """An instruction, and completions as objects with a `response` and what judges gave it.

    The score is the mean of the aspects' ratings, as `fine-grained_score` or from `annotations`.
    `overall_score` counts only where neither is there: in the first published version, of which
    many copies live on, some answers that the judge gave 1 have 10.
    See https://github.com/OpenBMB/UltraFeedback (Update).

    Raises: BadRow for a missing response or score.
    """
    asked = text(column(row, "instruction"), '"instruction"')
    given = _listed(column(row, "completions"))
    completions = []
    for i, item in enumerate(given, start=1):
        if not isinstance(item, dict):
            wanted = f'"completions" {i} must have "response" and a score'
            raise BadRow("not a list of completions", f"{wanted}, got {shown(item)}")
        said = text(item.get("response"), f'"completions" {i} "response"')
        completions.append([{"role": "assistant", "content": said}])
    ranks = _by_score(_scores(given))
    return _ranked([{"role": "user", "content": asked}], completions, ranks)


def _listed(given: Any) -> list[Any]:
    if not isinstance(given, list) or len(given) < 2:
        wanted = '"completions" must be a list of 2 or more'
        raise BadRow("not a list of completions", f"{wanted}, got {shown(given)}")
    return given


def _completion(item: Any, name: str, asked: Any) -> Any:
    """One completion; a whole dialogue is cut to its last message if it starts with the prompt."""
    if isinstance(item, list) and len(item) > 1 and isinstance(asked, list):
        found = dialogue(item, name)
        if found[:-1] != asked:
            wanted = f"{name} must start with the prompt's {len(asked)} messages, and add one"
            raise BadRow("prompt is not the prefix", f"{wanted}, got {len(found)} that differ")
        item = found[-1:]
    return answer(item, name, like=asked, wrap=True)


def _ranks(row: Row, k: int) -> list[int]:
    name = "scores" if row.get("ranks") is None and "scores" in row else "ranks"
    values = column(row, name)
    if not isinstance(values, list) or len(values) != k:
        wanted = f'"{name}" must be a list of {k} numbers, as there are completions'
        raise BadRow("ranks do not fit", f"{wanted}, got {shown(values)}")
    for value in values:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if name == "ranks" and (not number or value < 1 or value != value // 1):
            wanted = '"ranks" must be whole numbers from 1 (the best)'
            raise BadRow("ranks do not fit", f"{wanted}, got {shown(value)}")
        if not number or (isinstance(value, float) and not math.isfinite(value)):
            raise BadRow("ranks do not fit", f'"scores" must be numbers, got {shown(value)}')
    if name == "scores":
        return _by_score(values)
    ranks = [int(v) for v in values]
    _check_beside(row.get("scores"), ranks)
    return ranks


def _check_beside(scores: Any, ranks: list[int]) -> None:
    """Raise BadRow where a row has scores beside its ranks, and these order two answers otherwise."""
    if not isinstance(scores, list) or len(scores) != len(ranks):
        return
    pairs = itertools.permutations(zip(ranks, map(_number, scores), strict=True), 2)
    for (rank, score), (other_rank, other) in pairs:
        if rank < other_rank and score is not None and other is not None and score < other:
            wanted = '"ranks" (1 is best) and "scores" (the highest is best) must agree'
            got = f"{shown(ranks)} and {shown(scores)}"
            raise BadRow("contradictory ranks", f"{wanted}, got {got}; remove one")


def _by_score(scores: list[Any]) -> list[int]:
    return [1 + sum(other > value for other in scores) for value in scores]


def _scores(completions: list[dict[str, Any]]) -> list[float]:
    """A score for each completion, all from the same of UltraFeedback's fields."""
    for name in ("fine-grained_score", "annotations", "overall_score"):
        if name == "annotations":
            found = _mean_ratings([item.get(name) for item in completions])
        else:
            found = [_number(item.get(name)) for item in completions]
        scores = [value for value in found if value is not None]
        if len(scores) == len(completions):
            return scores
    wanted = 'every completion must have a "fine-grained_score", ratings of one aspect or more in '
    wanted += '"annotations", or an "overall_score"'
    raise BadRow("no scores", f"{wanted}; got {shown([sorted(map(str, c)) for c in completions])}")


def _mean_ratings(annotations: list[Any]) -> list[float | None]:
    """The mean rating of each completion over the aspects that all of them were rated in."""
    rated = [
        {
            aspect: rating
            for aspect, given in found.items()
            if isinstance(given, dict) and (rating := _number(given.get("Rating"))) is not None
        }
        for found in annotations
        if isinstance(found, dict)
    ]
    shared = sorted(set.intersection(*map(set, rated))) if rated else []
    if not shared or len(rated) < len(annotations):
        return [None] * len(annotations)
    return [sum(one[aspect] for aspect in shared) / len(shared) for one in rated]


def _number(value: Any) -> float | None:
    """A finite number, also as text ("4"); None for "N/A" and all else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _ranked(asked: Any, completions: list[Any], ranks: list[int]) -> Row:
    ranked = {"prompt": asked, "completions": completions, "ranks": ranks}
    keys = [_key(completion).strip() for completion in completions]
    wins = {(keys[i], keys[j]) for i, j in _wins(ranked)}
    if any((b, a) in wins for a, b in wins):
        wanted = '"completions" holds one text twice, better than another answer and worse than it'
        raise BadRow("contradictory ranks", f"{wanted}; got the ranks {shown(ranks)}")
    return ranked


def _key(completion: Any) -> str:
    return completion if isinstance(completion, str) else str(completion[0]["content"])


def _wins(ranked: Row) -> Iterator[tuple[int, int]]:
    """The numbers (better, worse) of every two completions that are not tied."""
    ranks, said = ranked["ranks"], [_key(one).strip() for one in ranked["completions"]]
    for i, j in itertools.combinations(range(len(said)), 2):
        if ranks[i] != ranks[j] and said[i] != said[j]:
            yield (i, j) if ranks[i] < ranks[j] else (j, i)


def ranked_to_pairs(row: Row, *, pairs: Pairs = "all") -> list[Row]:
    """The pairs of a ranked row that are not tied, as `{"prompt", "chosen", "rejected"}`.

    Two equal completions count as tied whatever their ranks: no model can tell them apart.

    Args:
        row: `{"prompt", "completions": [K], "ranks": [K]}`, or "scores" in place of "ranks".
        pairs: "all", at most C(K,2); or "best", the best against each of the rest (several that
            share the best rank each against the rest).

    Returns: rows in the order of the completions.
    Raises: DatasetError if the row is malformed.
    """
    return pairs_of(read_ranked(row), pairs=pairs)


def pairs_of(ranked: Row, *, pairs: Pairs) -> list[Row]:
    """`ranked_to_pairs` of a row that was read."""
    said, best = ranked["completions"], min(ranked["ranks"])
    return [
        {"prompt": ranked["prompt"], "chosen": said[i], "rejected": said[j]}
        for i, j in _wins(ranked)
        if pairs == "all" or ranked["ranks"][i] == best
    ]


def labels_of(ranked: Row, *, pairs: Pairs) -> list[Row]:
    """Each completion with the label of whether it is good, as `{"prompt", "completion", "label"}`.

    Good is what wins more of the row's pairs than it loses, bad what loses more than it wins; what
    is in the middle (of three, the second) says neither and is left out. With `pairs="best"` that
    is: the best is good, all others are bad. Equal completions make one row.
    """
    said: dict[str, Any] = {}
    for completion in ranked["completions"]:
        said.setdefault(_key(completion).strip(), completion)
    balance = dict.fromkeys(said, 0)
    for pair in pairs_of(ranked, pairs=pairs):
        balance[_key(pair["chosen"]).strip()] += 1
        balance[_key(pair["rejected"]).strip()] -= 1
    return [
        {"prompt": ranked["prompt"], "completion": said[key], "label": net > 0}
        for key, net in balance.items()
        if net
    ]


def group_id(ranked: Row) -> int:
    """A number by which the rows of one ranking find together again."""
    return _number_of([ranked["prompt"], ranked["completions"]])


def ranking_id(row: Mapping[str, Any]) -> int:
    """A number that the rows of one ranking share: of their prompt and their `group_id`, if any.

    A `group_id` of the data's own may stand at several prompts, which cannot be ranked together.
    """
    return _number_of([row["prompt"], row.get("group_id")])


def _number_of(value: Any) -> int:
    """63 bits of a hash, so that no two meet."""
    said = json.dumps(value)
    return int.from_bytes(hashlib.sha256(said.encode()).digest()[:8]) >> 1


def best_completion(ranked: Row) -> Any:
    """The completion of the lowest rank, the first of them if several share it."""
    ranks = ranked["ranks"]
    return ranked["completions"][ranks.index(min(ranks))]
