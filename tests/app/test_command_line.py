"""The app's command line: fast help, one-line errors, --smoke and --ask."""

import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import app
from tests.app.server import run_app
from tests.conftest import ROOT
from toolkit.app.answering.cli_command import base_options, cli_command
from toolkit.app.arguments import PASSWORD, AppArguments, is_loopback, parse_arguments
from toolkit.app.texts import answer_numbers
from toolkit.app.workbench import Workbench
from toolkit.errors import ConfigError
from toolkit.runs.run import Run

pytestmark = pytest.mark.slow


def parsed(*words: str) -> AppArguments:
    return parse_arguments(words, description="")


def test_smoke_prompts_all_checkpoints(
    tiny_base: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.main(["--smoke", "--model_name_or_path", tiny_base, "--runs", str(runs)]) == 0
    line = capsys.readouterr().out.strip().splitlines()[-1]
    assert line.startswith("smoke: 'Hello, who are you?' -> base: ")
    for name in ("sft", "dpo", "ppo"):
        assert f"| {name}: " in line


def test_smoke_without_runs_prompts_the_base(
    tiny_base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--smoke", "--model_name_or_path", tiny_base, "--runs", str(tmp_path / "none")]
    assert app.main(words) == 0
    assert "-> base: " in capsys.readouterr().out


def test_smoke_fails_if_a_checkpoint_fails(
    tiny_base: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = (runs / "dpo" / "adapter_model.safetensors").read_bytes()
    # header and length are valid, but the numbers are NaN
    (runs / "dpo" / "adapter_model.safetensors").write_bytes(weights[:-4000] + b"\xff" * 4000)
    Run.load(runs / "dpo").finish()  # stores the hash, so that only loading shows the damage
    assert app.main(["--smoke", "--model_name_or_path", tiny_base, "--runs", str(runs)]) == 1
    assert "1 of 4 gave no answer" in capsys.readouterr().out


def test_help_imports_nothing_heavy() -> None:
    code = "import app, sys; print([m for m in ('torch', 'gradio', 'trl') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prot", "1"], "unrecognized arguments: --prot 1"),
        (["--port", "x"], "invalid int value"),
        (["--port", "70000"], "between 1 and 65535"),
        (["--host", "0.0.0.0"], "add --auth USER"),
        (["--host", "192.0.2.1", "--auth", "me"], PASSWORD),
        (["--auth", "me"], PASSWORD),
        (["--auth", ""], "a user name"),
        (["--auth", "me", "--password", "secret"], "unrecognized"),
        (["--runs", "app.py"], "is not a folder"),
        (["--ask", "Hi", "--model_name_or_path", "./nowhere"], "./nowhere"),
        (
            ["--ask", "Hi", "--model_name_or_path", "world:base", "--model_revision", "a1b2"],
            "a1b2 applies only to models of the hub",
        ),
    ],
)
def test_error_prints_one_line(
    words: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv(PASSWORD, raising=False)
    assert app.main(words) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "Error: " in line]
    assert len(lines) == 1
    assert message in lines[0]


def test_script_exits_with_2_after_an_error() -> None:
    done = run_app("--prot", "1")
    assert done.returncode == 2
    assert done.stderr.startswith("ConfigError: ") and "Traceback" not in done.stderr


def test_error_names_the_used_port(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert app.main(["--port", str(port)]) == 2
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_hosts(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "10.0.0.1", "example.org", "127.0.0.1.example.org"]
)
def test_hosts_that_other_machines_reach(host: str) -> None:
    assert not is_loopback(host)


def test_default_has_no_login_and_is_local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSWORD, "secret")
    assert parsed().login is None
    assert parsed().host == "127.0.0.1"


@pytest.mark.parametrize(("host", "warns"), [("0.0.0.0", True), ("127.0.0.1", False)])
def test_open_host_warns_about_tls(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], host: str, warns: bool
) -> None:
    monkeypatch.setenv(PASSWORD, "secret")
    assert parsed("--host", host, "--auth", "me").login == ("me", "secret")
    output = capsys.readouterr()
    assert ("TLS" in output.err) is warns
    assert "secret" not in output.err + output.out


def test_terminal_prompts_for_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PASSWORD, raising=False)
    monkeypatch.setattr("getpass.getpass", lambda prompt: "typed")
    arguments = parsed("--auth", "me")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    assert arguments.login == ("me", "typed")
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    with pytest.raises(ConfigError, match=PASSWORD):
        _ = arguments.login


def test_command_of_an_answer_repeats_it(
    tiny_base: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workbench = Workbench.open(tiny_base, runs)
    ids = {e.name: e.id for e in workbench.catalog.checkpoints.values()}
    reward = next(iter(workbench.catalog.rewards))
    messages = [
        {"role": "user", "content": 'It\'s "it"; $HOME'},
        {"role": "assistant", "content": "-- it"},
        {"role": "user", "content": "What is it?"},
    ]
    comparison = workbench.stream(
        messages, [ids["dpo"]], reward=reward, temperature=0.9, top_k=40, top_p=0.9, seed=5
    )
    *_, (answer,) = comparison
    command = cli_command(
        ["--runs", str(runs), "--model_name_or_path", tiny_base],
        checkpoint="dpo",
        messages=messages,
        drawing=comparison.request.sampling,
        reward="reward",
    )
    words = shlex.split(command)
    assert words[:2] == ["toolkit", "app"]
    capsys.readouterr()
    assert app.main(words[2:]) == 0
    text, _, numbers = capsys.readouterr().out.rstrip("\n").rpartition("\n\n")
    assert text.strip() == answer.text.strip()
    assert numbers.splitlines()[:2] == answer_numbers(answer).splitlines()[:2]


def test_ask_lists_the_known_checkpoints(
    tiny_base: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--ask", "Hi", "--model_name_or_path", tiny_base, "--runs", str(runs)]
    assert app.main([*words, "--checkpoint", "unknown"]) == 2
    assert "is named 'unknown'; known: base, dpo, ppo, sft" in capsys.readouterr().err


def test_base_options_select_the_same_base() -> None:
    words = ["--model_name_or_path", "org/m", "--model_revision", "a1b2", "--load_in_4bit"]
    assert base_options(parsed(*words)) == words
    assert base_options(parsed()) == []
