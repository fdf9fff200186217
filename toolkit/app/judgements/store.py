"""The judgements on disk: one SQLite file that several processes can write at the same time."""

import errno
import functools
import json
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from toolkit.app.judgements.judgement import Judgement, Reply
from toolkit.errors import ConfigError, DatasetError

FILE = "judgements.sqlite"
VERSION = 1
APPLICATION = 0x524C4846  # "RLHF": distinguishes the file from another program's database
LOCK_TIMEOUT_S = 30.0
READ_ONLY = (
    "{path}: not writable, so judgements cannot be stored; start the app with --judgements FILE "
    "in a writable folder"
)
FULL = "nothing was stored, because the disk is full or faulty; free some space and try again"
REASONS = {  # SQLite's primary error codes
    sqlite3.SQLITE_FULL: FULL,
    sqlite3.SQLITE_IOERR: FULL,
    sqlite3.SQLITE_BUSY: "another program has locked it; close that program and try again",
    sqlite3.SQLITE_READONLY: READ_ONLY.removeprefix("{path}: "),
}
DISK_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
COLUMNS = (
    *("id", "kind", "prompt", "replies", "sampling", "base", "verdict", "ranks", "likert"),
    *("flags", "reason", "labeler", "time"),
)
SHARED = ("prompt", "sampling", "base")  # often equal in many judgements
AS_JSON = ("prompt", "replies", "sampling", "base", "ranks", "likert", "flags")
SELECT = f"SELECT {', '.join(COLUMNS)} FROM judgements"
TABLE = Path(__file__).with_name("table.sql").read_text(encoding="utf-8")
CHANGES = """CREATE TABLE IF NOT EXISTS changes (
    number INTEGER PRIMARY KEY,
    time TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%SZ', 'now')),
    action TEXT NOT NULL CHECK (action IN ('edited', 'deleted')),
    judgement TEXT NOT NULL  -- the old one, as JSON
) STRICT"""
INSERT = (
    f"INSERT INTO judgements ({', '.join(COLUMNS)}) VALUES ({', '.join(f':{c}' for c in COLUMNS)})"
)


@dataclass(frozen=True)
class Tally:
    """Counts of the stored judgements.

    `verdicts` counts battles by verdict, `rankings` rankings, `ranked` the answers in all rankings,
    `prompts` distinct prompts, `labelers` distinct labelers who gave a name.
    """

    verdicts: Mapping[str, int]
    rankings: int
    ranked: int
    prompts: int
    labelers: int

    @property
    def judgements(self) -> int:
        """Battles and rankings together."""
        return sum(self.verdicts.values()) + self.rankings


class DiskFullError(DatasetError):
    """A judgement cannot be stored because there is no space for it."""


