"""The recipe of CONTRIBUTING.md's walkthrough works as one file and one YAML."""

import json
import re

import pytest
from safetensors.torch import load_file

from tests.conftest import ROOT
from toolkit.cli import main
from toolkit.recipe import holds
from toolkit.runs.run import Run

FILES = {"python": "ipo.py", "yaml": "ipo.yaml"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with the files of the walkthrough."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.split("\n## Add a recipe", 1)[1].split("\n## ", 1)[0]
    (tmp_path / "my_recipes").mkdir()
    for language, file in FILES.items():
        (code,) = re.findall(rf"^   ```{language}\n(.*?)^   ```", section, re.MULTILINE | re.DOTALL)
        lines = [line.removeprefix("   ") for line in code.splitlines(keepends=True)]
        (tmp_path / "my_recipes" / file).write_text("".join(lines), encoding="utf-8")
    monkeypatch.setenv("TOOLKIT_RECIPES", str(tmp_path / "my_recipes"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # `check` sets it
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_walkthrough_recipe_is_listed_and_checks_its_options(folder, sft_run, capsys):
    assert main(["--help"]) == 0
    assert re.search("  ipo +Identity preference optimization", capsys.readouterr().out)
    assert main(["ipo", "--loss_type", "sigmoid", "--parent", str(sft_run)]) == 2
    assert "ipo: `loss_type` must be [ipo], got ['sigmoid']" in capsys.readouterr().err


@pytest.mark.slow
def test_walkthrough_recipe_is_checked_and_trained(folder, tiny_base, sft_run, capsys):
    words = ["--config", "my_recipes/ipo.yaml", "--output_dir", "ipo"]
    words += ["--model_name_or_path", str(tiny_base), "--parent", str(sft_run)]
    words += ["--max_rows", "16", "--max_steps", "2", "--per_device_train_batch_size", "4"]
    assert main(["check", *words]) == 0
    assert "predicted peak" in capsys.readouterr().out
    assert main(["ipo", *words]) == 0
    run = Run.load("ipo")
    assert (run.recipe, run.state, holds(run)) == ("ipo", "finished", "policy")
    assert json.loads((run.path / "run.json").read_text())["config"]["loss_type"] == ["ipo"]
    before, after = (load_file(f / "adapter_model.safetensors") for f in (sft_run, run.path))
    assert before.keys() == after.keys()
    assert any((before[name] != after[name]).any() for name in before)
