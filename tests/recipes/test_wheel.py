"""The wheel, installed outside the clone: commands, configs and the app work in an empty folder."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]


@pytest.fixture(scope="module")
def toolkit(tmp_path_factory):
    """Runs the installed command in an empty folder; dependencies come from this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([*PIP, "wheel", "--no-deps", "-w", str(folder), str(ROOT)], check=True)
    (wheel,) = folder.glob("*.whl")
    site = folder / "site"
    subprocess.run([*PIP, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    empty = folder / "empty"
    empty.mkdir()

    def run(*words, code=None):
        command = [str(site / "bin" / "toolkit"), *words] if code is None else ["-c", code]
        return subprocess.run(
            [sys.executable, *command],
            cwd=empty,
            env=os.environ | {"PYTHONPATH": str(site)},
            capture_output=True,
            text=True,
            check=False,
        )

    run.site, run.folder = site, empty
    return run


def test_wheel_holds_recipes_configs_and_app_but_no_benchmarks(toolkit):
    assert toolkit(code="import toolkit; print(toolkit.__file__)").stdout.startswith(
        str(toolkit.site)
    )
    files = {str(f.relative_to(toolkit.site)) for f in toolkit.site.rglob("*") if f.is_file()}
    shipped = "toolkit/_shipped"
    assert {f"{shipped}/app.py", f"{shipped}/recipes/sft.py", "toolkit/py.typed"} <= files
    assert f"{shipped}/recipes/configs/world/pipeline.yaml" in files
    assert not [f for f in files if f.startswith(("benchmarks/", "tests/", "recipes/"))]


def test_installed_command_lists_every_command(toolkit):
    names = {file.stem for file in (ROOT / "recipes").glob("*.py")} | {"app"}
    lines = toolkit("--help").stdout.splitlines()
    assert names <= {line.split()[0] for line in lines if line.startswith("  ")}


def test_installed_command_checks_and_trains_in_an_empty_folder(toolkit):
    checked = toolkit("check", "--config", "world/sft")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "no problems found" in checked.stdout
    words = ["--max_steps", "2", "--max_rows", "32", "--output_dir", "sft"]
    trained = toolkit("sft", "--config", "world/sft", *words)
    assert trained.returncode == 0, trained.stderr
    assert json.loads((toolkit.folder / "sft" / "run.json").read_text())["state"] == "finished"
    assert toolkit("app", "--help").returncode == 0
