"""Command lines: every shipped YAML, `--help`, and errors before anything is loaded."""

import dataclasses
import errno
import json
import subprocess
import sys

import pytest
import yaml
from safetensors import SafetensorError
from trl import ScriptArguments, SFTConfig

from tests.conftest import ROOT
from toolkit.cli import main, run
from toolkit.errors import ConfigError
from toolkit.options.arguments import MergeArguments
from toolkit.options.command_line import parse, run_cli
from toolkit.pipeline import Pipeline
from toolkit.recipe import Recipe, find

RECIPES = "sft label reward ppo rloo grpo dpo kto sample choose merge evaluate pretrain".split()
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
def test_ppo_variant_differs_only_in_its_purpose(name, differs):
    plain, variant = (
        yaml.safe_load((ROOT / f"recipes/configs/world/{n}.yaml").read_text())
        for n in ("ppo", name)
    )
    keys = plain.keys() | variant.keys()
    assert {k for k in keys if plain.get(k) != variant.get(k)} == differs | {"output_dir"}


@pytest.mark.parametrize("config", CONFIGS, ids=[str(c.relative_to(ROOT)) for c in CONFIGS])
def test_shipped_yaml_has_no_repeated_key(config):
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
from toolkit.cli import main, run
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
        ("sft", ["--config", "no.yaml"], "ConfigError: no.yaml: neither a config file nor"),
        ("sft", ["--lora_rr", "3"], "--lora_rr"),
        ("sft", ["--dataset_name", "no/such.jsonl"], "DatasetError: no/such.jsonl"),
        ("ppo", ["--dataset_name", "world:prompts"], "`reward_model` is missing"),
        ("ppo", ["--reward_model", "no/run"], "reward_model: no/run holds no adapter"),
        ("dpo", ["--parent", "no/run"], "parent: no/run holds no adapter"),
        ("kto", ["--dataset_name", "world:comparisons"], "kto: `parent` is missing"),
        ("merge", [], "`parent` is missing"),
        ("merge", ["--parent", "no/run"], "parent: no/run holds no adapter"),
        ("sample", ["--dataset_name", "world:prompts"], "sample: `reward_model` is missing"),
        ("sample", ["--num_generations", "1"], "`num_generations` must be in 2…1000, got 1"),
        ("choose", ["--parent", "no/run"], "choose: `reward_model` is missing"),
        ("evaluate", ["--runs", "x", "--best_of", "0"], "`best_of` must be in 1…1000, got [0]"),
        ("reward", ["--max_length", "x"], "invalid int value: 'x'"),
        ("evaluate", ["--runs", "no/run"], "runs: no/run holds no adapter"),
        ("pipeline", ["--config", "no.yaml"], "ConfigError: no.yaml: neither a config file"),
    ],
)
def test_input_error_prints_one_line_and_exits_2(recipe, words, message, capfd):
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
    assert process.stderr.startswith("ConfigError: no.yaml: neither a config file nor")
    assert len(process.stderr.strip().splitlines()) == 1
    assert process.stdout == ""


def test_traceback_is_printed_on_request(monkeypatch, capsys):
    def main(*_):
        raise ConfigError("no such thing")

    for value, has_traceback in (("0", False), ("1", True)):
        monkeypatch.setenv("TOOLKIT_TRACEBACK", value)
        assert run_cli(main, [MergeArguments], []) == 2
        error = capsys.readouterr().err
        assert error.endswith("ConfigError: no such thing\n")
        assert ("Traceback" in error) is has_traceback


@pytest.mark.parametrize(("place", "name"), [("arguments", "recipe"), ("requirements", "toolkit")])
def test_recipe_that_calls_exit_ends_with_exit_code_2(place, name, capsys):
    def ends(*_):
        raise SystemExit(0)

    recipe = dataclasses.replace(find("sft"), **{place: ends})
    assert run(recipe, ["--config", "world/sft", "--use_cpu", "true"]) == 2
    assert f"ConfigError: {name} sft called sys.exit: 0; raise an" in capsys.readouterr().err


@pytest.mark.slow
def test_start_takes_no_longer_than_trls_config_classes(tmp_path):
    """At most 1.3 times `from trl import SFTConfig`: CPU times of one process, which imports that first."""
    code = f"""
import atexit, pathlib, runpy, sys, time
from trl import SFTConfig
theirs, file = time.process_time(), pathlib.Path({str(tmp_path / "seconds")!r})
atexit.register(lambda: file.write_text(f"{{time.process_time()}} {{theirs}}"))
sys.argv = ["recipes/sft.py", "--learning_rate", "no number"]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert process.returncode == 2
    ours, theirs = map(float, (tmp_path / "seconds").read_text().split())
    assert ours <= 1.3 * theirs


@pytest.mark.slow
def test_adapter_benchmark_writes_its_table(tmp_path):
    words = ["--methods", "none", "prompt", "--output_dir", str(tmp_path)]
    process = call("../benchmarks/adapters", *words, "--num_train_epochs", "1", "--max_rows", "32")
    assert process.returncode == 0, process.stderr
    none, prompt = json.loads((tmp_path / "adapters.json").read_text())["methods"]
    assert (none["trainable"], prompt["trainable"]) == (0, 20 * 192)
    weights = (tmp_path / "prompt" / "adapter_model.safetensors").stat().st_size
    assert prompt["bytes"] > weights > 4 * 20 * 192
    assert none["loss"] != prompt["loss"]
    assert f"| `prompt` | 0.1 | 3,840 | {prompt['bytes'] / 1000:.0f} kB |" in process.stdout


@pytest.mark.parametrize("named", [True, False])
def test_full_disk_prints_one_line_with_place_and_fix(tmp_path, capsys, named):
    """The error of a full disk names a file only if the file could not be created."""

    def main(script, training):
        raise OSError(errno.ENOSPC, "No space left on device", *(["some/file"] if named else []))

    words = ["--output_dir", str(tmp_path / "run"), "--dataset_name", "x", "--report_to", "none"]
    assert run_cli(main, (ScriptArguments, SFTConfig), words) == 2
    error = capsys.readouterr().err
    place = "some/file" if named else tmp_path / "run"
    assert error.startswith(f"{place}: no space left on the device; free space and start again")
    assert "--resume_from_checkpoint true" in error
    assert len(error.splitlines()) == 1


def test_full_disk_in_safetensors_prints_one_line(capsys):
    def main(script):
        raise SafetensorError(reason)

    reason = "Error while serializing: I/O error: No space left on device (os error 28)"
    assert run_cli(main, (ScriptArguments,), ["--dataset_name", "x"]) == 2
    assert capsys.readouterr().err.startswith("the output: no space left on the device")
    reason = "Error while serializing: InvalidOffset"
    with pytest.raises(SafetensorError):
        run_cli(main, (ScriptArguments,), ["--dataset_name", "x"])
