"""Room on the card and on the disk: what is too little is refused, whatever is asked of the run."""

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.preflight.test_check import WORLD, load_check, stage_of
from toolkit.errors import ConfigError
from toolkit.preflight import check
from toolkit.preflight.findings import DISK, Findings, check_disk
from toolkit.runs.replacing import checkpoints
from toolkit.runs.resuming import last_checkpoint

pytestmark = pytest.mark.slow

GB = 1 << 30


@pytest.fixture(autouse=True)
def _at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("recipe", ["sft", "reward", "ppo", "dpo", "kto"])
def test_a_card_too_small_for_a_batch_of_one_is_refused(
    recipe, tiny_base, sft_run, reward_run, tmp_path, capsys
):
    words = ["--model_name_or_path", tiny_base, "--output_dir", tmp_path / "run", "--max_rows", 16]
    words += [] if recipe == "sft" else ["--parent", sft_run]
    words += ["--reward_model", reward_run] if recipe == "ppo" else []
    words += [] if recipe in ("sft", "ppo") else ["--dataset_name", "world:comparisons"]
    words = [str(word) for word in words]
    assert load_check().check(f"{WORLD}/{recipe}.yaml", words, recipe, 0.001) == 2
    said = capsys.readouterr().out
    assert "error: " in said
    assert "will not fit in 1 MB, and neither does a batch of 1" in said
    assert "largest `per_device_train_batch_size` that fits: none" in said
    assert said.strip().endswith("would fail")


def test_a_search_for_the_largest_batch_that_takes_too_long_leaves_the_prediction(
    tiny_base, tmp_path, capsys, monkeypatch
):
    foresee = check.foresee

    def slow(*given, always_largest=True, **named):
        if always_largest:
            raise ConfigError("given up after 300 s")
        return foresee(*given, always_largest=False, **named)

    monkeypatch.setattr(check, "foresee", slow)
    words = ["--model_name_or_path", tiny_base, "--output_dir", tmp_path / "run", "--max_rows", 16]
    found = check.check_stage(stage_of("sft", *words), gpu_memory_gb=8)
    assert (found.errors, found.warnings) == ([], [])
    assert "the largest batch that fits was not looked for (given up after 300 s)" in found.notes
    said = capsys.readouterr().out
    assert "predicted peak" in said
    assert "that fits" not in said


@pytest.mark.parametrize("given", ["0", "-8", "nan", "inf", "8GB"])
def test_a_card_of_no_memory_is_no_card(given):
    words = ["--config", f"{WORLD}/sft.yaml", "--gpu_memory_gb", given]
    words = [w if w != given else f"--gpu_memory_gb={given}" for w in words if w[:5] != "--gpu"]
    found = subprocess.run(
        [sys.executable, "recipes/check.py", *words], capture_output=True, text=True, cwd=ROOT
    )
    assert found.returncode == 2
    assert "--gpu_memory_gb" in found.stderr.splitlines()[-1]
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize(
    ("every", "limit", "written"),
    # of ten steps: how many are kept, and one more beside while the limit holds
    [("0.5", None, 2), ("0.1", None, 10), ("0.15", None, 5), ("0.1", 3, 3), ("5", None, 2)],
)
def test_checkpoints_by_a_share_of_the_steps_are_counted(every, limit, written, monkeypatch):
    words = ["--save_strategy", "steps", "--save_steps", every, "--output_dir", "/tmp/none"]
    stage = stage_of("sft", *words)
    stage.args.save_total_limit = limit
    needed = []
    for free in range(1, 20):
        usage = type("Usage", (), {"free": free * GB})
        monkeypatch.setattr("toolkit.preflight.findings.shutil.disk_usage", lambda _, u=usage: u)
        found = Findings()
        check_disk(stage, {"adapters": GB - 1, "heads": 0, "optimizer": 0}, 10, found)
        assert (DISK in "".join(found.errors)) != (DISK in "".join(found.notes))
        if found.errors:
            needed.append(free)
    # the run's own adapter, and one checkpoint that is written before an old one goes
    assert needed[-1] == written + 2


def test_a_share_of_the_steps_is_when_checkpoints_are_written(tiny_base, tmp_path):
    from tests.preflight.test_requirements import recipe_main

    words = ["--model_name_or_path", tiny_base, "--output_dir", tmp_path / "run", "--max_rows", 16]
    words += ["--max_steps", 5, "--save_strategy", "steps", "--save_steps", 0.3]
    stage = stage_of("sft", *words)
    stage.args.save_total_limit = None
    recipe_main("sft")(*stage.options)
    # a share is rounded up: every ⌈5 · 0.3⌉ = 2 steps, and the end
    assert [path.name for path in checkpoints(tmp_path / "run")] == [
        "checkpoint-2",
        "checkpoint-4",
        "checkpoint-5",
    ]
    state = json.loads((tmp_path / "run" / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["save_steps"] == 2
    assert last_checkpoint(str(tmp_path / "run"), "true").endswith("checkpoint-5")
