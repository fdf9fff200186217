"""A recipe started in the folder of a finished run: what fails before it trains costs nothing."""

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
    """Every file of a folder but the lock."""
    files = (f for f in folder.rglob("*") if f.is_file() and f.name != ".lock")
    return {str(f.relative_to(folder)): f.read_bytes() for f in files}


def refused(recipe: str, folder: Path, **options) -> None:
    """As `call`, of what a recipe does not accept."""
    words = ["--config", f"{WORLD}/{recipe}.yaml", "--output_dir", str(folder)]
    words += [w for n, v in (QUICK | options).items() for w in (f"--{n}", str(v))]
    assert run(find(recipe), words) == 2


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["sft", "reward", "dpo", "kto", "ppo"])
def test_a_finished_run_survives_a_start_that_fails(
    recipe, tiny_base, sft_run, reward_run, tmp_path, capsys
):
    options = STEPS | {"model_name_or_path": tiny_base, "max_rows": 16}
    if recipe == "sft":
        options |= {"lora_r": 4}
    elif recipe == "ppo":
        options |= {"parent": sft_run, "reward_model": reward_run, "response_length": 8}
        options |= {"gradient_accumulation_steps": 1}
    else:
        options |= {"parent": sft_run, "dataset_name": "world:comparisons"}
    run = call(recipe, tmp_path / "run", **options)
    (run / DROPPED_FILE).write_text("{}\n")
    before = content(run)
    assert Run.load(run).state == "finished"
    assert checkpoints(run)
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps(BAD | ({"prompt": 7} if recipe == "ppo" else {})) + "\n")
    capsys.readouterr()
    refused(recipe, run, **(options | {"dataset_name": bad}))
    said = capsys.readouterr()
    assert content(run) == before
    assert f"{run}: the finished {recipe} run is unchanged" in said.out
    assert "bad.jsonl" in said.err
    started = Run.load(run).started
    call(recipe, run, **options)
    assert f"{run}: replaces the finished {recipe} run of 20" in capsys.readouterr().out
    assert Run.load(run).started > started
    assert checkpoints(run)
    assert not list(run.glob(f"*{DROPPED_FILE}"))  # this run dropped nothing


@pytest.mark.slow
def test_a_new_ensemble_takes_no_member_of_the_old_one(tiny_base, sft_run, tmp_path, monkeypatch):
    """Made anew with another seed, it dies in its first member, and goes on."""
    options = {"model_name_or_path": tiny_base, "parent": sft_run, "max_steps": 1, "max_rows": 16}
    options |= {"dataset_name": "world:comparisons", "ensemble": 2}
    folder = call("reward", tmp_path / "reward", **options)
    assert is_finished(folder / "member-1")

    def dies(*_, **__):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(RankingTrainer, "training_step", dies)
        with pytest.raises(RuntimeError):
            call("reward", folder, seed=7, **options)
    assert not is_finished(folder / "member-1")
    call("reward", folder, seed=7, resume_from_checkpoint=True, **options)
    assert [Run.load(folder / f"member-{n}").seed for n in (0, 1)] == [7, 8]
