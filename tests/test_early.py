"""A recipe finds missing files and unknown options before it imports libraries."""

import re
import subprocess
import sys

import pytest

from toolkit.early import _known_options, check_early
from toolkit.errors import ToolkitError
from toolkit.options.config import options_of
from toolkit.recipe import FOLDERS, find_recipe, recipes

ROW = '{"prompt": "a", "completion": "b"}\n'


def test_names_in_source_files_include_every_option():
    known = set(_known_options())
    for recipe in recipes().values():
        assert options_of(recipe.argument_classes()).keys() <= known, recipe.name


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


def test_options_of_own_recipe_are_left_to_the_parser(tmp_path, monkeypatch):
    text = (
        "from toolkit.recipe import Recipe\n"
        "RECIPE = Recipe('mine', 'x', rows='text', arguments=lambda: (int, int), build=print)\n"
    )
    (tmp_path / "mine.py").write_text(text)
    monkeypatch.setenv(FOLDERS, str(tmp_path))
    check_early(find_recipe("mine"), ["--of_my_own", "1"])
