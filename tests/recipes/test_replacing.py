"""A recipe started in the directory of a finished run: the run is kept until the training begins."""

import json
from pathlib import Path

import pytest

from tests.recipes.test_in_process import QUICK, STEPS, WORLD, call
from toolkit.cli import run
from toolkit.recipe import find
from toolkit.reward.ranking import RankingTrainer
from toolkit.runs.parents import is_finished
from toolkit.runs.replacing import DROPPED_FILE, checkpoints
from toolkit.runs.run import Run

BAD = {"prompt": "Where?", "completion": 7, "chosen": 7, "rejected": " No.", "label": "?"}


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder except the lock."""
    files = (f for f in folder.rglob("*") if f.is_file() and f.name != ".lock")
    return {str(f.relative_to(folder)): f.read_bytes() for f in files}


def call_fails(recipe: str, folder: Path, **options) -> None:
    """As `call`, for options or data that the recipe rejects."""
    words = ["--config", f"{WORLD}/{recipe}.yaml", "--output_dir", str(folder)]
    words += [w for n, v in (QUICK | options).items() for w in (f"--{n}", str(v))]
    assert run(find(recipe), words) == 2


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["sft", "reward", "dpo", "kto", "ppo", "grpo"])
def test_finished_run_survives_failed_start(
    recipe, tiny_base, sft_run, reward_run, tmp_path, capsys
):
    options = STEPS | {"model_name_or_path": tiny_base, "max_rows": 16}
    if recipe == "sft":
        options |= {"lora_r": 4}
    elif recipe == "ppo":
        options |= {"parent": sft_run, "reward_model": reward_run, "response_length": 8}
        options |= {"gradient_accumulation_steps": 1}
    elif recipe == "grpo":
        options |= {"parent": sft_run, "reward_model": reward_run, "max_completion_length": 8}
        options |= {"num_generations": 4}
    else:
        options |= {"parent": sft_run, "dataset_name": "world:comparisons"}
    run = call(recipe, tmp_path / "run", **options)
    (run / DROPPED_FILE).write_text("{}\n")
    before = content(run)
    assert Run.load(run).state == "finished"
    assert checkpoints(run)
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps(BAD | ({"prompt": 7} if recipe in ("ppo", "grpo") else {})) + "\n")
    capsys.readouterr()
    call_fails(recipe, run, **(options | {"dataset_name": bad}))
    printed = capsys.readouterr()
    assert content(run) == before
    assert f"{run}: the finished {recipe} run is unchanged" in printed.out
    assert "bad.jsonl" in printed.err
    started = Run.load(run).started
    call(recipe, run, **options)
    assert f"{run}: replaces the finished {recipe} run of 20" in capsys.readouterr().out
    assert Run.load(run).started > started
    assert checkpoints(run)
    assert not list(run.glob(f"*{DROPPED_FILE}"))  # the new run dropped no rows


@pytest.mark.slow
def test_new_ensemble_uses_no_old_member(tiny_base, sft_run, tmp_path, monkeypatch):
    """Started again with another seed, it fails in its first member and is resumed."""
    options = {"model_name_or_path": tiny_base, "parent": sft_run, "max_steps": 1, "max_rows": 16}
    options |= {"dataset_name": "world:comparisons", "ensemble": 2}
    folder = call("reward", tmp_path / "reward", **options)
    assert is_finished(folder / "member-1")

    def fails(*_, **__):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(RankingTrainer, "training_step", fails)
        with pytest.raises(RuntimeError):
            call("reward", folder, seed=7, **options)
    assert not is_finished(folder / "member-1")
    call("reward", folder, seed=7, resume_from_checkpoint=True, **options)
    assert [Run.load(folder / f"member-{n}").seed for n in (0, 1)] == [7, 8]
