"""The judgements on disk: one SQLite file that several processes write to at once."""

import functools
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from toolkit.app.judgements.judgement import Judgement, Reply
from toolkit.errors import ConfigError, DatasetError

FILE = "judgements.sqlite"
VERSION = 1
APPLICATION = 0x524C4846  # "RLHF": tells the file from another program's database
BUSY_S = 30.0  # how long a writer waits for the others
READ_ONLY = (
    "{path}: cannot be written, so judgements are not stored; start the app with --judgements FILE "
    "in a folder that can be"
)
COLUMNS = (
    *("id", "kind", "prompt", "replies", "sampling", "base", "verdict", "ranks", "likert"),
    *("flags", "reason", "labeler", "time"),
)
SHARED = ("prompt", "sampling", "base")  # judgements often have the same
AS_JSON = ("prompt", "replies", "sampling", "base", "ranks", "likert", "flags")
TABLE = """
CREATE TABLE judgements (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL CHECK (kind IN ('battle', 'ranking')),
    prompt TEXT NOT NULL,
    replies TEXT NOT NULL,
    sampling TEXT NOT NULL,
    base TEXT NOT NULL,
    verdict TEXT CHECK (verdict IN ('a', 'b', 'tie', 'both_bad', 'skip')),
    ranks TEXT,
    likert TEXT,
    flags TEXT,
    reason TEXT NOT NULL,
    labeler TEXT NOT NULL,
    time TEXT NOT NULL,
    CHECK ((kind = 'battle') = (verdict IS NOT NULL) AND (kind = 'ranking') = (ranks IS NOT NULL))
) STRICT
"""


@dataclass(frozen=True)
class Tally:
    """How many judgements there are: battles by verdict, rankings, and answers in these.

    `prompts` are different ones, `labelers` those with a name.
    """

    verdicts: Mapping[str, int]
    rankings: int
    ranked: int
    prompts: int
    labelers: int

    @property
    def judgements(self) -> int:
        """All of them."""
        return sum(self.verdicts.values()) + self.rankings


