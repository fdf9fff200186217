"""The hash of a reward function covers its file and the modules beside it that it imports."""

import sys

import pytest

from toolkit.reward.functions import load_reward_functions
from toolkit.runs.code_files import code_of


@pytest.fixture
def hash_of(tmp_path, monkeypatch):
    """Write files, import `judges.rewards:reward` anew, and hash it."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def go(**files):
        (tmp_path / "judges").mkdir(exist_ok=True)
        for name, text in files.items():
            (tmp_path / "judges" / f"{name}.py").write_text(text)
        for name in [n for n in sys.modules if n.split(".")[0] in ("judges", "judges_other")]:
            del sys.modules[name]
        sys.path_importer_cache.clear()
        return code_of(load_reward_functions(["judges.rewards:reward"])[0])

    yield go
    for name in [n for n in sys.modules if n.split(".")[0] in ("judges", "judges_other")]:
        del sys.modules[name]


REWARD = "def reward(completions, **_):\n    return [SCALE for _ in completions]\n"


@pytest.mark.parametrize(
    "line",
    [
        "from judges.scale import SCALE",
        "from .scale import SCALE",
        "from . import scale; SCALE = scale.SCALE",
        "import judges.scale; SCALE = judges.scale.SCALE",
    ],
)
def test_changed_module_beside_reward_changes_hash(hash_of, line):
    files = {"__init__": "", "rewards": f"{line}\n{REWARD}", "unused": ""}
    first = hash_of(**files, scale="SCALE = 1.0")
    assert hash_of(**files, scale="SCALE = 1.0") == first
    assert hash_of(**files | {"unused": "# other"}, scale="SCALE = 1.0") == first
    assert hash_of(**files, scale="SCALE = 25.0") != first


def test_indirectly_imported_module_is_covered(hash_of):
    files = {"__init__": "", "rewards": f"from .scale import SCALE\n{REWARD}"}
    files |= {"scale": "from .deeper import SCALE"}
    assert hash_of(**files, deeper="SCALE = 1.0") != hash_of(**files, deeper="SCALE = 25.0")


def test_module_of_another_folder_is_not_covered(hash_of, tmp_path):
    files = {"__init__": "", "rewards": f"from judges_other import SCALE\n{REWARD}"}
    (tmp_path / "judges_other.py").write_text("SCALE = 1.0")
    first = hash_of(**files)
    (tmp_path / "judges_other.py").write_text("SCALE = 25.0")
    assert hash_of(**files) == first