class Store:
    """Judgements in one file. Safe to use from several threads and processes."""

    def __init__(self, path: Path) -> None:
        """Open the file, or create it if it does not exist.

        If the file is not writable, `problem` contains the reason; reading works, but `add` raises an
        error. The same is true while the disk is full; `add` works again once there is space.

        Raises: DatasetError if the file is damaged or belongs to another program or a later version. Then
            the file is not modified.
        """
        self.path = path
        self.problem = None if _writable(path) else READ_ONLY.format(path=path)
        self._created = not self._is_missing() and self._inspect() > 0
        if not self._created and self.problem is None:
            with suppress(DiskFullError):  # `add` tries again
                self._create_table()

    def add(self, judgement: Judgement) -> bool:
        """Store a judgement; it is on the disk when this returns.

        Returns: False if the same judgement is already stored.
        Raises: ConfigError if the id is already stored with another verdict; DatasetError if the file
            cannot be written. Then the judgement is not stored.
        """
        if self.problem is not None:
            raise DatasetError(self.problem)
        if self._is_missing() or not self._created:
            self._create_table()
        with self._connection(write=True) as db:
            db.execute("BEGIN IMMEDIATE")  # no other process writes between SELECT and INSERT
            stored = _find(db, judgement.id)
            if stored is None:
                db.execute(INSERT, as_row(judgement))
            db.execute("COMMIT")
        if stored is not None and stored.labeler_input != judgement.labeler_input:
            raise ConfigError(
                "these answers already have another judgement, which stays; get new answers to "
                "judge again"
            )
        return stored is None

    def replace(self, before: Judgement, after: Judgement | None) -> None:
        """Edit a judgement, or delete it with `after=None`. The table `changes` keeps the old one.

        Raises: ConfigError if the stored judgement is not `before` (another visitor was faster);
            DatasetError if the file cannot be written. Nothing changes then.
        """
        if self.problem is not None:
            raise DatasetError(self.problem)
        with self._connection(write=True) as db:
            db.execute("BEGIN IMMEDIATE")
            db.execute(CHANGES)
            unchanged = _find(db, before.id) == before
            if unchanged:
                old = json.dumps(as_row(before), ensure_ascii=False)
                action = "deleted" if after is None else "edited"
                db.execute("INSERT INTO changes (action, judgement) VALUES (?, ?)", (action, old))
                if after is None:
                    db.execute("DELETE FROM judgements WHERE id = ?", (before.id,))
                else:
                    values = ", ".join(f"{c} = :{c}" for c in COLUMNS)
                    db.execute(f"UPDATE judgements SET {values} WHERE id = :id", as_row(after))
            db.execute("COMMIT")
        if not unchanged:
            raise ConfigError(
                "this judgement was changed or deleted in the meantime; update the list and choose "
                "it again"
            )

    def get(self, id: str) -> Judgement | None:
        """The judgement with that id, or None."""
        with self._connection() as db:
            return _find(db, id)

    def all(self) -> list[Judgement]:
        """Every judgement, in the order of storing."""
        with self._connection() as db:
            rows = db.execute(f"{SELECT} ORDER BY number")
            parse = functools.cache(json.loads)  # thousands of rows share their `SHARED` columns
            return [from_row(row, parse) for row in rows]

    def newest(self, limit: int) -> dict[int, Judgement]:
        """The latest judgements by number, the newest first. A number stays when others are deleted."""
        with self._connection() as db:
            query = f"{SELECT.replace('FROM', ', number FROM')} ORDER BY number DESC LIMIT ?"
            rows = db.execute(query, (limit,)).fetchall()
            return {row["number"]: from_row(row[:-1]) for row in rows}

    def version(self) -> tuple[int, int]:
        """A value that every new, edited and deleted judgement changes."""
        with self._connection() as db:
            known = "SELECT count(*) FROM sqlite_master WHERE name = 'changes'"
            changes = 0  # a file of an older version that cannot be written has no such table
            if db.execute(known).fetchone()[0]:
                changes = db.execute("SELECT count(*) FROM changes").fetchone()[0]
            return int(db.execute("SELECT count(*) FROM judgements").fetchone()[0]), int(changes)

    def count(self) -> int:
        """The number of judgements."""
        with self._connection() as db:
            return int(db.execute("SELECT count(*) FROM judgements").fetchone()[0])

    def tally(self) -> Tally:
        """Counts by kind, without reading every judgement."""
        with self._connection() as db:
            verdicts = db.execute(
                "SELECT verdict, count(*) FROM judgements WHERE kind = 'battle' GROUP BY verdict"
            ).fetchall()
            ranks = db.execute("SELECT ranks FROM judgements WHERE kind = 'ranking'").fetchall()
            prompts, labelers = db.execute(
                "SELECT count(DISTINCT prompt), count(DISTINCT nullif(labeler, '')) FROM judgements"
            ).fetchone()
        ranked = sum(len(json.loads(row[0])) for row in ranks)
        return Tally({v: n for v, n in verdicts}, len(ranks), ranked, prompts, labelers)

    def _inspect(self) -> int:
        """Check an existing file before anything is written to it; returns its schema version."""
        with self._connection() as db:
            application = db.execute("PRAGMA application_id").fetchone()[0]
            version = db.execute("PRAGMA user_version").fetchone()[0]
            check = db.execute("PRAGMA quick_check(1)").fetchone()[0]
            tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if check != "ok":
            raise self._damaged(check)
        if application != APPLICATION and tables:
            raise DatasetError(
                f"{self.path}: it is a database of another program; choose another file"
            )
        if version > VERSION:
            raise DatasetError(
                f"{self.path}: schema version {version} is newer than {VERSION}, the version of "
                "this program; update the program or choose another file"
            )
        return int(version)

    def _create_table(self) -> None:
        """Create the table unless another process has created it."""
        with self._errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._connection(write=True) as db:
            _enable_wal(db)
            db.execute("BEGIN IMMEDIATE")
            if db.execute("PRAGMA user_version").fetchone()[0] == 0:
                db.execute(TABLE)
                db.execute(f"PRAGMA application_id = {APPLICATION}")
                db.execute(f"PRAGMA user_version = {VERSION}")
            db.execute("COMMIT")
        self._created = True

    def _is_missing(self) -> bool:
        return not self.path.exists() or (self.path.is_file() and not self.path.stat().st_size)

    @contextmanager
    def _connection(self, *, write: bool = False) -> Iterator[sqlite3.Connection]:
        """A connection for one call: SQLite ties a connection to the thread that opened it."""
        with self._errors(), ExitStack() as stack:
            db = self._connect() if write else self._reader(stack)
            try:
                db.row_factory = sqlite3.Row
                db.execute("PRAGMA synchronous = FULL")  # a commit waits for the disk
                yield db
            finally:
                db.close()  # rolls back uncommitted changes

    def _reader(self, stack: ExitStack) -> sqlite3.Connection:
        """A connection for reading, which works even if SQLite cannot write files beside the database."""
        db = sqlite3.connect(":memory:") if self._is_missing() else self._connect()
        try:
            return _with_table(db)
        except sqlite3.OperationalError as error:
            db.close()
            if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN):
                raise
        if self.problem is None:  # a full disk: one process alone keeps the index in memory
            db = self._connect()
            db.execute("PRAGMA locking_mode = EXCLUSIVE")
            return _with_table(db)
        folder = Path(stack.enter_context(TemporaryDirectory()))  # read-only, with rows in the WAL
        for name in (self.path.name, f"{self.path.name}-wal"):
            shutil.copyfile(self.path.with_name(name), folder / name)
        return _with_table(sqlite3.connect(folder / self.path.name))

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._uri(), timeout=LOCK_TIMEOUT_S, isolation_level=None, uri=True)

    def _uri(self) -> str:
        """The file as a URI; `immutable` stops a WAL-mode reader from writing files beside it."""
        uri = self.path.absolute().as_uri()
        wal = self.path.with_name(f"{self.path.name}-wal")  # `immutable` would hide its rows
        return uri if self.problem is None or wal.exists() else f"{uri}?immutable=1"

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            code = error.sqlite_errorcode & 0xFF
            kind = DiskFullError if code in DISK_FULL else DatasetError
            reason = REASONS.get(code, "check that the file and its folder can be read and written")
            raise kind(f"{self.path}: cannot be used ({error}): {reason}") from error
        except (sqlite3.DatabaseError, ValueError, TypeError, KeyError) as error:
            raise self._damaged(str(error)) from error
        except OSError as error:
            kind = DiskFullError if error.errno in (errno.ENOSPC, errno.EDQUOT) else DatasetError
            raise kind(f"{self.path}: cannot be used ({error.strerror})") from error

    def _damaged(self, reason: str) -> DatasetError:
        return DatasetError(
            f"{self.path}: damaged, or not a database ({' '.join(reason.split())}). The file was "
            "not changed: move it away or restore a copy, then start again"
        )