class Store:
    """Judgements in one file. Safe to use from several threads and processes."""

    def __init__(self, path: Path) -> None:
        """Open the file, or make it where there is none.

        Where nothing can be written, `problem` says so: what is there can be read, and `add` raises.

        Raises: DatasetError where it is damaged, of another program or of a later version; it is
            left as it is then.
        """
        self.path = path
        self.problem = None if _writable(path) else READ_ONLY.format(path=path)
        if path.exists() and (not path.is_file() or path.stat().st_size):
            self._inspect()
        if self.problem is not None:
            return
        with self._errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._make()

    def add(self, judgement: Judgement) -> bool:
        """Store a judgement; it is on the disk when this returns.

        Returns: False where the same judgement was stored before.
        Raises: ConfigError where its id was judged otherwise, DatasetError where it cannot be
            written; it is not stored then.
        """
        if self.problem is not None:
            raise DatasetError(self.problem)
        row = as_row(judgement)
        with self._connection() as db:
            db.execute("BEGIN IMMEDIATE")  # nobody else writes between the look and the insertion
            stored = _find(db, judgement.id)
            if stored is None:
                values = ", ".join(f":{name}" for name in COLUMNS)
                db.execute(
                    f"INSERT INTO judgements ({', '.join(COLUMNS)}) VALUES ({values})",
                    row,
                )
            db.execute("COMMIT")
        if stored is None:
            return True
        if stored.said != judgement.said:
            raise ConfigError(
                "this was judged before, and otherwise; the first judgement stands. Ask for new "
                "answers to judge again"
            )
        return False

    def get(self, id: str) -> Judgement | None:
        """The judgement of that id, if there is one."""
        if self._nothing_there:
            return None
        with self._connection() as db:
            return _find(db, id)

    def all(self) -> list[Judgement]:
        """Every judgement, in the order in which they were stored."""
        if self._nothing_there:
            return []
        with self._connection() as db:
            rows = db.execute(f"SELECT {', '.join(COLUMNS)} FROM judgements ORDER BY number")
            read = functools.cache(json.loads)  # thousands share a prompt, a base, their sampling
            return [_from_row(row, read) for row in rows]

    def count(self) -> int:
        """How many judgements there are."""
        if self._nothing_there:
            return 0
        with self._connection() as db:
            return int(db.execute("SELECT count(*) FROM judgements").fetchone()[0])

    def tally(self) -> Tally:
        """How many there are of what, without reading them all."""
        if self._nothing_there:
            return Tally({}, 0, 0, 0, 0)
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

    @property
    def _nothing_there(self) -> bool:
        return self.problem is not None and not self.path.exists()

    def _inspect(self) -> None:
        """Check an existing file before anything is written to it."""
        with self._connection() as db:
            application = db.execute("PRAGMA application_id").fetchone()[0]
            version = db.execute("PRAGMA user_version").fetchone()[0]
            fault = db.execute("PRAGMA quick_check(1)").fetchone()[0]
            tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if fault != "ok":
            raise self._damaged(fault)
        if application != APPLICATION and tables:
            raise DatasetError(f"{self.path}: a database, but not of judgements; name another file")
        if version > VERSION:
            raise DatasetError(
                f"{self.path}: its schema is version {version}, and this program knows {VERSION}; "
                "use the program that wrote it, or name another file"
            )

    def _make(self) -> None:
        """Create the table unless another process has done so."""
        with self._connection() as db:
            _write_ahead(db)
            db.execute("BEGIN IMMEDIATE")
            if db.execute("PRAGMA user_version").fetchone()[0] == 0:
                db.execute(TABLE)
                db.execute(f"PRAGMA application_id = {APPLICATION}")
                db.execute(f"PRAGMA user_version = {VERSION}")
            db.execute("COMMIT")

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        with self._errors():
            # one for each call: a connection belongs to the thread that made it
            db = sqlite3.connect(self._address(), timeout=BUSY_S, isolation_level=None, uri=True)
            try:
                db.row_factory = sqlite3.Row
                db.execute("PRAGMA synchronous = FULL")  # a commit waits for the disk
                yield db
            finally:
                db.close()  # what was not committed is rolled back

    def _address(self) -> str:
        """The file as a URI. A reader in WAL mode writes files beside it, unless told not to."""
        address = self.path.absolute().as_uri()
        wal = self.path.with_name(f"{self.path.name}-wal")  # its rows would not be seen
        return address if self.problem is None or wal.exists() else f"{address}?immutable=1"

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise DatasetError(f"{self.path}: cannot be used ({error})") from error
        except (sqlite3.DatabaseError, ValueError, TypeError, KeyError) as error:
            raise self._damaged(str(error)) from error
        except OSError as error:
            raise DatasetError(f"{self.path}: cannot be used ({error.strerror})") from error

    def _damaged(self, why: str) -> DatasetError:
        return DatasetError(
            f"{self.path}: damaged, or no database ({' '.join(why.split())}). It is left as it is: "
            "move it away or restore a copy, and start again"
        )


def _writable(path: Path) -> bool:
    """Whether a file, and what SQLite puts beside it, can be written or made."""
    there = next(folder for folder in path.absolute().parents if folder.exists())
    return os.access(there, os.W_OK) and (not path.exists() or os.access(path, os.W_OK))


def _write_ahead(db: sqlite3.Connection) -> None:
    """Turn WAL on; SQLite does not wait for others who do the same at this moment."""
    until = time.monotonic() + BUSY_S
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.01)


def _find(db: sqlite3.Connection, id: str) -> Judgement | None:
    found = db.execute(f"SELECT {', '.join(COLUMNS)} FROM judgements WHERE id = ?", (id,))
    row = found.fetchone()
    return None if row is None else _from_row(row)


def as_row(judgement: Judgement) -> dict[str, Any]:
    """What `COLUMNS` hold of a judgement."""
    values = asdict(judgement)
    for name in AS_JSON:
        if values[name] is not None:
            values[name] = json.dumps(values[name], ensure_ascii=False)
    return values


def _from_row(row: sqlite3.Row, read: Callable[[str], Any] = json.loads) -> Judgement:
    values = dict(zip(COLUMNS, row, strict=True))
    for name in AS_JSON:
        if values[name] is not None:
            values[name] = (read if name in SHARED else json.loads)(values[name])
    values["prompt"] = tuple(values["prompt"])
    values["replies"] = tuple(Reply(**reply) for reply in values["replies"])
    for name in ("ranks", "likert"):
        values[name] = None if values[name] is None else tuple(values[name])
    if values["flags"] is not None:
        values["flags"] = tuple(tuple(one) for one in values["flags"])
    return Judgement(**values)
