"""The app's command: fast help, one-line errors, and the question that --smoke asks."""

import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.app.server import run_app
from tests.conftest import ROOT
from toolkit.app.answering.cli_command import command, options
from toolkit.app.arguments import PASSWORD, is_loopback, parse_arguments
from toolkit.app.texts import measures
from toolkit.app.workbench import Workbench
from toolkit.errors import ConfigError
from toolkit.runs.run import Run

pytestmark = pytest.mark.slow


def test_smoke_asks_all_checkpoints(tiny_base: str, runs: Path) -> None:
    done = run_app("--smoke", "--model_name_or_path", tiny_base, "--runs", str(runs))
    assert done.returncode == 0, done.stderr
    line = done.stdout.strip().splitlines()[-1]
    assert line.startswith("smoke: 'Hello, who are you?' -> base: ")
    for name in ("sft", "dpo", "ppo"):
        assert f"| {name}: " in line


def test_smoke_without_runs_asks_the_base(tiny_base: str, tmp_path: Path) -> None:
    done = run_app("--smoke", "--model_name_or_path", tiny_base, "--runs", str(tmp_path / "none"))
    assert done.returncode == 0, done.stderr
    assert "-> base: " in done.stdout


def test_smoke_fails_where_a_checkpoint_does(tiny_base: str, runs: Path) -> None:
    head = (runs / "dpo" / "adapter_model.safetensors").read_bytes()
    # the header is whole and the length right, but the numbers are NaN
    (runs / "dpo" / "adapter_model.safetensors").write_bytes(head[:-4000] + b"\xff" * 4000)
    Run.load(runs / "dpo").finish()  # it is what the run wrote, so only loading it tells
    done = run_app("--smoke", "--model_name_or_path", tiny_base, "--runs", str(runs))
    assert done.returncode == 1, done.stderr
    assert "1 of 4 gave no answer" in done.stdout


def test_nothing_heavy_is_imported_before_the_command_line_is_read() -> None:
    code = "import app, sys; print([m for m in ('torch', 'gradio', 'trl') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prot", "1"], "unrecognized arguments: --prot 1"),
        (["--port", "x"], "invalid int value"),
        (["--port", "70000"], "between 1 and 65535"),
        (["--host", "0.0.0.0"], "add --auth USER"),
        (["--host", "192.0.2.1", "--auth", "me"], PASSWORD),
        (["--auth", "me"], PASSWORD),
        (["--runs", "app.py"], "is not a folder"),
        (["--model_name_or_path", "./nowhere"], "./nowhere"),
        (["--model_revision", "a1b2"], "a1b2 is for models of the hub"),
    ],
)
def test_errors_are_one_line(words: list[str], said: str) -> None:
    done = run_app(*words)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if "Error: " in line]
    assert len(lines) == 1
    assert said in lines[0]
    assert "Traceback" not in done.stderr


def test_a_taken_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run_app("--port", str(port))
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr


@pytest.mark.parametrize(
    ("host", "only_here"),
    [
        *[(h, True) for h in ("127.0.0.1", "127.8.8.8", "::1", "localhost")],
        *[
            (h, False)
            for h in ("0.0.0.0", "::", "10.0.0.1", "example.org", "127.0.0.1.example.org")
        ],
    ],
)
def test_loopback(host: str, only_here: bool) -> None:
    assert is_loopback(host) is only_here


def test_login(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSWORD, "secret")
    assert parse_arguments([], description="").login is None
    opened = parse_arguments(["--host", "0.0.0.0", "--auth", "me"], description="")
    assert opened.login == ("me", "secret")
    with pytest.raises(ConfigError, match="a user name"):
        _ = parse_arguments(["--auth", ""], description="").login


def test_the_page_s_command_repeats_its_answer(tiny_base: str, runs: Path) -> None:
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
    said = command(
        ["--runs", str(runs), "--model_name_or_path", tiny_base],
        checkpoint="dpo",
        messages=messages,
        drawing=comparison.request.sampling,
        reward="reward",
    )
    words = shlex.split(said)
    assert words[:2] == ["python", "app.py"]
    done = run_app(*words[2:])
    assert done.returncode == 0, done.stderr
    text, _, numbers = done.stdout.rstrip("\n").rpartition("\n\n")
    assert text.strip() == answer.text.strip()
    assert numbers.splitlines()[:2] == measures(answer).splitlines()[:2]


def test_ask_names_what_it_does_not_know(tiny_base: str, runs: Path) -> None:
    asked = ("--ask", "Hi", "--model_name_or_path", tiny_base, "--runs", str(runs))
    done = run_app(*asked, "--checkpoint", "nobody")
    assert done.returncode == 2
    assert "no checkpoint 'nobody'; known: base, dpo, ppo, sft" in done.stderr


def test_a_password_is_asked_for_at_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PASSWORD, raising=False)
    monkeypatch.setattr("getpass.getpass", lambda prompt: "typed")
    arguments = parse_arguments(["--auth", "me"], description="")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    assert arguments.login == ("me", "typed")
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    with pytest.raises(ConfigError, match=PASSWORD):
        _ = arguments.login


def test_no_option_takes_a_password() -> None:
    with pytest.raises(ConfigError, match="unrecognized"):
        parse_arguments(["--auth", "me", "--password", "secret"], description="")


@pytest.mark.parametrize(("host", "warned"), [("0.0.0.0", True), ("127.0.0.1", False)])
def test_an_open_host_is_told_of_tls(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], host: str, warned: bool
) -> None:
    monkeypatch.setenv(PASSWORD, "secret")
    assert parse_arguments(["--host", host, "--auth", "me"], description="").login is not None
    said = capsys.readouterr()
    assert ("TLS" in said.err) is warned
    assert "secret" not in said.err + said.out


def test_the_default_listens_on_this_machine_only() -> None:
    assert parse_arguments([], description="").host == "127.0.0.1"


def test_the_words_that_find_the_same_base_again() -> None:
    words = ["--model_name_or_path", "org/m", "--model_revision", "a1b2", "--load_in_4bit"]
    assert options(parse_arguments(words, description="")) == words
    assert options(parse_arguments([], description="")) == []
