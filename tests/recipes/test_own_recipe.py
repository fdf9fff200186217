"""A recipe of your own is one file: check, pipeline, resume, run listing and the app accept it."""

import json

import pytest

from tests.conftest import ROOT
from toolkit.app.catalog import scan
from toolkit.cli import main
from toolkit.preflight.check import check_stage
from toolkit.recipe import commands
from toolkit.runs.listing import list_runs
from toolkit.stages import find_stages

RECIPE = '''"""Learn the prompts as well as the answers."""

import os

from toolkit.options.arguments import ParentArguments
from toolkit.recipe import Recipe


def arguments():
    from trl import SFTConfig

    return SFTConfig, ParentArguments


def build(training):
    from transformers import TrainerCallback
    from trl import SFTTrainer

    from toolkit.models.peft_methods import build_peft_config

    class Death(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2 and os.path.exists(os.environ["TOY_DEATH"]):
                raise RuntimeError("simulated death")

    new = {"model": training.base, "peft_config": build_peft_config(training.model, training.base)}
    return SFTTrainer(
        **(new if training.parent is None else {"model": training.policy()}),
        args=training.args,
        processing_class=training.tokenizer,
        train_dataset=training.rows,
        callbacks=[Death(), *training.callbacks],
    )


RECIPE = Recipe("toy", __doc__, rows="prompt-completion", arguments=arguments, build=build)
'''


@pytest.fixture
def pipeline(tiny_base, tmp_path, monkeypatch):
    """The YAML of a pipeline with two stages of the toy recipe."""
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    (recipes / "toy.py").write_text(RECIPE, encoding="utf-8")
    config = {
        "model_name_or_path": str(tiny_base),
        "dataset_name": "world:demonstrations",
        "max_rows": 16,
        "per_device_train_batch_size": 2,
        "use_cpu": True,
        "bf16": False,
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 2,
        "logging_steps": 1,
        "report_to": "none",
    }
    (tmp_path / "toy.yaml").write_text(json.dumps(config), encoding="utf-8")
    stages = {
        name: {"recipe": "toy", "config": str(tmp_path / "toy.yaml"), "options": options}
        for name, options in (("first", {"use_peft": True}), ("second", {"parent": "{first}"}))
    }
    content = {"output_dir": str(tmp_path / "runs"), "seed": 0, "stages": stages}
    (tmp_path / "pipeline.yaml").write_text(json.dumps(content), encoding="utf-8")
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("TOOLKIT_RECIPES", str(recipes))
    monkeypatch.setenv("TOY_DEATH", str(tmp_path / "death"))
    return tmp_path / "pipeline.yaml"


@pytest.mark.slow
def test_own_recipe_needs_no_other_edit(pipeline, tmp_path, capsys):
    assert commands()["toy"].summary == "Learn the prompts as well as the answers."
    for stage in find_stages(str(pipeline)):
        findings = check_stage(stage)
        assert (findings.errors, findings.warnings) == ([], [])
    assert capsys.readouterr().out.count("predicted peak") == 2

    (tmp_path / "death").touch()
    assert main(["pipeline", "--config", str(pipeline)]) == 2
    error = capsys.readouterr().err
    assert "stage first failed" in error
    assert "first.log" in error
    assert "Traceback" not in error
    assert (tmp_path / "runs" / "first" / "checkpoint-2").is_dir()
    (tmp_path / "death").unlink()
    assert main(["pipeline", "--config", str(pipeline)]) == 0

    runs, broken = list_runs(tmp_path / "runs")
    assert [(run.path.name, run.recipe, run.state) for run in runs] == [
        ("first", "toy", "finished"),
        ("second", "toy", "finished"),
    ]
    assert broken == []
    assert all(run.results["steps"] == 4 for run in runs)
    rows = (tmp_path / "runs" / "first" / "metrics.jsonl").read_text().splitlines()
    steps = [row["step"] for row in map(json.loads, rows) if "loss" in row]
    assert steps == [1, 2, 3, 4]  # the resumed run logs only the steps that were left
    catalog = scan(
        tmp_path / "runs",
        base_name="base",
        problem=lambda run: run.adapter_problem(),
        load_error=lambda path: None,
    )
    assert {"first", "second"} <= {entry.name for entry in catalog.checkpoints.values()}
    assert catalog.broken == ()
