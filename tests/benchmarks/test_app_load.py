"""The judgements that the app's pages are timed with are those that it would store."""

from pathlib import Path

import pytest

from benchmarks.app_load import filled, made_up, pages
from toolkit.app.judgements.store import Store


def test_what_is_timed_is_read_rated_and_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = made_up(200, 8)
    assert said == made_up(200, 8)
    store = filled(tmp_path / "j.sqlite", said)
    assert Store(store.path).all() == said
    assert store.tally().rankings == 20
    pages(store, tmp_path / "export")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and lines[-1].endswith("rows exported")
    assert (tmp_path / "export" / "ranked.jsonl").read_text().count("\n") == 20
