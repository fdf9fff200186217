"""The registry of commands: names are unique, and broken files of TOOLKIT_RECIPES are left out."""

import pytest

from tests.conftest import ROOT
from toolkit.cli import main
from toolkit.errors import ConfigError
from toolkit.options.config import find_config
from toolkit.pipeline import Pipeline
from toolkit.recipe import FOLDERS, commands, files, find, holds
from toolkit.runs.run import Run

COMMAND = "from toolkit.recipe import Command\nCOMMAND = Command('{}', 'Does it.', print)\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of own commands."""
    monkeypatch.setenv(FOLDERS, str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    "code", ["def", "import nothing_like_it", "raise SystemExit(3)", "HELPER = 1", "RECIPE = 'x'"]
)
def test_broken_recipe_file_is_reported_and_skipped(folder, code, capsys):
    (folder / "broken.py").write_text(code, encoding="utf-8")
    (folder / "mine.py").write_text(COMMAND.format("mine"), encoding="utf-8")
    assert main(["--help"]) == 0
    printed = capsys.readouterr()
    assert "  mine " in printed.out
    assert "broken" not in printed.out
    assert "broken.py" in printed.err
    with pytest.raises(ConfigError, match=r"broken\.py"):
        find("broken")
    run = Run(folder, "broken")
    assert holds(run) == "other"


@pytest.mark.parametrize("name", ["sft", "app"])
def test_shipped_command_cannot_be_replaced(folder, name, capsys):
    (folder / f"{name}.py").write_text(COMMAND.format(name), encoding="utf-8")
    assert main([name]) == 2
    assert f"{name}.py has the name of another command" in capsys.readouterr().err


def test_folder_of_shipped_recipes_may_be_named(monkeypatch):
    monkeypatch.setenv(FOLDERS, str(ROOT / "recipes"))
    assert find("sft") is commands()["sft"]


def test_name_is_an_identifier(folder, capsys):
    (folder / "my-recipe.py").write_text(COMMAND.format("my-recipe"), encoding="utf-8")
    assert "my-recipe" not in files()
    assert main(["../sft"]) == 2
    assert "no command '../sft'" in capsys.readouterr().err


def test_missing_folder_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv(FOLDERS, str(tmp_path / "missing"))
    with pytest.raises(ConfigError, match="is not a folder"):
        files()


def test_shipped_config_is_found_despite_folder_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "world" / "sft").mkdir(parents=True)
    assert find_config("world/sft") == find_config("world/sft.yaml")
    with pytest.raises(ConfigError, match="did you mean `world/sft`"):
        find_config("world/stf")


@pytest.mark.parametrize("name", ["../out", "1", "a b"])
def test_stage_name_stays_inside_the_output_folder(tmp_path, name):
    file = tmp_path / "p.yaml"
    stage = f"  {name}:\n    recipe: sft\n    config: world/sft\n"
    file.write_text(f"output_dir: runs\nseed: 0\nstages:\n{stage}", encoding="utf-8")
    with pytest.raises(ConfigError, match="stage"):
        Pipeline.read(str(file))


def test_binary_file_is_rejected_as_pipeline(tmp_path):
    file = tmp_path / "p.yaml"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not a YAML file"):
        Pipeline.read(str(file))


def test_interrupt_while_command_loads_prints_one_line(folder, capsys):
    (folder / "slow.py").write_text(COMMAND.format("slow").replace("print", "stop"), "utf-8")
    code = "def stop(words):\n    raise KeyboardInterrupt\n" + (folder / "slow.py").read_text(
        "utf-8"
    )
    (folder / "slow.py").write_text(code, "utf-8")
    assert main(["slow"]) == 130
    assert capsys.readouterr().err == "interrupted\n"
