"""A conversation: nothing that was answered is lost without undo."""

from toolkit.app.answering.chat import MAX_UNDO, Chat
from toolkit.app.answering.request import Answer


def two_turns() -> Chat:
    """Two prompts, each answered by two checkpoints."""
    chat = Chat(system="Be brief.", id="x", revision=4)
    for prompt in ("Who?", "Why?"):
        answers = [Answer(id, id, f"{id}: {prompt}") for id in ("base", "sft")]
        chat = chat.with_prompt(prompt).with_answers(answers)
    return chat


def test_undo_restores_removed_turns() -> None:
    chat = two_turns()
    for changed in (chat.without_answers(), chat.without_last()):
        assert changed.turns != chat.turns
        assert changed.undone() == chat
    answered_anew = chat.without_answers().with_answers([Answer("base", "base", "Other")])
    assert answered_anew.undone() == chat
    deleted = chat.deleted()
    assert (deleted.turns, deleted.id) == ((), "")
    assert deleted.undone().turns == chat.turns


def test_undo_reverts_several_steps() -> None:
    chat = two_turns()
    changed = chat.without_last().without_last()
    assert changed.undone().undone() == chat
    for _ in range(2 * MAX_UNDO):
        changed = changed.without_last()
    assert len(changed.earlier) == MAX_UNDO


def test_only_answers_to_one_conversation_can_be_judged() -> None:
    chat = two_turns()
    assert not chat.votable  # the checkpoints have different answers before this turn
    assert chat.without_last().votable
    first = chat.without_last().answers["base"]
    for answers in ([first], [first, Answer("sft", "sft", problem="no memory")]):
        assert not chat.without_last().with_answers(answers).votable
    assert not Chat().votable
