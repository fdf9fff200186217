"""Stored conversations: a round trip, owners, limits, damage and a full disk."""

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from tests.app.full_disk import free_space, with_full_disk
from toolkit.app.answering.chat import Chat
from toolkit.app.answering.request import Answer
from toolkit.app.conversations import record, store
from toolkit.app.conversations.store import Conversations, new_browser, owner
from toolkit.errors import DatasetError
from toolkit.sampling.settings import Drawing

ANN, BOB = owner(new_browser(), None), owner(new_browser(), None)


@pytest.fixture
def stored(tmp_path: Path) -> Conversations:
    """An empty store."""
    return Conversations(tmp_path / "conversations.sqlite")


def chat(prompt: str = "What is it?", text: str = "def f():\n    return 1") -> Chat:
    """One turn with the answers of two checkpoints."""
    answers = [
        Answer("base", "base", "No.", 2, True, score=0.5, kl=-0.1, reference="sft", ids=(5, 2)),
        Answer("run_000007", "a/sft", text, 9, notes=("stopped",), z=1.0, z_source="known answers"),
    ]
    turn = Chat(system="Be brief.").with_prompt(prompt).with_answers(answers)
    return turn.with_sampling(Drawing(16, 0.7, seed=3), "a/reward")


def test_chat_survives_a_restart(stored: Conversations) -> None:
    first = stored.save(ANN, chat().without_answers().undone())
    second = stored.save(ANN, first.with_prompt("Why? \ud800\0"))
    assert (second.id, second.revision) == (first.id, 2)
    again = Conversations(stored.path)  # a new process, in which the run has another id
    assert again.titles(ANN) == [("What is it?", first.id)]
    loaded = again.load(ANN, first.id, {"base": "base", "a/sft": "run_000000"})
    assert loaded is not None
    answers = list(first.answers.values())
    assert list(loaded.turns[0].answers.values()) == [
        answers[0],
        replace(answers[1], checkpoint="run_000000"),
    ]
    assert (loaded.turns[0].sampling, loaded.turns[0].reward) == (
        Drawing(16, 0.7, seed=3),
        "a/reward",
    )
    assert (loaded.last_prompt, loaded.system, loaded.revision) == ("Why? \ud800\0", "Be brief.", 2)
    assert list(again.load(ANN, first.id, {}).turns[0].answers) == ["gone: base", "gone: a/sft"]


def test_undo_survives_a_restart(stored: Conversations) -> None:
    changed = stored.save(ANN, chat().without_answers())
    loaded = stored.load(ANN, changed.id, {"base": "base", "a/sft": "run_000007"})
    assert loaded is not None and not loaded.answers
    assert loaded.undone().turns == chat().turns and not loaded.undone().earlier


def test_other_owners_read_and_change_nothing(stored: Conversations) -> None:
    saved = stored.save(ANN, chat())
    assert stored.titles(BOB) == [] and stored.load(BOB, saved.id, {}) is None
    stored.delete(BOB, saved.id)
    assert stored.save(BOB, saved).id != saved.id
    assert stored.load(ANN, saved.id, {}) is not None
    assert stored.path.stat().st_mode & 0o077 == 0  # nor does another account of the machine


def test_owner_is_the_user_or_the_browser() -> None:
    browser = new_browser()
    assert owner(browser, "me") == owner(new_browser(), "me") != owner(browser, None)
    assert owner(browser, None) == owner(browser, None) != ANN
    for api_client in (None, "", "short", 5, ["x" * 30], "x" * 10_000):
        assert owner(api_client, None) is owner(api_client, "me") is None
    assert browser not in str(owner(browser, None))  # the file does not hold the secret


def test_two_pages_lose_nothing(stored: Conversations) -> None:
    opened = stored.save(ANN, chat())
    one = stored.save(ANN, opened.with_prompt("Of the first page"))
    two = stored.save(ANN, opened.with_prompt("Of the second page"))
    assert one.id == opened.id != two.id
    assert {stored.load(ANN, c.id, {}).last_prompt for c in (one, two)} == {
        "Of the first page",
        "Of the second page",
    }


