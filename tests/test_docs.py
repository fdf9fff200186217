"""What the docs point to exists."""

import re

from tests.conftest import ROOT


def test_every_trap_names_a_test_that_exists():
    text = (ROOT / "docs" / "ppo.md").read_text(encoding="utf-8")
    traps = text.split("## Traps", 1)[1].split("\n## ", 1)[0]
    rows = [line for line in traps.splitlines() if line.startswith("|")][2:]
    assert len(rows) >= 24
    for row in rows:
        file, found = "", re.findall(r"`(tests/[\w/]+\.py)?::(\w+)`", row)
        assert found, row
        for named, test in found:
            file = named or file
            assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), (file, test)
