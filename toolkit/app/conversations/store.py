"""The conversations on disk: one SQLite file of bounded size; owners read only their own."""

import hashlib
import os
import secrets
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from toolkit.app.answering.chat import Chat
from toolkit.app.conversations.record import MAX_BYTES, as_json, from_json, title
from toolkit.errors import DatasetError

FILE = "conversations.sqlite"
APPLICATION = 0x52434856  # distinguishes the file from another program's database
MAX_PER_OWNER = 50
MAX_TOTAL_BYTES = 64 << 20
LOCK_TIMEOUT_S = 5.0
TABLE = """CREATE TABLE IF NOT EXISTS conversations (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, title TEXT NOT NULL, chat TEXT NOT NULL,
    revision INTEGER NOT NULL, time REAL NOT NULL)"""
# the conversations to keep: the owner's newest, and the newest of all that fit
PRUNE = """DELETE FROM conversations WHERE id IN (
    SELECT id FROM (SELECT id, row_number() OVER (PARTITION BY owner ORDER BY time DESC) AS place,
        sum(length(chat)) OVER (ORDER BY time DESC) AS bytes FROM conversations)
    WHERE place > ? OR bytes > ?)"""


def owner(browser: object, user: str | None) -> str | None:
    """The key of a conversation's owner: the user who logged in, or else the browser.

    Args:
        browser: the secret of `new_browser` that the browser stores; None for an API client.
    """
    if not isinstance(browser, str) or not 20 <= len(browser) <= 100:
        return None
    name = f"browser {browser}" if user is None else f"user {user}"
    return hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()


def new_browser() -> str:
    """A secret by which the server recognizes a browser."""
    return secrets.token_urlsafe(32)


class Conversations:
    """Stored chats by owner. Safe to use from several threads and processes.

    If the file cannot be used, `problem` contains the reason and nothing is stored; `save` tries again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problem: str | None = None
        self._open()

    def save(self, owner: str | None, chat: Chat) -> Chat:
        """Store a chat that has a turn; without an owner, do nothing.

        Returns: the chat with its id and revision. If another page of the owner has changed or deleted the
        conversation meanwhile, this chat becomes a new conversation.
        Raises: DatasetError if the file cannot be written or the chat is too long; the earlier
            version stays.
        """
        if owner is None or not chat.turns:
            return chat
        if self.problem is not None:
            self._open()  # a disk may have space again
        if self.problem is not None:
            raise DatasetError(self.problem)
        text = as_json(chat)
        if text is None:
            raise DatasetError(
                f"the conversation is too long to be stored (over {MAX_BYTES >> 20} MiB); start a "
                "new one"
            )
        new = replace(chat, revision=chat.revision + 1)
        row = {"text": text, "title": title(chat), "time": time.time(), "owner": owner}
        with self._connection() as db:
            changed = db.execute(
                "UPDATE conversations SET chat = :text, title = :title, time = :time, "
                "revision = :revision WHERE id = :id AND owner = :owner AND revision = :before",
                row | {"id": chat.id, "before": chat.revision, "revision": new.revision},
            ).rowcount
            if not changed:
                new = replace(chat, id=secrets.token_urlsafe(16), revision=1)
                db.execute(
                    "INSERT INTO conversations (id, owner, title, chat, revision, time) "
                    "VALUES (:id, :owner, :title, :text, 1, :time)",
                    row | {"id": new.id},
                )
            db.execute(PRUNE, (MAX_PER_OWNER, MAX_TOTAL_BYTES))
            db.commit()
        return new

    def titles(self, owner: str | None) -> list[tuple[str, str]]:
        """(title, id) of the owner's conversations, the newest first."""
        query = "SELECT title, id FROM conversations WHERE owner = ? ORDER BY time DESC"
        return [(str(row[0]), str(row[1])) for row in self._rows(query, (owner,))]

    def load(self, owner: str | None, id: str, ids: Mapping[str, str]) -> Chat | None:
        """The owner's conversation with that id; None if it is missing or damaged.

        Args:
            ids: checkpoint id by name.
        """
        query = "SELECT chat, revision FROM conversations WHERE owner = ? AND id = ?"
        for text, revision in self._rows(query, (owner, id)):
            try:
                return replace(from_json(text, ids), id=id, revision=int(revision))
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                return None
        return None

    def delete(self, owner: str | None, id: str) -> None:
        """Delete the owner's conversation with that id.

        Raises: DatasetError if the file cannot be written.
        """
        if self.problem is None:
            with self._connection() as db:
                db.execute("DELETE FROM conversations WHERE owner = ? AND id = ?", (owner, id))
                db.commit()

    def _rows(self, query: str, values: tuple[str | None, ...]) -> list[tuple[str, ...]]:
        """The result of a query; nothing if the file cannot be read."""
        try:
            with self._connection() as db:
                return db.execute(query, values).fetchall()
        except DatasetError:
            return []

    def _open(self) -> None:
        try:
            self._create()
            self.problem = None
        except DatasetError as error:
            self.problem = str(error)

    def _create(self) -> None:
        with self._errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))  # only for this account
        with self._connection() as db:
            application = db.execute("PRAGMA application_id").fetchone()[0]
            tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if application != APPLICATION and tables:
                raise DatasetError(
                    f"{self.path}: it is a database of another program and was not changed"
                )
            if not tables:
                db.execute(f"PRAGMA application_id = {APPLICATION}")
            db.execute(TABLE)
            db.commit()

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """A connection for one call: SQLite ties a connection to the thread that opened it."""
        with self._errors():
            db = sqlite3.connect(self.path, timeout=LOCK_TIMEOUT_S)
            try:
                yield db
            finally:
                db.close()  # rolls back uncommitted changes

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise DatasetError(
                f"{self.path}: conversations cannot be stored ({error}); free disk space, or move a "
                "damaged file away and start the app again"
            ) from error
