"""Each module imports only lower layers, and the cheap ones stay cheap."""

import ast
import subprocess
import sys

import pytest

from tests.conftest import ROOT

LAYERS = {
    "toolkit": 0,
    "toolkit.errors": 0,
    "toolkit.arguments": 0,
    "toolkit.command_line": 0,
    "toolkit.config": 0,
    "toolkit.integrity": 0,
    "toolkit.leftovers": 0,
    "toolkit.listing": 0,
    "toolkit.locking": 0,
    "toolkit.parents": 0,
    "toolkit.resuming": 0,
    "toolkit.runs": 0,
    "toolkit.provenance": 0,
    "toolkit.data": 1,
    "toolkit.world": 1,
    "toolkit.models": 2,
    "toolkit.rl": 3,
    "toolkit.trainers": 4,
    "toolkit.evaluation": 4,
    "toolkit.arena": 5,
    "toolkit.pipeline": 4,
    "toolkit.benchmark": 5,
    "toolkit.preflight": 5,
}
FILES = sorted((ROOT / "toolkit").rglob("*.py"))


def layer(module: str) -> int:
    parts = module.split(".")
    return LAYERS[".".join(parts[:2])]


def imported(file):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("file", FILES, ids=[str(f.relative_to(ROOT)) for f in FILES])
def test_imports_only_lower_layers(file):
    module = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for name in imported(file):
        assert not name.startswith("recipes"), f"{module} imports a recipe"
        tab = module.startswith("toolkit.arena.tabs")
        assert tab or name.split(".")[0] != "gradio", f"{module} imports gradio; only tabs do"
        if name.startswith("toolkit."):
            same = name.split(".")[1] == (module.split(".") + [""])[1]
            assert same or layer(name) < layer(module) or layer(name) == layer(module) <= 1, name


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").rglob("*.py")), ids=lambda f: f.name)
def test_recipes_are_thin_and_import_no_recipe(recipe):
    assert not [n for n in imported(recipe) if n.startswith("recipes")]
    assert len(recipe.read_text(encoding="utf-8").splitlines()) <= 170


def test_layer_zero_imports_no_heavy_library():
    code = (
        "import sys, toolkit.errors, toolkit.config, toolkit.command_line, toolkit.runs;"
        "import toolkit.pipeline, toolkit.data.loading;"
        "print([m for m in ('torch', 'transformers', 'trl', 'datasets') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
