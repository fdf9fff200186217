"""Votes on Compare, where the labeler sees the checkpoints' names."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime

from toolkit.app.answering.chat import Chat
from toolkit.app.judgements.judgement import (
    BATTLE,
    NAMED,
    RANKING,
    TIE,
    A,
    B,
    Judgement,
    Reply,
    complete_judgement,
)
from toolkit.errors import ConfigError


def named_vote(chat: Chat, best: str | None, base: Mapping[str, str]) -> Judgement:
    """A judgement that one answer to the last turn is better than all others, or that all tie.

    Two answers give a battle; more answers give a ranking in which the others share the second place.

    Args:
        best: the checkpoint's id, or None for a tie.
        base: the base's fingerprint.

    Raises: ConfigError if the answers follow different conversations or are not complete.
    """
    answers, sampling = list(chat.answers.values()), chat.turns[-1].sampling if chat.turns else None
    if not chat.votable or sampling is None:
        raise ConfigError(
            "these answers cannot be judged: at least two complete answers to the same conversation "
            "are needed, and after the first turn each checkpoint has its own conversation"
        )
    places = [1 if best in (None, answer.checkpoint) else 2 for answer in answers]
    if best is not None and 1 not in places:
        raise ConfigError("this answer is no longer on the page; send the question again")
    settings = {k: float(v) for k, v in asdict(sampling).items() if k != "seed"}
    pending = Judgement(
        id="",
        kind=BATTLE if len(answers) == 2 else RANKING,
        prompt=tuple(chat.conversation(answers[0].checkpoint)),
        replies=tuple(
            Reply(a.checkpoint, a.name, a.text, sampling.seed, a.adapter) for a in answers
        ),
        sampling=settings | {NAMED: 1.0},
        base=dict(base),
    )
    id = hashlib.sha256(repr(pending).encode("utf-8", "replace")).hexdigest()[:32]
    verdict = TIE if best is None else A if places[0] == 1 else B
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return complete_judgement(replace(pending, id=id), time=now, verdict=verdict, ranks=places)
