"""JSON files of a run with values of wrong types raise one line that names file, value and type."""

import json
import math
import re

import pytest

from toolkit.errors import CheckpointError
from toolkit.models.base import check_fingerprint
from toolkit.runs.listing import list_runs
from toolkit.runs.parents import require_reward_models
from toolkit.runs.resuming import CONTENTS, REQUIRED, damage
from toolkit.runs.run import Run
from toolkit.runs.settings import require_same

MANIFEST = {"schema": 1, "recipe": "sft", "state": "finished", "started": 1.5, "seconds": 3}


def write(folder, name, content):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("recipe", 3, "str, got 3 (int)"),
        ("state", ["finished"], "str, got ['finished'] (list)"),
        ("config", ["seed"], "dict[str, Any], got ['seed'] (list)"),
        ("seed", "0", "int | None, got '0' (str)"),
        ("seed", True, "int | None, got True (bool)"),
        ("base", "world:base", "dict[str, Any], got 'world:base' (str)"),
        ("parents", {"adapter": ["a"]}, "dict[str, str], got {'adapter': ['a']} (dict)"),
        ("started", "yesterday", "float, got 'yesterday' (str)"),
        ("started", [1], "float, got [1] (list)"),
        ("started", 10**30, "in 0…1e+11"),
        ("started", math.nan, "in 0…1e+11"),
        ("seconds", -1, "in 0…1e+11"),
        ("seconds", {}, "float | None, got {} (dict)"),
        ("results", [], "dict[str, Any], got [] (list)"),
        ("weights", {"a": 1}, "dict[str, str], got {'a': 1} (dict)"),
        ("inputs", None, "dict[str, str], got None (NoneType)"),
        ("resumed", 3, "list[dict[str, Any]], got 3 (int)"),
        ("resumed", ["x"], "list[dict[str, Any]], got ['x'] (list)"),
        ("error", 5, "str | None, got 5 (int)"),
    ],
)
def test_wrong_type_in_manifest_is_named(tmp_path, name, value, expected):
    write(tmp_path, "run.json", MANIFEST | {name: value})
    with pytest.raises(
        CheckpointError, match=rf"run\.json: .*`{name}` must be {re.escape(expected)}"
    ):
        Run.load(tmp_path)
    assert [broken.path for broken in list_runs(tmp_path)[1]] == [tmp_path]


def test_damaged_manifest_can_be_replaced(tmp_path):
    write(tmp_path, "run.json", MANIFEST | {"started": "yesterday"})
    run = Run.start(tmp_path, recipe="sft")
    run.begin()
    run.finish()
    assert Run.load(tmp_path).state == "finished"


def test_ensemble_needs_all_of_its_members(tmp_path):
    ensemble = MANIFEST | {"recipe": "reward_ensemble", "config": {"ensemble": 10**12}}
    write(tmp_path, "run.json", ensemble)
    write(tmp_path / "member-0", "run.json", MANIFEST | {"recipe": "reward"})
    with pytest.raises(CheckpointError, match=r"is 1000000000000, but the folder holds 1 members"):
        require_reward_models(str(tmp_path))


@pytest.mark.parametrize("content", [[["id", "x"]], {"weights": 3}, "text"])
def test_base_of_wrong_type_is_damaged(tmp_path, content):
    write(tmp_path, "base.json", content)
    with pytest.raises(CheckpointError, match=r"base\.json: damaged"):
        check_fingerprint(tmp_path, {"id": "a", "weights": "b"})


def test_length_of_wrong_type_counts_as_changed(tmp_path):
    saved, current = {"max_steps": "x", "num_train_epochs": [1]}, {"max_steps": 3}
    with pytest.raises(CheckpointError, match="written with `max_steps` x, but this run has 3"):
        require_same(tmp_path, saved, current)
    with pytest.raises(CheckpointError, match="written with `num_train_epochs`"):
        require_same(tmp_path, {"num_train_epochs": [1], "max_steps": "x"}, current)


def test_impossible_name_in_contents_is_damage(tmp_path):
    for name in REQUIRED:
        (tmp_path / name).write_text("{}")
    sizes = {name: 2 for name in REQUIRED}
    write(tmp_path, CONTENTS, sizes | {"a\0b": {"bytes": 2}})
    reason = damage(tmp_path)
    assert reason is not None and "is damaged" in reason
