"""A run does not write into the runs, datasets and models that it reads."""

import pytest

from tests.runs.test_pipeline import write  # noqa: F401
from toolkit import cli
from toolkit.errors import ConfigError
from toolkit.pipeline import Pipeline
from toolkit.recipe import find
from toolkit.runs.inputs import require_separate
from toolkit.runs.run import ENSEMBLE, Run


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a run, an ensemble, a dataset and a link to the run."""
    monkeypatch.chdir(tmp_path)
    for name, recipe in (("sft", "sft"), ("ensemble", ENSEMBLE), ("ensemble/member-0", "reward")):
        Run.start(name, recipe=recipe).finish()
    for name in ("sft/checkpoint-5", "runs", "data", "model"):
        (tmp_path / name).mkdir()
    (tmp_path / "data" / "train.jsonl").touch()
    (tmp_path / "link").symlink_to("sft")
    return tmp_path


@pytest.mark.parametrize(
    ("option", "name", "output", "relation"),
    [
        ("parent", "sft", "sft", "is"),
        ("parent", "./runs/../sft/", "{place}/sft", "is"),
        ("parent", "link", "sft", "is"),
        ("parent", "sft", "link", "is"),
        ("parent", "sft", "link/dpo", "lies in"),
        ("parent", "sft", ".", "contains"),
        ("parent", "sft/checkpoint-5", "sft", "is the folder of"),
        ("parent", "sft/checkpoint-5", "sft/dpo", "lies in"),
        ("reward_model", ["ensemble"], "ensemble/member-0", "lies in"),
        ("reward_model", ["sft", "ensemble/member-0"], "ensemble", "is the folder of"),
        ("reward_model", ["ensemble/member-0"], "ensemble/member-1", "lies in"),
        ("runs", ["sft"], "sft/report", "lies in"),
        ("dataset_name", "data", "data", "is"),
        ("dataset_name", "data/train.jsonl", "data", "is the folder of"),
        ("dataset_name", "sft", "sft/again", "lies in"),
        ("sources", [{"dataset_name": "data"}], "data", "is"),
        ("model_name_or_path", "model", "model", "is"),
        ("model_name_or_path", "owner/name", "owner/name", "is"),
    ],
)
def test_output_folder_that_is_an_input_is_rejected(place, option, name, output, relation):
    output = output.format(place=place)
    with pytest.raises(ConfigError, match=f"{output} {relation} `{option}` .*choose another"):
        require_separate(output, {option: name})


@pytest.mark.parametrize(
    ("option", "name", "output"),
    [
        ("parent", "sft", "sft-2"),
        ("reward_model", ["ensemble"], "ppo"),
        ("dataset_name", "data", "data/run"),
        ("dataset_name", "data", "."),
        ("dataset_name", "world:corpus", "."),
        ("model_name_or_path", "model", "model/run"),
        ("parent", None, "sft"),
        ("parent", 5, "sft"),
        ("runs", [5, "a\0b", "x" * 5000], "sft"),
        ("sources", [{}], "sft"),
        ("parent", "sft", "a\0b"),
    ],
)
def test_separate_output_folder_is_accepted(place, option, name, output):
    require_separate(output, {option: name})


def test_report_may_stand_beside_its_runs(place):
    require_separate(".", {"runs": ["sft"]}, may_hold_runs=True)
    with pytest.raises(ConfigError, match="is the folder of"):
        require_separate("ensemble", {"reward_model": "ensemble/member-0"}, may_hold_runs=True)


@pytest.mark.parametrize(
    "recipe", ["dpo", "kto", "reward", "ppo", "rloo", "grpo", "label", "merge"]
)
def test_recipe_leaves_its_parent_unchanged(recipe, tiny_base, sft_run, reward_run, capsys):
    run = Run(sft_run, "sft", state="finished", config={"model_name_or_path": str(tiny_base)})
    run.save()
    before = (sft_run / "run.json").read_bytes()
    words = ["--config", f"world/{recipe}", "--parent", str(sft_run), "--output_dir", str(sft_run)]
    words += ["--reward_model", str(reward_run)] if recipe in ("ppo", "rloo", "grpo") else []
    assert cli.run(find(recipe), words) == 2
    assert "is `parent`" in capsys.readouterr().err
    assert (sft_run / "run.json").read_bytes() == before


def test_pipeline_rejects_stage_in_folder_of_parent(write, place):  # noqa: F811
    text = """
output_dir: {out}
seed: 0
stages:
  dpo: {{recipe: dpo, config: {config}, options: {{parent: PARENT, output_dir: link}}}}
""".replace("PARENT", str(place / "sft"))
    with pytest.raises(ConfigError, match="link is `parent`"):
        Pipeline.read(str(write(text)))
