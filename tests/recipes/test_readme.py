"""Every recipe command in the README, in the docs and in a recipe's own docstring is one that parses."""

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
    found = re.findall(pattern, "\n".join(texts), re.MULTILINE)
    return sorted({re.sub(r"\\+\n", " ", command) for command in found})


def test_there_is_an_example_of_every_command():
    assert {command.split()[0] for command in commands()} >= all_commands().keys()


@pytest.mark.parametrize("command", commands())
def test_documented_command_parses(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    name, *words = shlex.split(command, comments=True)
    found = find(name)
    if isinstance(found, Recipe):
        parse(found.argument_classes(), words)
    elif name == "pipeline":
        assert Pipeline.read(words[1]).stages
    elif name == "app":
        parse_arguments(words, description="")
    elif found.arguments is not None:
        parse(found.arguments(), words)


def test_named_files_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in re.findall(r"\]\(((?!http)[^)#]+)\)", text):
        assert (ROOT / name).exists(), name
