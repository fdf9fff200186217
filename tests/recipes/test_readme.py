"""Every recipe command in the README, in the docs and in a recipe's own docstring is one that parses."""

import argparse
import importlib.util
import re
import shlex

import pytest

from tests.conftest import ROOT
from toolkit.options.command_line import parse
from toolkit.pipeline import Pipeline


def commands():
    files = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "recipes").rglob("*.py")]
    texts = [f.read_text(encoding="utf-8") for f in sorted(files)]
    found = re.findall(
        r"^ *python (recipes/[\w/]+\.py(?:[^\n]*\\+\n)*[^\n]*)$", "\n".join(texts), re.MULTILINE
    )
    return sorted({re.sub(r"\\+\n", " ", command) for command in found})


def test_there_are_commands_for_every_stage():
    named = {command.split()[0] for command in commands()}
    for recipe in (
        "sft",
        "label",
        "reward",
        "ppo",
        "dpo",
        "kto",
        "merge",
        "evaluate",
        "pipeline",
        "pretrain",
    ):
        assert f"recipes/{recipe}.py" in named


@pytest.mark.parametrize("command", commands())
def test_command_parses(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    script, *words = shlex.split(command)
    assert (ROOT / script).is_file()
    if script == "recipes/pipeline.py":
        assert Pipeline.read(words[1]).stages
        return
    spec = importlib.util.spec_from_file_location("recipe", ROOT / script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.arguments()
    if isinstance(found, argparse.ArgumentParser):
        found.parse_args(words)
    else:
        parse(found, words)


def test_named_files_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in re.findall(r"\]\(((?!http)[^)#]+)\)", text):
        assert (ROOT / name).exists(), name
