"""The walkthroughs of CONTRIBUTING.md work: their code is applied to a copy and tested as they say."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from tests.conftest import ROOT
from toolkit.cli import main
from toolkit.recipe import holds
from toolkit.runs.run import Run

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
CODE = re.compile(r"^   ```\w*\n(.*?)^   ```\n", re.MULTILINE | re.DOTALL)

# file, the text that the walkthrough names, and its replacement; \v stands for the next code block
LAST_FORMAT = '    "text": Format('
FIRST_CASE = '    ("prompt-only", {"prompt": "Sky?"}, None'
EDITS = {
    "Add a dataset format": [
        ("toolkit/data/formats.py", "LLAMA_FACTORY =", "\v\n\nLLAMA_FACTORY ="),
        ("toolkit/data/formats.py", LAST_FORMAT, f"\v{LAST_FORMAT}"),
        ("docs/data.md", "| `text` | `text` | text |", "\v| `text` | `text` | text |"),
        ("tests/data/test_formats.py", FIRST_CASE, f"\v{FIRST_CASE}"),
    ],
    "Change a loss": [
        ("tests/ppo/test_losses.py", "", "\n\n\v"),
        (
            "toolkit/ppo/losses.py",
            "    loss = (torch.maximum(plain, clipped) * mask).sum()\n",
            "\v",
        ),
        ("toolkit/ppo/config.py", "    vf_coef:", "\v    vf_coef:"),
        ("toolkit/ppo/updates.py", "cliprange=args.cliprange,\n", "cliprange=args.cliprange,\n\v"),
        ("docs/ppo.md", "| `vf_coef`", "\v| `vf_coef`"),
        (
            "toolkit/ppo/losses.py",
            "cliprange: float\n) -> PolicyLoss",
            "cliprange: float, dual_clip: float | None = None\n) -> PolicyLoss",
        ),
    ],
    "Add an app tab": [
        ("toolkit/app/tabs/disk.py", "", "\v"),
        ("app.py", "        follow_runs(page", "\v        follow_runs(page"),
        ("tests/app/tabs/test_disk.py", "", "\v"),
        (
            "app.py",
            "    from toolkit.app.tabs.leaderboard",
            "    from toolkit.app.tabs.disk import disk_tab\n    from toolkit.app.tabs.leaderboard",
        ),
    ],
}
ONE_OF = {  # of a file that trains for minutes, one test
    "tests/ppo/test_ppo_options.py": "::test_several_completions_per_prompt_share_a_rollout"
}
PAGE = "tests/app/test_loading.py::test_judging_tabs_explain_an_empty_runs_folder"


def walkthrough(title: str) -> tuple[str, list[str]]:
    """The text of a walkthrough, and its code blocks."""
    text = TEXT.split(f"\n## {title}", 1)[1].split("\n## ", 1)[0]
    return text, [re.sub("^   ", "", code, flags=re.MULTILINE) for code in CODE.findall(text)]


@pytest.mark.slow
def test_walkthroughs_pass_their_tests(tmp_path):
    for folder in ("toolkit", "recipes", "benchmarks", "tests", "docs"):
        ignored = shutil.ignore_patterns("__pycache__", "images", "results")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    for name in ("app.py", "pyproject.toml", "CONTRIBUTING.md", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    tests = [PAGE]
    for title, edits in EDITS.items():
        text, codes = walkthrough(title)
        assert len(codes) == sum("\v" in new for *_, new in edits), title
        for name, old, new in edits:
            file = tmp_path / name
            content = file.read_text(encoding="utf-8") if file.exists() else ""
            assert not old or content.count(old) == 1, f"{title}: {name} has no single {old!r}"
            new = new.replace("\v", codes.pop(0)) if "\v" in new else new
            file.write_text(content.replace(old, new) if old else content + new, encoding="utf-8")
        (command,) = re.findall(r"`pytest ([^`]+)`", text)
        tests += [name + ONE_OF.get(name, "") for name in command.split()]
    python = [sys.executable, "-m"]
    for words in (["ruff", "format", "-q"], ["ruff", "check", "-q"], ["pytest", "-q", *tests]):
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        done = subprocess.run(
            python + words, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_contributing_names_files_that_exist():
    created = {"toolkit/app/tabs/disk.py", "tests/app/tabs/test_disk.py"}  # by the walkthroughs
    files = set(re.findall(r"(?:toolkit|tests|docs|recipes)/[\w/]+\.(?:py|md)", CODE.sub("", TEXT)))
    assert len(files) >= 15
    assert [name for name in files - created if not (ROOT / name).is_file()] == []


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with the files of the walkthrough that adds a recipe."""
    (tmp_path / "my_recipes").mkdir()
    _, (recipe, config, _) = walkthrough("Add a recipe")
    (tmp_path / "my_recipes" / "ipo.py").write_text(recipe, encoding="utf-8")
    (tmp_path / "my_recipes" / "ipo.yaml").write_text(config, encoding="utf-8")
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
