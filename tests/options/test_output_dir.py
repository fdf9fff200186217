"""Paths that cannot be used are one line that names them, before anything is loaded."""

import errno
import os

import pytest
from safetensors import SafetensorError
from trl import ScriptArguments, SFTConfig

from toolkit.cli import main
from toolkit.errors import CheckpointError, ConfigError
from toolkit.options.command_line import parse, run_cli, system_error
from toolkit.options.config import check_output_dir
from toolkit.pipeline import Pipeline
from toolkit.runs.run import Run


@pytest.fixture
def bad_paths(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "missing").symlink_to(tmp_path / "nowhere" / "x")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    return {
        "too long": (f"{tmp_path}/{'a' * 300}", "File name too long"),
        "too long and new": (f"{tmp_path}/new/{'ä' * 200}", "File name too long"),
        "too deep": (
            str(tmp_path) + "/" + "b" * 200 + ("/" + "b" * 200) * 30,
            "File name too long",
        ),
        "a file": (f"{tmp_path}/file", "Not a directory"),
        "in a file": (f"{tmp_path}/file/run", "Not a directory"),
        "a pipe": (f"{tmp_path}/pipe", "Not a directory"),
        "a link": (f"{tmp_path}/missing", "leads to a missing folder"),
        "in a link": (f"{tmp_path}/missing/run", "leads to a missing folder"),
        "a loop": (f"{tmp_path}/loop/run", "Too many levels of symbolic links"),
        "NUL": (f"{tmp_path}/a\0b", "control character"),
        "a line break": (f"{tmp_path}/a\nb", "control character"),
        "empty": ("", "it is empty"),
    }


NAMES = (
    "too long", "too long and new", "too deep",
    "a file", "in a file", "a pipe", "a link", "in a link", "a loop", "NUL",
    "a line break", "empty",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_unusable_output_dir_raises_one_line(bad_paths, name):
    path, reason = bad_paths[name]
    with pytest.raises(ConfigError, match=reason) as error:
        parse([ScriptArguments, SFTConfig], ["--output_dir", path, "--bf16", "false"])
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 400
    with pytest.raises(ConfigError, match=reason):
        Pipeline.read("world/pipeline", output_dir=path)


def test_new_and_existing_folders_are_accepted(tmp_path):
    (tmp_path / "linked").symlink_to(tmp_path)
    for path in (tmp_path, tmp_path / "new" / "run", tmp_path / "linked" / "run", "runs/x", "."):
        check_output_dir(str(path))


def test_word_of_other_bytes_is_rejected(tmp_path):
    with pytest.raises(ConfigError, match="udc80x' is not UTF-8 text"):
        parse([ScriptArguments], ["--dataset_name", "\udc80x"])


@pytest.mark.parametrize("option", ["parent", "dataset_name", "config", "reward_model"])
def test_too_long_path_raises_one_line(option, tmp_path, capsys):
    words = ["ppo", "--config", "world/ppo", "--output_dir", str(tmp_path / "run")]
    words = ["ppo"] if option == "config" else words
    assert main([*words, f"--{option}", "/" + "a" * 300]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "File name too long" in error or "no such" in error


def test_too_long_config_name_raises_one_line(capsys):
    assert main(["pipeline", "--config", "a" * 300]) == 2
    assert "cannot be used (File name too long)" in capsys.readouterr().err


def test_other_system_errors_keep_their_traceback():
    assert system_error(FileNotFoundError(2, "No such file", "x")) is None
    assert system_error(PermissionError(13, "Permission denied")) is None
    assert "x: cannot be used (Permission denied)" in str(
        system_error(PermissionError(13, "Permission denied", "x"))
    )

    def fails(script):
        raise FileNotFoundError(2, "No such file", "x")

    with pytest.raises(FileNotFoundError):
        run_cli(fails, [ScriptArguments], ["--dataset_name", "x"])


@pytest.mark.parametrize(
    ("number", "advice"), [(errno.EMFILE, "raise `ulimit -n`"), (errno.EFBIG, "raise `ulimit -f`")]
)
def test_limits_of_the_shell_are_named(number, advice):
    for error in (OSError(number, "x"), SafetensorError(f"Error: x (os error {number})")):
        assert advice in str(system_error(error, output="runs/x"))


def test_launcher_of_several_processes_is_rejected(monkeypatch, capsys):
    names = []

    def main(script):
        names.extend(name for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE") if name in os.environ)

    words = ["--dataset_name", "x"]
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run_cli(main, [ScriptArguments], words) == 2
    error = capsys.readouterr().err
    assert "WORLD_SIZE=2, but a run is one process" in error
    assert len(error.splitlines()) == 1
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert run_cli(main, [ScriptArguments], words) == 0
    assert names == []


def test_run_replaces_no_readme_of_another_project(tmp_path):
    (tmp_path / "README.md").write_text("my project")
    with pytest.raises(CheckpointError, match=r"contains a README\.md without a run"):
        Run.start(tmp_path, recipe="sft")
    assert (tmp_path / "README.md").read_text() == "my project"
