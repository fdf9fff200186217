"""Every acknowledged judgement is on the disk exactly once, even if processes are killed."""

import json
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.app.full_disk import free_space, with_full_disk
from tests.app.judgements.judgements import battle, ranking
from tests.conftest import ROOT
from toolkit.app.judgements.judgement import complete_judgement, order_text, parse_order
from toolkit.app.judgements.store import INSERT, READ_ONLY, VERSION, Store, Tally, as_row
from toolkit.errors import ConfigError, DatasetError

PROCESSES, VOTES = 4, 100
WRITER = """
import sys
from pathlib import Path
from tests.app.judgements.judgements import battle
from toolkit.app.judgements.store import Store
store, who = Store(Path(sys.argv[1])), sys.argv[2]
for i in range(int(sys.argv[3])):
    for shared in ("", "shared "):  # every process votes on the shared ids
        id = f"{shared}{'' if shared else who} {i}"
        store.add(battle(id, "sft", "dpo", "ab"[i % 2]))
        print(id, flush=True)
"""


def test_judgements_round_trip(tmp_path: Path) -> None:
    store = Store(tmp_path / "new" / "j.sqlite")
    judgements = [
        battle("1", "sft", "base", "b", reason="Füß\n<b>", labeler="é"),
        battle("2", "sft", "dpo", "skip"),
        ranking(
            *("3", "sft sft dpo base", (2, 1, 2, 3)),
            likert=(7, None, 1, 2),
            flags=((), ("harmful", "off_task"), (), ()),
        ),
    ]
    assert [store.add(j) for j in judgements] == [True, True, True]
    assert Store(store.path).all() == judgements
    assert store.count() == 3
    assert store.get("3") == judgements[2]
    assert store.get("4") is None


def test_shared_columns_are_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "j.sqlite")
    judgements = [battle(f"{n}", "sft", "dpo", "a", prompt=f"Why {n % 3}?") for n in range(30)]
    for judgement in judgements:
        store.add(judgement)
    parsed: list[str] = []
    loads = json.loads
    monkeypatch.setattr(json, "loads", lambda text: parsed.append(text) or loads(text))
    assert store.all() == judgements
    assert len(parsed) == 30 + 3 + 1 + 1  # answers, distinct prompts, one sampling, one base


def test_tally_counts_judgements_by_kind(tmp_path: Path) -> None:
    store = Store(tmp_path / "j.sqlite")
    assert store.tally() == Tally({}, 0, 0, 0, 0)
    votes = [("a", "me"), ("a", ""), ("both_bad", "you"), ("skip", "me")]
    for number, (verdict, labeler) in enumerate(votes):
        prompt = f"Prompt {number // 2}?"
        store.add(battle(f"b{number}", "sft", "dpo", verdict, labeler=labeler, prompt=prompt))
    store.add(ranking("r0", "sft dpo sft dpo base", (1, 2, 2, 3, 4), prompt="Prompt 0?"))
    store.add(ranking("r1", "sft dpo sft dpo", (1, 2, 2, 3), prompt="Prompt 9?"))
    assert store.tally() == Tally({"a": 2, "both_bad": 1, "skip": 1}, 2, 9, 3, 2)
    assert store.tally().judgements == 6 == len(store.all())


def test_repeated_vote_is_stored_once_and_another_rejected(tmp_path: Path) -> None:
    store = Store(tmp_path / "j.sqlite")
    first = battle("1", "sft", "dpo", "a", time="2026-01-01T00:00:00Z")
    assert store.add(first)
    assert not store.add(battle("1", "sft", "dpo", "a", time="2026-01-01T00:00:09Z"))
    with pytest.raises(ConfigError, match="already have another judgement"):
        store.add(battle("1", "sft", "dpo", "b"))
    assert store.all() == [first]


