"""Too little memory or disk is an error, and checkpoints are counted as they are written."""

import json

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
def test_gpu_too_small_for_batch_of_one_is_an_error(
    recipe, tiny_base, sft_run, reward_run, tmp_path, capsys
):
    words = ["--model_name_or_path", tiny_base, "--output_dir", tmp_path / "run", "--max_rows", 16]
    words += [] if recipe == "sft" else ["--parent", sft_run]
    words += ["--reward_model", reward_run] if recipe == "ppo" else []
    words += [] if recipe in ("sft", "ppo") else ["--dataset_name", "world:comparisons"]
    words = [str(word) for word in words]
    assert load_check().check(f"{WORLD}/{recipe}.yaml", words, recipe, 0.001) == 2
    output = capsys.readouterr().out
    assert "error: " in output
    assert "do not fit into 1 MB, even with a batch of 1" in output
    assert "largest `per_device_train_batch_size` that fits: none" in output
    assert output.strip().endswith("would fail")


def test_slow_search_for_largest_batch_keeps_prediction(tiny_base, tmp_path, capsys, monkeypatch):
    predict = check.predict

    def slow(*args, always_largest=True, **kwargs):
        if always_largest:
            raise ConfigError("given up after 300 s")
        return predict(*args, always_largest=False, **kwargs)

    monkeypatch.setattr(check, "predict", slow)
    words = ["--model_name_or_path", tiny_base, "--output_dir", tmp_path / "run", "--max_rows", 16]
    findings = check.check_stage(stage_of("sft", *words), gpu_memory_gb=8)
    assert (findings.errors, findings.warnings) == ([], [])
    assert (
        "the largest batch that fits cannot be determined (given up after 300 s)" in findings.notes
    )
    output = capsys.readouterr().out
    assert "predicted peak" in output
    assert "that fits" not in output


@pytest.mark.parametrize("memory", ["0", "nan", "8GB"])
def test_check_rejects_gpu_memory(memory, capsys):
    with pytest.raises(SystemExit) as raised:
        load_check().main(["--config", f"{WORLD}/sft.yaml", f"--gpu_memory_gb={memory}"])
    assert raised.value.code == 2
    assert "--gpu_memory_gb" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("every", "limit", "written"),
    # checkpoints of ten steps that are kept
    [("0.5", None, 2), ("0.1", None, 10), ("0.15", None, 5), ("0.1", 3, 3), ("5", None, 2)],
)
def test_checkpoints_by_share_of_steps_are_counted(every, limit, written, monkeypatch):
    words = ["--save_strategy", "steps", "--save_steps", every, "--output_dir", "/tmp/none"]
    stage = stage_of("sft", *words)
    stage.args.save_total_limit = limit
    needed = []
    for free in range(1, 20):
        usage = type("Usage", (), {"free": free * GB})
        monkeypatch.setattr("toolkit.preflight.findings.shutil.disk_usage", lambda _, u=usage: u)
        findings = Findings()
        check_disk(stage, {"adapters": GB - 1, "heads": 0, "optimizer": 0}, 10, findings)
        assert (DISK in "".join(findings.errors)) != (DISK in "".join(findings.notes))
        if findings.errors:
            needed.append(free)
    # also the run's own adapter, and one checkpoint that is written before an old one is removed
    assert needed[-1] == written + 2


def test_checkpoints_are_written_by_share_of_steps(tiny_base, tmp_path):
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
