"""Votes on Compare: stored as judgements, exported, but not counted on the leaderboard."""

from pathlib import Path

import pytest

from toolkit.app.answering.chat import Chat
from toolkit.app.answering.request import Answer
from toolkit.app.judgements.leaderboard import leaderboard
from toolkit.app.judgements.named_votes import named_vote
from toolkit.app.judgements.store import Store
from toolkit.errors import ConfigError
from toolkit.sampling.settings import Drawing

BASE = {"id": "world:base"}


def answered(*names: str) -> Chat:
    """One question with the answers of these checkpoints."""
    answers = [Answer(f"id of {name}", name, f"{name} says", adapter=name[0]) for name in names]
    chat = Chat(system="Be brief.").with_prompt("Why?").with_answers(answers)
    return chat.with_sampling(Drawing(16, 0.5, seed=7), None)


def test_best_of_two_is_a_battle() -> None:
    chat = answered("base", "sft")
    verdicts = [named_vote(chat, id, BASE).verdict for id in ("id of base", "id of sft", None)]
    assert verdicts == ["a", "b", "tie"]
    judgement = named_vote(chat, "id of sft", BASE)
    assert [m["content"] for m in judgement.prompt] == ["Be brief.", "Why?"]
    assert [(r.name, r.text, r.seed, r.adapter) for r in judgement.replies] == [
        ("base", "base says", 7, "b"),
        ("sft", "sft says", 7, "s"),
    ]
    assert judgement.sampling["temperature"] == 0.5 and judgement.base == BASE


def test_best_of_three_is_a_ranking() -> None:
    chat = answered("base", "sft", "dpo")
    assert named_vote(chat, "id of sft", BASE).ranks == (2, 1, 2)
    assert named_vote(chat, None, BASE).ranks == (1, 1, 1)


def test_same_vote_is_stored_once_and_not_rated(tmp_path: Path) -> None:
    store = Store(tmp_path / "judgements.sqlite")
    chat = answered("base", "sft")
    assert store.add(named_vote(chat, "id of sft", BASE))
    assert not store.add(named_vote(chat, "id of sft", BASE))
    with pytest.raises(ConfigError, match="already have another judgement"):
        store.add(named_vote(chat, None, BASE))
    assert leaderboard(store.all()).standings == ()


def test_later_turns_and_unknown_answers_are_rejected() -> None:
    answers = [Answer("id of base", "base", "Yes."), Answer("id of sft", "sft", "No.")]
    later = answered("base", "sft").with_prompt("And?").with_answers(answers)
    for chat in (Chat(), later.with_sampling(Drawing(), None)):
        with pytest.raises(ConfigError, match="cannot be judged"):
            named_vote(chat, "id of sft", BASE)
    with pytest.raises(ConfigError, match="no longer on the page"):
        named_vote(answered("base", "sft"), "id of dpo", BASE)