def test_judgements_are_edited_and_deleted_with_a_trace(tmp_path: Path) -> None:
    store = Store(tmp_path / "j.sqlite")
    first, second = battle("1", "sft", "dpo", "a"), battle("2", "sft", "dpo", "b")
    for judgement in (first, second):
        store.add(judgement)
    edited = battle("1", "sft", "dpo", "tie", reason="wrong key")
    versions = [store.version()]
    store.replace(first, edited)
    versions.append(store.version())
    assert store.all() == [edited, second] == list(store.newest(9).values())[::-1]
    assert list(store.newest(1).items()) == [(2, second)]
    for after in (None, second):  # another visitor was faster
        with pytest.raises(ConfigError, match="changed or deleted in the meantime"):
            store.replace(first, after)
    store.replace(second, None)
    versions.append(store.version())
    assert store.all() == [edited] and len(set(versions)) == 3
    with sqlite3.connect(store.path) as db:
        changes = db.execute("SELECT action, judgement FROM changes ORDER BY number").fetchall()
    assert [(action, json.loads(old)["verdict"]) for action, old in changes] == [
        ("edited", "a"),
        ("deleted", "b"),
    ]


def test_writes_are_synchronous_in_wal_mode(tmp_path: Path) -> None:
    store = Store(tmp_path / "j.sqlite")
    with store._connection() as db:
        assert db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        assert db.execute("PRAGMA synchronous").fetchone()[0] == 2  # FULL


@pytest.mark.slow
def test_no_vote_is_lost_when_a_process_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "j.sqlite"
    outputs = [tmp_path / f"{number}.out" for number in range(PROCESSES)]
    writers = []
    for number, output in enumerate(outputs):  # all start at once and race to create the file
        with output.open("w") as stdout:
            command = [sys.executable, "-c", WRITER, str(file), str(number), str(VOTES)]
            writers.append(subprocess.Popen(command, stdout=stdout, cwd=ROOT))
    victim = outputs[0]
    while len(victim.read_text().splitlines()) < 40:
        assert writers[0].poll() is None
        time.sleep(0.005)
    os.kill(writers[0].pid, signal.SIGKILL)
    codes = [writer.wait(120) for writer in writers]
    assert codes == [-signal.SIGKILL] + [0] * (PROCESSES - 1)
    acknowledged = {line for out in outputs for line in out.read_text().split("\n")[:-1]}
    assert len(acknowledged) >= (PROCESSES - 1) * VOTES + VOTES + 20
    assert len(victim.read_text().splitlines()) < 2 * VOTES
    ids = [j.id for j in Store(file).all()]
    assert len(ids) == len(set(ids))
    assert acknowledged <= set(ids)
    assert len(set(ids) - acknowledged) <= 1  # stored, but killed before the acknowledgement
    with sqlite3.connect(file) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def _vote(file: Path, verdict: str) -> str:
    try:
        return str(Store(file).add(battle("same", "sft", "dpo", verdict)))
    except ConfigError:
        return "rejected"


def test_one_of_several_simultaneous_votes_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "j.sqlite"
    Store(file)
    with multiprocessing.get_context("fork").Pool(4) as pool:
        results = pool.starmap(_vote, [(file, v) for v in ("a", "b", "a", "tie") * 5])
    assert results.count("True") == 1
    assert "rejected" in results
    assert Store(file).count() == 1


