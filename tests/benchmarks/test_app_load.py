"""The random judgements of the load benchmark are valid judgements."""

from pathlib import Path

import pytest

from benchmarks.app_load import filled, random_judgements, time_judgements
from toolkit.app.judgements.store import Store


def test_random_judgements_are_read_rated_and_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judgements = random_judgements(200, 8)
    assert judgements == random_judgements(200, 8)
    store = filled(tmp_path / "j.sqlite", judgements)
    assert Store(store.path).all() == judgements
    assert store.tally().rankings == 20
    time_judgements(store, tmp_path / "export")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and lines[-1].endswith("rows exported")
    assert (tmp_path / "export" / "ranked.jsonl").read_text().count("\n") == 20
