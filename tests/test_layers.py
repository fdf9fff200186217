"""Each module imports only lower layers, and the cheap ones stay cheap."""

import ast
import graphlib
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from toolkit.recipe import recipes

LAYERS = {  # a module imports its own package and lower layers
    "toolkit": 0,
    "toolkit.errors": 1,
    "toolkit.reading": 1,
    "toolkit.options": 2,
    "toolkit.runs": 2,
    "toolkit.world": 3,
    "toolkit.data": 4,
    "toolkit.kernels": 4,
    "toolkit.models": 5,
    "toolkit.recipe": 6,
    "toolkit.early": 7,
    "toolkit.pipeline": 7,
    "toolkit.stages": 9,
    "toolkit.sampling": 6,
    "toolkit.trainers": 7,
    "toolkit.reward": 8,
    "toolkit.ppo": 9,
    "toolkit.evaluation": 9,
    "toolkit.groups": 10,
    "toolkit.training": 10,
    "toolkit.preflight": 11,
    "toolkit.app": 11,
    "toolkit.judging": 12,
    "toolkit.runner": 12,
    "toolkit.cli": 13,
    "toolkit.__main__": 14,
}


def module_of(file):
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = sorted((ROOT / "toolkit").rglob("*.py"))
MODULES = {module_of(file): file for file in FILES}


def layer(module: str) -> int:
    parts = module.split(".")
    return LAYERS[".".join(parts[:2])]


def imported(file, *, types=True):
    """The names that a file imports, also inside functions; `types`: also those for type checks."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    blocks = [
        n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n.test)
    ]
    skipped = set() if types else {node for block in blocks for node in ast.walk(block)}
    for node in [node for node in ast.walk(tree) if node not in skipped]:
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("file", FILES, ids=[str(f.relative_to(ROOT)) for f in FILES])
def test_imports_only_lower_layers(file):
    module = module_of(file)
    for name in imported(file):
        assert not name.startswith(("recipes", "benchmarks")), f"{module} imports {name}"
        tab = module.startswith("toolkit.app.tabs")
        assert tab or name.split(".")[0] != "gradio", f"{module} imports gradio; only tabs do"
        if name.startswith("toolkit.") and module != "toolkit":
            same = name.split(".")[1] == (module.split(".") + [""])[1]
            assert same or layer(name) < layer(module), name


def test_no_modules_import_each_other():
    graph = {m: {*imported(file, types=False)} - {m} for m, file in MODULES.items()}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def recipe_names(tree):
    """Names of training recipes in comparisons, cases, sets, tuples, constants and `recipe=`."""
    names = recipes().keys()
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            places = [node.left, *node.comparators]
        elif isinstance(node, ast.Call):
            is_search = isinstance(node.func, ast.Name) and node.func.id.startswith("find")
            places = [k.value for k in node.keywords if k.arg == "recipe"]
            places += [n for a in node.args for n in ast.walk(a)] if is_search else []
        elif isinstance(node, ast.Set | ast.Tuple):
            places = [e for e in node.elts if not is_constant(e, {"reward"})]  # also a column
        elif isinstance(node, ast.Assign | ast.MatchValue):
            places = [node.value]
        else:
            continue
        yield from (place.value for place in places if is_constant(place, names))


def is_constant(node, values):
    return isinstance(node, ast.Constant) and node.value in values


@pytest.mark.parametrize(
    "code",
    ["e.recipe == 'ppo'", "name in ('dpo', 'a')", "KTO = 'kto'", "start(recipe='reward')"]
    + ["find_recipe('reward' if many else name)", "match name:\n    case 'sft':\n        pass"],
)
def test_search_for_recipe_names_finds_them(code):
    assert len(list(recipe_names(ast.parse(code)))) == 1


@pytest.mark.parametrize("file", FILES, ids=[str(f.relative_to(ROOT)) for f in FILES])
def test_no_module_names_a_recipe(file):
    assert list(recipe_names(ast.parse(file.read_text(encoding="utf-8")))) == []


def test_design_page_lists_the_layers_in_order():
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    rows = text.split("\n## Layers", 1)[1].split("| --- | --- |\n", 1)[1].split("\n\n", 1)[0]
    names = re.findall(r"`(\w+)`", rows)
    numbers = [LAYERS[f"toolkit.{name}"] for name in names]
    assert numbers == sorted(numbers)
    assert {f"toolkit.{name}" for name in names} == LAYERS.keys() - {"toolkit"}


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").rglob("*.py")), ids=lambda f: f.name)
def test_recipes_are_thin_and_import_no_recipe(recipe):
    assert not [n for n in imported(recipe) if n.startswith("recipes")]
    assert len(recipe.read_text(encoding="utf-8").splitlines()) <= 170


def test_layer_zero_imports_no_heavy_library():
    code = (
        "import sys, toolkit.errors, toolkit.options.config, toolkit.options.command_line;"
        "import toolkit.runs.run, toolkit.pipeline, toolkit.data.loading, toolkit.stages;"
        "import toolkit.options.bounds;"
        "print([m for m in ('torch', 'transformers', 'trl', 'datasets') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