def _writable(path: Path) -> bool:
    """Whether the file, and the files that SQLite puts beside it, can be created and written."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    return os.access(folder, os.W_OK) and (not path.exists() or os.access(path, os.W_OK))


def _with_table(db: sqlite3.Connection) -> sqlite3.Connection:
    """The connection, with an empty table in memory if the file has none yet."""
    if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'judgements'").fetchone():
        db.execute(TABLE.replace("CREATE", "CREATE TEMP", 1))
    return db


def _enable_wal(db: sqlite3.Connection) -> None:
    """Enable WAL mode with retries: SQLite's timeout does not cover two processes doing it at once."""
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _find(db: sqlite3.Connection, id: str) -> Judgement | None:
    row = db.execute(f"{SELECT} WHERE id = ?", (id,)).fetchone()
    return None if row is None else from_row(row)


def as_row(judgement: Judgement) -> dict[str, Any]:
    """A judgement as the values of `COLUMNS`."""
    values = asdict(judgement)
    for name in AS_JSON:
        if values[name] is not None:
            values[name] = json.dumps(values[name], ensure_ascii=False)
    return values


def from_row(row: Sequence[Any], parse_shared: Callable[[str], Any] = json.loads) -> Judgement:
    """The judgement of the values of `COLUMNS`, in this order."""
    values = dict(zip(COLUMNS, row, strict=True))
    for name in AS_JSON:
        if values[name] is not None:
            values[name] = (parse_shared if name in SHARED else json.loads)(values[name])
    values["prompt"] = tuple(values["prompt"])
    values["replies"] = tuple(Reply(**reply) for reply in values["replies"])
    for name in ("ranks", "likert"):
        values[name] = None if values[name] is None else tuple(values[name])
    if values["flags"] is not None:
        values["flags"] = tuple(map(tuple, values["flags"]))
    return Judgement(**values)
