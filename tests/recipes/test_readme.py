"""Every command in the README, the docs and the recipes' docstrings parses."""

import re
import shlex

import pytest

from tests.conftest import ROOT
from toolkit.app.arguments import parse_arguments
from toolkit.options.command_line import parse
from toolkit.pipeline import Pipeline
from toolkit.recipe import Recipe, find
from toolkit.recipe import commands as all_commands


def commands():
    files = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "recipes").rglob("*.py")]
    texts = [f.read_text(encoding="utf-8") for f in sorted(files)]
    pattern = r"^ *(?:\.venv/bin/)?toolkit ((?:[^\n]*\\+\n)*[^\n]*)$"
    matches = re.findall(pattern, "\n".join(texts), re.MULTILINE)
    return sorted({re.sub(r"\\+\n", " ", command) for command in matches})


def test_every_command_has_an_example():
    assert {command.split()[0] for command in commands()} >= all_commands().keys()


@pytest.mark.parametrize("line", commands())
def test_documented_command_parses(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    name, *words = shlex.split(line, comments=True)
    command = find(name)
    if isinstance(command, Recipe):
        parse(command.argument_classes(), words)
    elif name == "pipeline":
        own = words[1] == "mine.yaml"  # a file of the reader
        assert own or Pipeline.read(words[1]).stages
    elif name == "app":
        parse_arguments(words, description="")
    elif command.arguments is not None:
        parse(command.arguments(), words)


def test_files_linked_in_readme_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in re.findall(r"\]\(((?!http)[^)#]+)\)", text):
        assert (ROOT / name).exists(), name
