"""SFT, reward, DPO and PPO on real data files, which are not part of the project."""

import gzip
import json
import re

import pytest

from tests.conftest import ROOT, SHARED
from tests.preflight.test_check import WORLD, load_check
from toolkit.errors import DatasetError
from toolkit.options.command_line import parse
from toolkit.recipe import find_recipe
from toolkit.runner import train

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="the real data files are missing"),
]
HH = SHARED / "data" / "hh_rlhf_harmless.jsonl.gz"
ALPACA = SHARED / "data" / "alpaca_instructions.json"
PREFERENCES = [HH, *sorted((SHARED / "data").glob("sharegpt_preferences*.json"))]
COMMON = ["--max_rows", "16", "--max_length", "512", "--per_device_train_batch_size", "4"]


def call(recipe, *words):
    """Run a recipe in this process with its config of the embedded world."""
    config = ROOT / "recipes" / "configs" / "world" / f"{recipe}.yaml"
    command = find_recipe(recipe)
    return train(
        command, *parse(command.argument_classes(), ["--config", str(config), *map(str, words)])
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("real")


@pytest.mark.slow
def test_real_data_trains_every_recipe(folder, capsys):
    sft = call("sft", "--dataset_name", ALPACA, "--output_dir", folder / "sft", *COMMON,
               "--num_train_epochs", 1)  # fmt: skip
    assert sft.state == "finished"
    reward = call("reward", "--dataset_name", HH, "--parent", folder / "sft", *COMMON,
                  "--demonstrations", ALPACA, "--output_dir", folder / "reward",
                  "--num_train_epochs", 1)  # fmt: skip
    too_long = count(capsys.readouterr().out, r": (\d+) of 16 rows are longer than 512 tokens")
    assert 0 < reward.results["demonstrations"] == 16 - too_long
    dpo = call("dpo", "--dataset_name", HH, "--parent", folder / "sft", *COMMON,
               "--output_dir", folder / "dpo")  # fmt: skip
    assert dpo.state == "finished"
    ppo = call("ppo", "--dataset_name", HH, "--parent", folder / "sft", "--max_rows", 16,
               "--reward_model", folder / "reward", "--output_dir", folder / "ppo",
               "--total_episodes", 8, "--per_device_train_batch_size", 4,
               "--gradient_accumulation_steps", 1, "--logging_steps", 1,
               "--response_length", 16, "--max_prompt_length", 256)  # fmt: skip
    assert ppo.state == "finished"
    for run in (sft, reward, dpo, ppo):
        rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
        assert rows, run.path
        assert run.adapter_problem() is None


def count(output, pattern):
    """The number that a pattern finds in printed output; 0 without a match."""
    match = re.search(pattern, output)
    return int(match[1]) if match else 0


def rows_of(file):
    """The number of rows in a file, read without our own code."""
    if file.suffix == ".gz":
        return len(gzip.decompress(file.read_bytes()).splitlines())
    return len(json.loads(file.read_text()))


@pytest.mark.slow
@pytest.mark.parametrize("file", PREFERENCES, ids=lambda file: file.name.split(".")[0])
@pytest.mark.parametrize("recipe", ["reward", "dpo"])
def test_real_data_row_counts_add_up_in_training(
    recipe, file, tiny_base, sft_run, tmp_path, capsys
):
    run = call(recipe, "--dataset_name", file, "--drop_bad_rows", "true", "--max_length", 512,
               "--model_name_or_path", tiny_base, "--parent", sft_run, "--max_steps", 2,
               "--output_dir", tmp_path / "run", "--per_device_train_batch_size", 2)  # fmt: skip
    assert run.state == "finished"
    output = capsys.readouterr().out
    rows = rows_of(file)
    assert count(output, r"\), (\d+) rows -> preference") == rows
    dropped = count(output, r"; (\d+) malformed rows dropped")
    assert dropped == (6 if file == HH else 0)
    too_long = count(output, r"train: (\d+) of \d+ pairs are longer than 512 tokens")
    too_long += count(output, r"; (\d+) of them are left out: the prompt alone is too long")
    assert recipe == "dpo" or "will be truncated" not in output
    assert count(output, r"preflight: (\d+) rows, ") == rows - dropped - too_long


CHECKED = [(recipe, file) for file in PREFERENCES for recipe in ("sft", "reward", "dpo")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "file"),
    [("sft", ALPACA), *CHECKED],
    ids=lambda value: value if isinstance(value, str) else value.name.split(".")[0],
)
def test_real_data_row_counts_add_up_in_check(
    recipe, file, tiny_base, sft_run, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(ROOT)
    words = ["--dataset_name", file, "--drop_bad_rows", "true", "--max_length", 512]
    words += ["--model_name_or_path", tiny_base, "--output_dir", tmp_path / "run"]
    words += [] if recipe == "sft" else ["--parent", sft_run]
    code = load_check().check(f"{WORLD}/{recipe}.yaml", list(map(str, words)), recipe, 24.0)
    output = capsys.readouterr().out
    assert (code, output.strip().splitlines()[-1]) == (0, "no problems found"), output
    rows = rows_of(file)
    assert count(output, r"\), (\d+) rows -> (?:preference|prompt-completion)") == rows
    dropped = count(output, r"; (\d+) malformed rows dropped")
    assert dropped == (6 if file == HH else 0)
    too_long = count(output, r"train: (\d+) of \d+ pairs are longer than 512 tokens")
    too_long += count(output, r"; (\d+) of them are left out: the prompt alone is too long")
    assert count(output, r"(?m)^(\d+) rows, tokens: median") == rows - dropped - too_long
    assert "⟦" in output
    assert "predicted peak" in output
    assert not (tmp_path / "run").exists()


def test_sft_uses_every_alpaca_row(tiny_base, tmp_path, capsys):
    run = call("sft", "--dataset_name", ALPACA, "--max_length", 512, "--max_steps", 2,
               "--model_name_or_path", tiny_base, "--output_dir", tmp_path / "run",
               "--per_device_train_batch_size", 2)  # fmt: skip
    assert run.state == "finished"
    output = capsys.readouterr().out
    too_long = count(output, r"; (\d+) of them are left out: the prompt alone is too long")
    assert count(output, r"preflight: (\d+) rows, ") == rows_of(ALPACA) - too_long


def test_dpo_and_check_reject_data_without_comparisons(
    tiny_base, sft_run, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(ROOT)
    words = ["--dataset_name", ALPACA, "--parent", sft_run, "--model_name_or_path", tiny_base]
    words += ["--output_dir", tmp_path / "run"]
    with pytest.raises(DatasetError, match=r"its format is alpaca .*preference needs"):
        call("dpo", *words)
    assert load_check().check(f"{WORLD}/dpo.yaml", list(map(str, words)), "dpo", None) == 2
    assert "its format is alpaca" in capsys.readouterr().out.split("error: ")[1]
