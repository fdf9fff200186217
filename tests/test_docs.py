"""What the docs point to exists, and what there is stands in the docs."""

import re

from tests.conftest import ROOT
from toolkit.arguments import PPOArguments
from toolkit.evaluation.metrics import RATES
from toolkit.trainers.ppo_config import PPOConfig


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


def test_every_option_of_ppo_is_explained():
    text = (ROOT / "docs" / "ppo.md").read_text(encoding="utf-8")
    transformers_own = {"learning_rate", "adam_epsilon", "remove_unused_columns"}
    for name in {*vars(PPOConfig)["__annotations__"], *vars(PPOArguments)["__annotations__"]}:
        if name not in transformers_own | {"trust_remote_code"}:
            assert f"`{name}`" in text, name


def test_every_rate_is_explained():
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    for name in RATES:
        assert f"`rates.{name}`" in text, name
