"""The report of a judge: verdicts, position bias, length bias, agreement, requests and tokens."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from toolkit.app.judgements.judgement import Judgement
from toolkit.app.judgements.leaderboard import BATTLE_RANKS
from toolkit.evaluation.metrics import Interval, mean_interval, rounded
from toolkit.judging.agreement import agreement
from toolkit.judging.questions import ASPECTS
from toolkit.judging.replies import Replies
from toolkit.judging.verdicts import Judged

Votes = Mapping[Hashable, Sequence[float]]  # pair -> verdicts in the order of the pair


def build(items: Sequence[Judged], replies: Replies, *, people: Votes, seed: int) -> dict[str, Any]:
    """The report's numbers; unknown ones are None.

    Args:
        people: the votes of people, by `pair_key`.
    """
    verdicts = {
        (pair_key(one, a, b)): (share, one, a, b) for one in items for a, b, share in one.pairs()
    }
    prompts = {key: repr(one.item.prompt) for key, (_, one, _, _) in verdicts.items()}
    decided = [key for key, (share, *_) in verdicts.items() if share != 0.5]
    longer = [
        (float((len(verdicts[k][2]) > len(verdicts[k][3])) == (verdicts[k][0] == 1)), prompts[k])
        for k in decided
        if len(verdicts[k][2]) != len(verdicts[k][3])
    ]
    shown = [
        (share, repr(one.item.prompt))
        for one in items
        for share in one.shown.values()
        if share != 0.5
    ]
    both = [
        (float(one.shown[a, b] == 1 - one.shown[b, a]), prompts[key])
        for key, (_, one, a, b) in verdicts.items()
        if one.shown
    ]
    judge = {key: _ordered(key, a, share) for key, (share, _, a, _) in verdicts.items()}
    return {
        "prompts": len(items),
        "ranked_prompts": sum(len(one.scores) > 1 for one in items),
        "equal_answers": sum(len(one.item.distinct) == 1 for one in items),
        "answers_left_out": sum(
            len(one.item.distinct) - len(one.scores) for one in items if len(one.item.distinct) > 1
        ),
        "pairs": len(verdicts),
        "ties": rounded(1 - len(decided) / len(verdicts)) if verdicts else None,
        "same_in_both_orders": _interval(both, seed),
        "first_shown_wins": _interval(shown, seed),
        "longer_wins": _interval(longer, seed),
        "ratings": _ratings(items),
        "win_rates": _win_rates(items, seed),
        "agreement": {
            "people": agreement(judge, people, prompts, seed=seed),
            "dataset": agreement(judge, _labels(items), prompts, seed=seed),
        },
        **_requests(replies.values()),
    }


def pair_key(judged: Judged, one: str, other: str) -> Hashable:
    """A key of two answers to a prompt, whatever their order."""
    return pair_of(judged.item.prompt, one, other)


def pair_of(prompt: Any, one: str, other: str) -> Hashable:
    """See `pair_key`; a text prompt equals the same text as a user's message."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    spoken = tuple((message["role"], message["content"]) for message in messages)
    return spoken, *sorted((one, other))


def _ordered(key: Any, one: str, share: float) -> float:
    """A verdict on (one, other) in the order of the key."""
    return share if key[1] == one else 1 - share


def people_votes(votes: Sequence[Judgement]) -> Votes:
    """People's verdicts on each pair of answers; "both bad" is a tie. Source: `toolkit.app.judgements`."""
    found: dict[Hashable, list[float]] = defaultdict(list)
    for vote in votes:
        texts = [reply.text.strip() for reply in vote.replies]
        ranks = vote.ranks or BATTLE_RANKS[str(vote.verdict)]
        for key, share in ranked_pairs(list(vote.prompt), texts, ranks):
            found[key].append(share)
    return found


def _labels(items: Sequence[Judged]) -> Votes:
    """The dataset's own order of each pair."""
    labels: dict[Hashable, list[float]] = defaultdict(list)
    for one in items:
        if one.item.ranks is not None:
            for key, share in ranked_pairs(one.item.prompt, one.item.texts, one.item.ranks):
                labels[key].append(share)
    return labels


def ranked_pairs(
    prompt: Any, texts: Sequence[str], ranks: Sequence[int]
) -> Iterable[tuple[Hashable, float]]:
    """Each pair of different texts of a ranking with its verdict, in the order of the pair's key."""
    rank = dict(zip(reversed(texts), reversed(ranks), strict=True))
    distinct = list(rank)
    for i, one in enumerate(distinct):
        for other in distinct[i + 1 :]:
            key = pair_of(prompt, one, other)
            yield key, _ordered(key, one, (np.sign(rank[other] - rank[one]) + 1) / 2)


def _ratings(items: Sequence[Judged]) -> dict[str, float] | None:
    rows = [ratings for one in items for ratings in one.ratings.values()]
    if not rows:
        return None
    return {a: rounded(x) for a, x in zip(ASPECTS, np.mean(rows, axis=0), strict=True)}


def _win_rates(items: Sequence[Judged], seed: int) -> dict[str, Interval | None]:
    """Per checkpoint, its share of wins over the answers of all others; ties count half."""
    wins: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for one in items:
        for i in one.kept if one.item.replies else ():
            for j in one.kept:
                names = [one.item.replies[n].name for n in (i, j)]
                scores = [one.scores[one.item.texts[n]] for n in (i, j)]
                if names[0] != names[1]:
                    share = (np.sign(scores[0] - scores[1]) + 1) / 2
                    wins[names[0]].append((share, repr(one.item.prompt)))
    return {name: _interval(rows, seed) for name, rows in wins.items()}


def _requests(replies: Iterable[Any]) -> dict[str, Any]:
    """The number of requests and tokens; times are those of single requests."""
    replies = list(replies)
    answered = [reply for reply in replies if reply.problem is None]
    return {
        "questions": len(replies),
        "left_out": dict(Counter(r.problem for r in replies if r.problem is not None)),
        "left_out_example": next((r.reason for r in replies if r.problem is not None), None),
        "malformed_replies": sum(reply.malformed for reply in replies),
        "prompt_tokens": sum(reply.prompt_tokens for reply in replies),
        "completion_tokens": sum(reply.completion_tokens for reply in replies),
        "seconds_per_question": rounded(np.mean([r.seconds for r in answered]))
        if answered
        else None,
    }


def _interval(rows: Sequence[tuple[float, str]], seed: int) -> Interval | None:
    """The mean of (value, prompt) rows; None without rows."""
    values, prompts = [value for value, _ in rows], [prompt for _, prompt in rows]
    return mean_interval(values, seed=seed, groups=prompts) if rows else None