@pytest.mark.parametrize("damage", ["text", "head", "middle"])
def test_damaged_file_raises_and_is_not_changed(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "j.sqlite"
    Store(file)
    rows = [as_row(battle(str(i), "sft", "dpo", "a", reason="x" * 500)) for i in range(200)]
    with sqlite3.connect(file) as db:
        db.executemany(INSERT, rows)
    db.close()
    content = bytearray(file.read_bytes())
    if damage == "text":
        content = bytearray(b"not a database at all, but some notes of mine" * 40)
    elif damage == "head":
        content[:100] = b"\xff" * 100
    else:
        content[4096:40960] = b"\xff" * (40960 - 4096)
    file.write_bytes(content)
    with pytest.raises(
        DatasetError, match=r"j\.sqlite: damaged, or not a database .* move it away"
    ):
        Store(file)
    assert file.read_bytes() == content


def test_foreign_database_and_later_version_are_rejected(tmp_path: Path) -> None:
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE recipes (cake TEXT)")
    before = other.read_bytes()
    with pytest.raises(DatasetError, match="of another program"):
        Store(other)
    assert other.read_bytes() == before
    later = tmp_path / "later.sqlite"
    Store(later)
    with sqlite3.connect(later) as db:
        db.execute(f"PRAGMA user_version = {VERSION + 1}")
    with pytest.raises(DatasetError, match=f"version {VERSION + 1} is newer than {VERSION}"):
        Store(later)


def test_impossible_path_raises(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "j.sqlite"):
        with pytest.raises(DatasetError, match="cannot be used"):
            Store(path)


def _as_nobody(work: Callable[[], list[object]]) -> list[object]:
    """What `work` returns in a process without root's right to write everywhere."""
    with multiprocessing.get_context("fork").Pool(1, _drop_root) as pool:
        return pool.apply(work)


def _drop_root() -> None:
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)


def _try(file: Path) -> list[object]:
    store = Store(file)
    try:
        store.add(battle("new", "sft", "dpo", "a"))
    except DatasetError as error:
        return [store.count(), [j.id for j in store.all()], store.get("none"), str(error)]
    return ["stored"]


def test_read_only_store_can_be_read() -> None:
    with tempfile.TemporaryDirectory() as name:  # other users cannot enter tmp_path
        folder = Path(name)
        existing = Store(folder / "kept # ?.sqlite")
        existing.add(battle("old", "sft", "dpo", "b"))
        folder.chmod(0o555)
        try:
            for file, ids in ((folder / "new" / "j.sqlite", []), (existing.path, ["old"])):
                *contents, error = _as_nobody(partial(_try, file))
                assert contents == [len(ids), ids, None]
                assert error == READ_ONLY.format(path=file)
        finally:
            folder.chmod(0o755)


