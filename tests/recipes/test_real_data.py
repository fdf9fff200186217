"""SFT, reward, DPO and PPO on files that nobody here wrote."""

import importlib.util
import json

import pytest

from tests.conftest import ROOT, SHARED
from toolkit.config import parse

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="the shared real data is not here"),
]
HH = SHARED / "data" / "hh_rlhf_harmless.jsonl.gz"
ALPACA = SHARED / "data" / "alpaca_instructions.json"
COMMON = ["--max_rows", "16", "--max_length", "512", "--per_device_train_batch_size", "4"]


def call(recipe, *words):
    """Run a recipe in this process, as its command line would."""
    spec = importlib.util.spec_from_file_location(recipe, ROOT / "recipes" / f"{recipe}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = ROOT / "recipes" / "configs" / "world" / f"{recipe}.yaml"
    return module.main(*parse(module.arguments(), ["--config", str(config), *map(str, words)]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("real")


def test_real_data_goes_through_every_recipe(folder):
    sft = call("sft", "--dataset_name", ALPACA, "--output_dir", folder / "sft", *COMMON,
               "--num_train_epochs", 1)  # fmt: skip
    assert sft.state == "finished"
    reward = call("reward", "--dataset_name", HH, "--parent", folder / "sft", *COMMON,
                  "--demonstrations", ALPACA, "--output_dir", folder / "reward",
                  "--num_train_epochs", 1)  # fmt: skip
    assert reward.results["demonstrations"] == 16
    dpo = call("dpo", "--dataset_name", HH, "--parent", folder / "sft", *COMMON,
               "--output_dir", folder / "dpo")  # fmt: skip
    assert dpo.state == "finished"
    ppo = call("ppo", "--dataset_name", HH, "--parent", folder / "sft", "--max_rows", 16,
               "--reward_model", folder / "reward", "--output_dir", folder / "ppo",
               "--total_episodes", 8, "--per_device_train_batch_size", 4, "--logging_steps", 1,
               "--response_length", 16, "--max_prompt_length", 256)  # fmt: skip
    assert ppo.state == "finished"
    for run in (sft, reward, dpo, ppo):
        rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
        assert rows, run.path
        assert run.adapter_problem() is None
