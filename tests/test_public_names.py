"""The package's public names, and what importing it leaves alone."""

import re
import subprocess
import sys

import pytest

import toolkit
from tests.conftest import ROOT


def test_all_lists_the_names_in_the_docs():
    """docs/python.md has one table row for each public name."""
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8").split("\n## ", 1)[0]
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == set(toolkit.__all__)


@pytest.mark.parametrize("name", toolkit.__all__)
def test_public_name_is_importable(name):
    assert getattr(toolkit, name) is not None


def test_type_checkers_find_every_public_name():
    text = (ROOT / "toolkit" / "__init__.py").read_text(encoding="utf-8")
    assert set(re.findall(r"^    from toolkit\S+ import (\w+) as \1$", text, re.MULTILINE)) == {
        name for name in toolkit.__all__ if name != "__version__"
    }


def test_import_changes_no_logging_and_no_warning_filters():
    code = (
        "import logging, sys, warnings; before = list(warnings.filters); import toolkit, toolkit.cli;"
        "assert warnings.filters == before, warnings.filters;"
        "levels = [l for l in logging.root.manager.loggerDict.values()"
        " if getattr(l, 'level', 0) != logging.NOTSET];"
        "assert not levels, levels; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False"


def test_help_of_the_command_imports_no_torch():
    code = (
        "import sys; from toolkit.cli import main; assert main(['--help']) == 0;"
        "print([m for m in ('torch', 'transformers', 'trl', 'datasets', 'gradio') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
