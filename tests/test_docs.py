"""What the docs point to exists, and what there is stands in the docs."""

import dataclasses
import re

import pytest

from tests.conftest import ROOT
from toolkit.evaluation.metrics import RATES
from toolkit.groups.config import GroupOptions
from toolkit.options.arguments import OnlineArguments, PPOArguments
from toolkit.ppo.config import OnlineOptions, PPOConfig


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


@pytest.mark.parametrize(
    ("page", "classes"),
    [
        ("ppo.md", (OnlineOptions, PPOConfig, OnlineArguments, PPOArguments)),
        ("rl.md", (OnlineOptions, GroupOptions, OnlineArguments)),
    ],
)
def test_every_option_of_ppo_and_groups_is_explained(page, classes):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    others = {"learning_rate", "adam_epsilon", "remove_unused_columns", "trust_remote_code"}
    others |= {"named_in_ppo", "with_other_bounds", "num_generations_eval"}
    for name in {name for kind in classes for name in vars(kind)["__annotations__"]} - others:
        assert f"`{name}`" in text, name


def test_every_rate_is_explained():
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    for name in RATES:
        assert f"`rates.{name}`" in text, name


# of TRL 1.12's PPOConfig: its own, and those with a default of its own; not what it computes
OLD_OPTIONS = {
    "learning_rate": 3e-6,
    "adam_epsilon": 1e-8,
    "gradient_checkpointing": True,
    "dataset_num_proc": None,
    "num_mini_batches": 1,
    "total_episodes": None,
    "local_rollout_forward_batch_size": 64,
    "num_sample_generations": 10,
    "response_length": 53,
    "stop_token": None,
    "stop_token_id": None,
    "temperature": 0.7,
    "missing_eos_penalty": None,
    "sft_model_path": "EleutherAI/pythia-160m",
    "reward_model_path": "EleutherAI/pythia-160m",
    "model_adapter_name": None,
    "ref_adapter_name": None,
    "num_ppo_epochs": 4,
    "whiten_rewards": False,
    "kl_coef": 0.05,
    "kl_estimator": "k1",
    "cliprange": 0.2,
    "vf_coef": 0.1,
    "cliprange_value": 0.2,
    "gamma": 1.0,
    "lam": 0.95,
    "ds3_gather_for_generation": True,
}


def test_old_ppo_options_are_the_same_or_documented():
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    table = text.split("## From `trl.experimental.ppo` to here", 1)[1].split("\n## ", 1)[0]
    ours = {field.name: field.default for field in dataclasses.fields(PPOConfig)}
    for name, default in OLD_OPTIONS.items():
        assert ours.get(name, "none") == default or f"`{name}`" in table, name