@pytest.mark.parametrize(
    ("order", "ranks"),
    [
        ("3 > 1 = 2 > 4", (2, 2, 1, 3)),
        ("4>3>2>1", (4, 3, 2, 1)),
        (" 1=2 =3= 4 ", (1, 1, 1, 1)),
    ],
)
def test_order_is_parsed(order: str, ranks: tuple[int, ...]) -> None:
    assert parse_order(order, 4) == ranks
    assert parse_order(order_text(ranks), 4) == ranks


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ("", "'nothing'"),
        (None, "'nothing'"),
        ("1 > 2 > 3", "missing: 4"),
        ("1 > 2 > 2 > 3", "answer 2 appears twice"),
        ("1 > 5 > 2 > 3", "from 1 to 4"),
        ("1 > 2 > 3 > 4 >", "'nothing'"),
        ("1, 2, 3, 4", "from 1 to 4"),
        ("1 > -2", "'-2'"),
        ("1 > " + "9" * 5000, "from 1 to 4"),
    ],
)
def test_invalid_order_raises(order: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_order(order, 4)


@pytest.mark.parametrize(
    "labeler_input",
    [
        {"ranks": (1, 2, 3)},
        {"ranks": (0, 1, 2, 3)},
        {"ranks": (2, 2, 2, 3)},
        {"ranks": (1, True, 2, 3)},
        {"ranks": "1234"},
        {"ranks": (1, 2, 3, 10**9)},
        {"ranks": (1, 2, 3, 4), "likert": (8, 1, 1, 1)},
        {"ranks": (1, 2, 3, 4), "likert": (1,)},
        {"ranks": (1, 2, 3, 4), "flags": [["nice"], [], [], []]},
        {"ranks": (1, 2, 3, 4), "flags": ["harmful", [], [], []]},
    ],
)
def test_invalid_ranking_raises(labeler_input: dict[str, object]) -> None:
    pending = ranking("1", "sft sft dpo base", None)
    with pytest.raises(ConfigError):
        complete_judgement(pending, time="", **labeler_input)  # type: ignore[arg-type]


def test_labeler_text_is_printable_and_never_cut() -> None:
    judgement = complete_judgement(
        battle("1", "sft", "dpo", None),
        verdict="a",
        reason="x\0\ud800\n" * 600,
        labeler=" A\nnn ",
        likert=[None] * 2,
        time="t",
    )
    assert judgement.labeler == "Ann"
    assert len(judgement.reason) == 1799
    assert "\0" not in judgement.reason and "x?\nx" in judgement.reason
    assert judgement.likert is None
    for field, longest in (("reason", 2000), ("labeler", 80)):
        with pytest.raises(ConfigError, match=f"has {longest + 1} characters, at most {longest}"):
            complete_judgement(
                battle("1", "sft", "dpo", None),
                time="t",
                verdict="a",
                **{field: "x" * (longest + 1)},
            )


def _read_and_vote(folder: Path) -> list[object]:
    """Read and vote with a full disk, then vote again once there is space."""
    store = Store(folder / "j.sqlite")
    before = [j.id for j in store.all()], store.count(), store.tally().judgements
    with pytest.raises(DatasetError) as error:
        store.add(battle("new", "sft", "dpo", "a"))
    free_space()
    return [*before, store.problem, str(error.value), store.add(battle("new", "sft", "dpo", "a"))]


@pytest.mark.parametrize("existing", ["none", "empty file", "closed", "killed writer"])
def test_full_disk_allows_reading_and_names_the_fix(tmp_path: Path, existing: str) -> None:
    file, ids = tmp_path / "j.sqlite", []
    if existing == "empty file":
        file.touch()
    elif existing != "none":
        Store(file).add(battle("old", "sft", "dpo", "b"))
        ids = ["old"]
    if existing == "killed writer":
        _kill_writer(file)
        assert file.with_name("j.sqlite-wal").stat().st_size
        file.with_name("j.sqlite-shm").unlink()
        ids.append("in WAL")
    *read, problem, error, stored = with_full_disk(tmp_path, _read_and_vote)
    assert read == [ids, len(ids), len(ids)]
    assert problem is None
    assert "nothing was stored, because the disk is full or faulty; free some space" in str(error)
    assert stored
    assert [j.id for j in Store(file).all()] == [*ids, "new"]


def _kill_writer(file: Path) -> None:
    """Store a judgement in a process that is killed before SQLite moves it from the WAL."""
    child = os.fork()
    if child == 0:
        db = sqlite3.connect(file, isolation_level=None)
        db.execute(INSERT, as_row(battle("in WAL", "sft", "dpo", "a")))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)


def test_read_only_folder_with_rows_in_wal_can_be_read() -> None:
    with tempfile.TemporaryDirectory() as name:  # other users cannot enter tmp_path
        folder = Path(name)
        file = folder / "j.sqlite"
        Store(file).add(battle("old", "sft", "dpo", "b"))
        _kill_writer(file)
        (folder / "j.sqlite-shm").unlink()
        for path in (*folder.iterdir(), folder):
            path.chmod(0o555)
        try:
            _, ids, _, error = _as_nobody(partial(_try, file))
        finally:
            folder.chmod(0o755)
        assert ids == ["old", "in WAL"]
        assert error == READ_ONLY.format(path=file)


def test_locked_file_names_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolkit.app.judgements.store.LOCK_TIMEOUT_S", 0.05)
    store = Store(tmp_path / "j.sqlite")
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert store.count() == 0
    with pytest.raises(DatasetError, match="another program has locked it; close that program"):
        store.add(battle("new", "sft", "dpo", "a"))
    other.execute("ROLLBACK")
    assert store.add(battle("new", "sft", "dpo", "a"))


def test_deleted_file_is_made_again(tmp_path: Path) -> None:
    store = Store(tmp_path / "j.sqlite")
    store.path.unlink()
    assert store.all() == []
    assert store.add(battle("new", "sft", "dpo", "a"))
    assert store.count() == 1