def test_oldest_conversations_make_room(
    stored: Conversations, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "MAX_PER_OWNER", 3)
    kept_by_bob = stored.save(BOB, chat())
    for number in range(5):
        stored.save(ANN, chat(f"Question {number}"))
    assert [title for title, _ in stored.titles(ANN)] == [f"Question {n}" for n in (4, 3, 2)]
    assert [id for _, id in stored.titles(BOB)] == [kept_by_bob.id]
    monkeypatch.setattr(store, "MAX_TOTAL_BYTES", 5000)
    stored.save(ANN, chat("Long", "x" * 4000))
    assert [title for title, _ in stored.titles(ANN)] == ["Long"]


def test_too_long_chat_keeps_the_stored_version(
    stored: Conversations, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = stored.save(ANN, chat())
    monkeypatch.setattr(record, "MAX_BYTES", 3000)
    assert record.as_json(chat(text="x" * 1500).without_answers().undone()) is not None
    with pytest.raises(DatasetError, match="too long to be stored"):
        stored.save(ANN, saved.with_prompt("x" * 4000))
    assert stored.load(ANN, saved.id, {}).last_prompt == "What is it?"


def _chat_on_full_disk(folder: Path) -> list[object]:
    """Read and save with a full disk, then save again once there is space."""
    stored = Conversations(folder / "c.sqlite")
    titles = [title for title, _ in stored.titles(ANN)]
    with pytest.raises(DatasetError) as error:
        stored.save(ANN, chat("New", "x" * 50_000))
    free_space()
    stored.save(ANN, chat("New"))
    return [titles, str(error.value)]


@pytest.mark.parametrize("existing", ["none", "empty file", "closed"])
def test_full_disk_allows_reading_and_later_saving(tmp_path: Path, existing: str) -> None:
    file, titles = tmp_path / "c.sqlite", []
    if existing == "empty file":
        file.touch()
    elif existing == "closed":
        Conversations(file).save(ANN, chat("Old", "x" * 4000))
        titles = ["Old"]
    read, error = with_full_disk(tmp_path, _chat_on_full_disk, file_bytes=20_000 if titles else 0)
    assert read == titles
    assert "free disk space" in str(error)
    assert [title for title, _ in Conversations(file).titles(ANN)] == ["New", *titles]


@pytest.mark.parametrize("content", [b"SQLite format 3\0" + b"\xff" * 5000, b"text" * 500])
def test_damaged_file_is_reported_and_not_changed(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "conversations.sqlite"
    file.write_bytes(content)
    stored = Conversations(file)
    assert stored.problem is not None and "move a damaged file away" in stored.problem
    assert stored.titles(ANN) == [] and stored.load(ANN, "x", {}) is None
    with pytest.raises(DatasetError):
        stored.save(ANN, chat())
    stored.delete(ANN, "x")
    assert file.read_bytes() == content


def test_database_of_another_program_is_not_changed(tmp_path: Path) -> None:
    file = tmp_path / "other.sqlite"
    with sqlite3.connect(file) as db:
        db.execute("CREATE TABLE conversations (mine TEXT)")
    before = file.read_bytes()
    assert "another program" in str(Conversations(file).problem)
    assert file.read_bytes() == before


@pytest.mark.parametrize("text", ["", "[]", "{}", "[" * 100_000, '{"turns": [{"answers": [5]}]}'])
def test_damaged_conversation_is_left_out(stored: Conversations, text: str) -> None:
    saved = stored.save(ANN, chat())
    other = stored.save(ANN, chat("Another"))
    with sqlite3.connect(stored.path) as db:
        db.execute("UPDATE conversations SET chat = ? WHERE id = ?", (text, saved.id))
    assert stored.load(ANN, saved.id, {}) is None
    assert stored.load(ANN, other.id, {}) is not None
