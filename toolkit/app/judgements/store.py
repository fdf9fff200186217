"""The judgements on disk: one SQLite file that several processes can write at the same time."""

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
APPLICATION = 0x524C4846  # "RLHF": distinguishes the file from another program's database
LOCK_TIMEOUT_S = 30.0
READ_ONLY = (
    "{path}: not writable, so judgements cannot be stored; start the app with --judgements FILE "
    "in a writable folder"
)
COLUMNS = (
    *("id", "kind", "prompt", "replies", "sampling", "base", "verdict", "ranks", "likert"),
    *("flags", "reason", "labeler", "time"),
)
SHARED = ("prompt", "sampling", "base")  # often equal in many judgements
AS_JSON = ("prompt", "replies", "sampling", "base", "ranks", "likert", "flags")
SELECT = f"SELECT {', '.join(COLUMNS)} FROM judgements"
TABLE = Path(__file__).with_name("table.sql").read_text(encoding="utf-8")
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


class Store:
    """Judgements in one file. Safe to use from several threads and processes."""

    def __init__(self, path: Path) -> None:
        """Open the file, or create it if it does not exist.

        If the file is not writable, `problem` contains the reason: reading works, `add` raises.

        Raises: DatasetError if the file is damaged, belongs to another program or to a later
            version. The file is not modified then.
        """
        self.path = path
        self.problem = None if _writable(path) else READ_ONLY.format(path=path)
        if path.exists() and (not path.is_file() or path.stat().st_size):
            self._inspect()
        if self.problem is not None:
            return
        with self._errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._create_table()

    def add(self, judgement: Judgement) -> bool:
        """Store a judgement; it is on the disk when this returns.

        Returns: False if the same judgement is already stored.
        Raises: ConfigError if its id is stored with another verdict, DatasetError if the file cannot
            be written. The judgement is not stored then.
        """
        if self.problem is not None:
            raise DatasetError(self.problem)
        with self._connection() as db:
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

    def get(self, id: str) -> Judgement | None:
        """The judgement with that id, or None."""
        with self._connection() as db:
            return _find(db, id)

    def all(self) -> list[Judgement]:
        """Every judgement, in the order of storing."""
        with self._connection() as db:
            rows = db.execute(f"{SELECT} ORDER BY number")
            parse = functools.cache(json.loads)  # thousands of rows share their `SHARED` columns
            return [_from_row(row, parse) for row in rows]

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

    def _inspect(self) -> None:
        """Check an existing file before anything is written to it."""
        with self._connection() as db:
            application = db.execute("PRAGMA application_id").fetchone()[0]
            version = db.execute("PRAGMA user_version").fetchone()[0]
            check = db.execute("PRAGMA quick_check(1)").fetchone()[0]
            tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if check != "ok":
            raise self._damaged(check)
        if application != APPLICATION and tables:
            raise DatasetError(
                f"{self.path}: a database of another program, without judgements; choose another file"
            )
        if version > VERSION:
            raise DatasetError(
                f"{self.path}: schema version {version} is newer than {VERSION}, the version of "
                "this program; update the program or choose another file"
            )

    def _create_table(self) -> None:
        """Create the table unless another process has created it."""
        with self._connection() as db:
            _enable_wal(db)
            db.execute("BEGIN IMMEDIATE")
            if db.execute("PRAGMA user_version").fetchone()[0] == 0:
                db.execute(TABLE)
                db.execute(f"PRAGMA application_id = {APPLICATION}")
                db.execute(f"PRAGMA user_version = {VERSION}")
            db.execute("COMMIT")

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """A connection for one call: SQLite ties a connection to the thread that opened it."""
        missing = self.problem is not None and not self.path.exists()
        uri = "file::memory:" if missing else self._uri()
        with self._errors():
            db = sqlite3.connect(uri, timeout=LOCK_TIMEOUT_S, isolation_level=None, uri=True)
            try:
                db.row_factory = sqlite3.Row
                db.execute("PRAGMA synchronous = FULL")  # a commit waits for the disk
                if missing:
                    db.execute(TABLE)  # reading gives no judgements
                yield db
            finally:
                db.close()  # rolls back what was not committed

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
            raise DatasetError(f"{self.path}: cannot be used ({error})") from error
        except (sqlite3.DatabaseError, ValueError, TypeError, KeyError) as error:
            raise self._damaged(str(error)) from error
        except OSError as error:
            raise DatasetError(f"{self.path}: cannot be used ({error.strerror})") from error

    def _damaged(self, reason: str) -> DatasetError:
        return DatasetError(
            f"{self.path}: damaged, or not a database ({' '.join(reason.split())}). The file was "
            "not changed: move it away or restore a copy, then start again"
        )


def _writable(path: Path) -> bool:
    """Whether the file, and the files that SQLite puts beside it, can be created and written."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    return os.access(folder, os.W_OK) and (not path.exists() or os.access(path, os.W_OK))


def _enable_wal(db: sqlite3.Connection) -> None:
    """Enable WAL mode, retrying: SQLite's timeout does not cover two processes that do so at once."""
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
    return None if row is None else _from_row(row)


def as_row(judgement: Judgement) -> dict[str, Any]:
    """A judgement as the values of `COLUMNS`."""
    values = asdict(judgement)
    for name in AS_JSON:
        if values[name] is not None:
            values[name] = json.dumps(values[name], ensure_ascii=False)
    return values


def _from_row(row: sqlite3.Row, parse_shared: Callable[[str], Any] = json.loads) -> Judgement:
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
