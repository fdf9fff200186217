"""A recipe finds missing files and unknown options before it imports libraries."""

import re
import subprocess
import sys

import pytest

from toolkit.early import _known_options, check_early
from toolkit.errors import ToolkitError
from toolkit.options.config import options_of
from toolkit.recipe import FOLDERS, files, find_recipe, recipes

ROW = '{"prompt": "a", "completion": "b"}\n'


def test_names_in_source_files_include_every_option():
    for recipe in recipes().values():
        known = _known_options(files()[recipe.name])
        assert options_of(recipe.argument_classes()).keys() <= set(known), recipe.name


@pytest.mark.parametrize(
    ("line", "words", "message"),
    [
        ("use_pft: true", [], "`use_pft`; did you mean `use_peft`?"),
        ("trust_remote_code: true", [], "`trust_remote_code` cannot be set in a file"),
        ("env: {A: b}", [], "`env` is not supported"),
        ("dataset_name: missing.jsonl", [], "missing.jsonl: no such file or folder"),
        ("parent: runs/none", [], "parent: runs/none holds no adapter"),
        ("reward_model: [runs/none]", [], "reward_model: runs/none holds no adapter"),
        ("model_name_or_path: ./none", [], "model_name_or_path: ./none is not a folder"),
        ("parent: runs/none", ["--parent", "runs/other"], "parent: runs/other holds no adapter"),
        ("seed: 1", ["--dataset-name=missing.csv"], "missing.csv: no such file or folder"),
        ("seed: 1", ["--learning_rat", "1"], "`--learning_rat`; did you mean `learning_rate`?"),
        ("- seed", [], "expected a mapping"),
    ],
)
def test_errors(line, words, message, tmp_path):
    file = tmp_path / "ppo.yaml"
    file.write_text(line + "\n")
    with pytest.raises(ToolkitError, match=re.escape(message)):
        check_early(find_recipe("ppo"), ["--config", str(file), *words])


@pytest.mark.parametrize("command", [["ppo"], ["check", "--recipe", "ppo"]])
def test_error_comes_before_imports(command, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("use_pft: true\n")
    code = (
        "import sys; from toolkit.cli import main; code = main(sys.argv[1:]);"
        "print(code, [m for m in ('torch', 'transformers', 'trl', 'datasets') if m in sys.modules])"
    )
    words = [sys.executable, "-c", code, *command, "--config", str(file)]
    result = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "unknown option `use_pft`; did you mean `use_peft`?" in result.stderr
    assert result.stdout == "2 []\n"


def test_usable_options_pass(tmp_path):
    data, file = tmp_path / "d.jsonl", tmp_path / "c.yaml"
    data.write_text(ROW)
    file.write_text(
        f"dataset_name: {data}\ntrust_remote_code: false\nresume_from_checkpoint: true\n"
    )
    recipe = find_recipe("sft")
    check_early(recipe, ["--config", str(file), "--no_use_cpu", "--max-length", "8"])
    check_early(recipe, [f"--config={file}", "--dataset_name", "owner/name"])
    check_early(recipe, ["--config", "missing", "--help"])
    with pytest.raises(ToolkitError, match="neither a config file"):
        check_early(recipe, ["--config", "missing"])


OWN_RECIPE = """
from dataclasses import dataclass
from toolkit.recipe import Recipe

@dataclass
class Own:
    of_my_own: int = 0

RECIPE = Recipe('mine', 'x', rows='text', arguments=lambda: (int, Own), build=print)
"""


@pytest.fixture
def own_recipe(tmp_path, monkeypatch):
    """A recipe `mine` in its own folder, with an option of its own."""
    file = tmp_path / "recipes" / "mine.py"
    file.parent.mkdir()
    file.write_text(OWN_RECIPE)
    monkeypatch.setenv(FOLDERS, str(file.parent))
    return find_recipe("mine")


def test_options_of_own_recipe_are_left_to_the_parser(own_recipe):
    check_early(own_recipe, ["--of_another_file", "1"])


def test_recipe_of_the_project_may_define_options_in_its_file(own_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("toolkit.early.SHIPPED", tmp_path)
    file = tmp_path / "c.yaml"
    file.write_text("of_my_own: 1\n")
    check_early(own_recipe, ["--config", str(file), "--of-my-own", "1"])
    with pytest.raises(ToolkitError, match="did you mean `of_my_own`"):
        check_early(own_recipe, ["--of_my_won", "1"])
