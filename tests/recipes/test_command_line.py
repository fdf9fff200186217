"""What a user types: every shipped YAML, `--help`, and errors before anything is loaded."""

import errno
import json
import os
import subprocess
import sys

import pytest
import yaml
from safetensors import SafetensorError
from trl import ScriptArguments, SFTConfig

from tests.conftest import ROOT
from toolkit.cli import main
from toolkit.errors import ConfigError
from toolkit.options.arguments import MergeArguments
from toolkit.options.command_line import parse, run_cli
from toolkit.pipeline import Pipeline
from toolkit.recipe import Recipe, find

RECIPES = ("sft", "label", "reward", "ppo", "dpo", "kto", "merge", "evaluate", "pretrain")
CONFIGS = sorted((ROOT / "recipes" / "configs").rglob("*.yaml"))


def classes(command):
    if isinstance(command, Recipe):
        return command.argument_classes()
    return command.arguments()


def call(recipe, *words):
    command = [sys.executable, str(ROOT / "recipes" / f"{recipe}.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.mark.parametrize("config", CONFIGS, ids=[str(c.relative_to(ROOT)) for c in CONFIGS])
def test_every_shipped_yaml_parses_strictly(config, monkeypatch):
    monkeypatch.chdir(ROOT)
    if "stages" in yaml.safe_load(config.read_text(encoding="utf-8")):
        pipeline = Pipeline.read(str(config))
        for stage in pipeline.stages:
            parse(classes(pipeline.command_of(stage)), pipeline.words(stage))
        return
    recipe, *_ = config.stem.split("-")  # ppo-ptx.yaml is for recipes/ppo.py
    parse(classes(find(recipe)), ["--config", str(config)])


@pytest.mark.parametrize(
    ("name", "differs"),
    [
        ("ppo-ptx", {"ptx_texts", "ptx_coef", "ptx_batch_size", "ptx_max_length"}),
        ("ppo-beta0", {"kl_coef", "eval_strategy", "eval_steps"}),
    ],
)
def test_a_variant_of_ppo_differs_in_what_it_is_for(name, differs):
    plain, variant = (
        yaml.safe_load((ROOT / f"recipes/configs/world/{n}.yaml").read_text())
        for n in ("ppo", name)
    )
    keys = plain.keys() | variant.keys()
    assert {k for k in keys if plain.get(k) != variant.get(k)} == differs | {"output_dir"}


@pytest.mark.parametrize("config", CONFIGS, ids=[str(c.relative_to(ROOT)) for c in CONFIGS])
def test_no_yaml_says_a_thing_twice(config):
    keys = [
        line.split(":")[0]
        for line in config.read_text(encoding="utf-8").splitlines()
        if line and line[0].isalpha() and ":" in line
    ]
    assert len(keys) == len(set(keys))
    assert yaml.safe_load(config.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_help_prints_no_warning():
    names = [*RECIPES, "pipeline", "check"]
    code = f"""
from toolkit.cli import main
for name in {names}:
    try:
        main([name, "--help"])
    except SystemExit as end:
        assert end.code == 0, name
"""
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert [name for name in names if f"toolkit {name}" not in process.stdout] == []
    assert process.stderr == ""


@pytest.mark.parametrize(
    ("recipe", "words", "message"),
    [
        ("sft", ["--config", "no.yaml"], "ConfigError: no.yaml: cannot read the config file"),
        ("sft", ["--lora_rr", "3"], "--lora_rr"),
        ("sft", ["--dataset_name", "no/such.jsonl"], "DatasetError: no/such.jsonl"),
        ("ppo", ["--dataset_name", "world:prompts"], "`reward_model` is missing"),
        ("ppo", ["--reward_model", "no/run"], "reward_model: no/run holds no adapter"),
        ("dpo", ["--parent", "no/run"], "parent: no/run holds no adapter"),
        ("kto", ["--dataset_name", "world:comparisons"], "kto: `parent` is missing"),
        ("merge", [], "`parent` is missing"),
        ("merge", ["--parent", "no/run"], "parent: no/run holds no adapter"),
        ("reward", ["--max_length", "x"], "invalid int value: 'x'"),
        ("evaluate", ["--runs", "no/run"], "runs: no/run holds no adapter"),
        ("pipeline", ["--config", "no.yaml"], "ConfigError: no.yaml: cannot read"),
    ],
)
def test_input_error_is_one_line_and_exit_code_2(recipe, words, message, capfd):
    try:
        code = main([recipe, *words])
    except SystemExit as end:
        code = end.code
    captured = capfd.readouterr()
    assert code == 2
    assert message in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert "Traceback" not in captured.err
    assert captured.out == ""


@pytest.mark.slow
def test_recipe_file_exits_with_the_same_error():
    process = call("sft", "--config", "no.yaml")
    assert process.returncode == 2
    assert process.stderr.startswith("ConfigError: no.yaml: cannot read the config file")
    assert len(process.stderr.strip().splitlines()) == 1
    assert process.stdout == ""


def test_where_an_input_error_was_raised_is_said_on_request(monkeypatch, capsys):
    def main(*_):
        raise ConfigError("no such thing")

    for asked, wanted in (("0", False), ("1", True)):
        monkeypatch.setenv("TOOLKIT_TRACEBACK", asked)
        assert run_cli(main, [MergeArguments], []) == 2
        said = capsys.readouterr().err
        assert said.endswith("ConfigError: no such thing\n")
        assert ("Traceback" in said) is wanted


@pytest.mark.slow
def test_help_costs_no_more_than_trls_config_classes():
    """At most 1.3 times `from trl import SFTConfig`; medians of three, in turn, in seconds of the CPU,
    which work beside it does not lengthen."""

    def spent() -> float:
        now = os.times()
        return now.children_user + now.children_system

    ours, theirs = [], []
    for _ in range(3):
        began = spent()
        subprocess.run([sys.executable, "-c", "from trl import SFTConfig"], check=True)
        theirs.append(spent() - began)
        began = spent()
        call("sft", "--config", "no.yaml")
        ours.append(spent() - began)
    assert sorted(ours)[1] <= 1.3 * sorted(theirs)[1]


@pytest.mark.slow
def test_the_table_of_adapters_is_made_by_one_command(tmp_path):
    words = ["--methods", "none", "prompt", "--output_dir", str(tmp_path)]
    found = call("../benchmarks/adapters", *words, "--num_train_epochs", "1", "--max_rows", "32")
    assert found.returncode == 0, found.stderr
    none, prompt = json.loads((tmp_path / "adapters.json").read_text())["methods"]
    assert (none["trainable"], prompt["trainable"]) == (0, 20 * 192)
    weights = (tmp_path / "prompt" / "adapter_model.safetensors").stat().st_size
    assert prompt["bytes"] > weights > 4 * 20 * 192
    assert none["loss"] != prompt["loss"]
    assert f"| `prompt` | 0.1 | 3,840 | {prompt['bytes'] / 1000:.0f} kB |" in found.stdout


@pytest.mark.parametrize("named", [True, False])
def test_a_full_disk_is_one_line_that_names_a_place_and_a_way_on(tmp_path, capsys, named):
    """The system names the file where it does not take a new one, but not where it is written to."""

    def main(script, training):
        raise OSError(errno.ENOSPC, "No space left on device", *(["some/file"] if named else []))

    words = ["--output_dir", str(tmp_path / "run"), "--dataset_name", "x", "--report_to", "none"]
    assert run_cli(main, (ScriptArguments, SFTConfig), words) == 2
    said = capsys.readouterr().err
    place = "some/file" if named else tmp_path / "run"
    assert said.startswith(f"{place}: no space left on the device; make room and start again")
    assert "--resume_from_checkpoint true" in said
    assert len(said.splitlines()) == 1


def test_what_safetensors_says_of_a_full_disk_is_one_line_and_another_error_is_a_bug(capsys):
    def main(script):
        raise SafetensorError(reason)

    reason = "Error while serializing: I/O error: No space left on device (os error 28)"
    assert run_cli(main, (ScriptArguments,), ["--dataset_name", "x"]) == 2
    assert capsys.readouterr().err.startswith("the output: no space left on the device")
    reason = "Error while serializing: InvalidOffset"
    with pytest.raises(SafetensorError):
        run_cli(main, (ScriptArguments,), ["--dataset_name", "x"])
