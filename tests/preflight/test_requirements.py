"""`toolkit check` rejects the same options as the recipe, with the same message."""

import dataclasses
import json
import shutil
from functools import partial

import pytest
from transformers import AutoTokenizer

from tests.conftest import ROOT
from tests.preflight.test_check import WORLD, load_check, stage_of
from toolkit.errors import ConfigError, ToolkitError
from toolkit.options.arguments import LabelArguments
from toolkit.preflight.check import check_stage, full_rows
from toolkit.preflight.fit import Planner
from toolkit.preflight.requirements import check_requirements
from toolkit.recipe import find_recipe
from toolkit.runner import train
from toolkit.runs.resuming import list_contents
from toolkit.runs.run import ADAPTER_FILES, ENSEMBLE, Run
from toolkit.stages import find_stages


@pytest.fixture(autouse=True)
def _at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


PAIRS = ["--dataset_name", "world:comparisons"]
STREAM = ["--dataset_streaming", "true"]


def recipe_main(name):
    return partial(train, find_recipe(name))


def unfinished(folder, adapter):
    """An interrupted run with an adapter."""
    shutil.copytree(adapter, folder)
    Run(folder, "sft", state="failed").save()
    return folder


@pytest.fixture
def bad_options(tmp_path, sft_run, reward_run):
    """Options that the recipe rejects: recipe, words, message."""
    died = unfinished(tmp_path / "died", sft_run)
    (died / "checkpoint-5").mkdir()
    new_rank = ["--use_peft", "true", "--lora_r", "3"]
    return {
        "adapter options": ("dpo", ["--parent", sft_run, *new_rank], "would have no effect"),
        "unfinished parent": ("dpo", ["--parent", died], "is failed, not finished"),
        "no adapter": ("sft", ["--use_peft", "false"], "only adapters can be trained"),
        "demonstrations": (
            "reward",
            ["--parent", sft_run, "--demonstrations", tmp_path / "no.jsonl"],
            "no.jsonl: no such file",
        ),
        "no reward model": (
            "ppo",
            ["--parent", sft_run, "--reward_model", sft_run],
            "so it is not a reward model",
        ),
        "no texts": (
            "ppo",
            ["--parent", sft_run, "--reward_model", reward_run, "--ptx_coef", "0.5"],
            "no pretraining texts",
        ),
        "an empty batch": (
            "sft",
            ["--per_device_train_batch_size", "0"],
            "`per_device_train_batch_size` must be in 1…65536, got 0",
        ),
        "no epoch": ("sft", ["--num_train_epochs", "0"], "raise it, or set `max_steps`"),
        "a stream without an end": ("sft", STREAM, "`dataset_streaming` needs `max_steps`"),
        "a stream of rankings": (
            "reward",
            ["--parent", sft_run, "--max_steps", "2", *STREAM],
            "all pairs of a ranking must be grouped before training",
        ),
        "a stream for workers": (
            "sft",
            [
                "--max_steps",
                "2",
                "--save_strategy",
                "steps",
                "--dataloader_num_workers",
                "1",
                *STREAM,
            ],
            "rows are counted in the main process",
        ),
        "a batch of one": (
            "kto",
            ["--parent", sft_run, "--per_device_train_batch_size", "1"],
            "`per_device_train_batch_size` must be at least 2",
        ),
        "another order": (
            "kto",
            ["--parent", sft_run, "--train_sampling_strategy", "random"],
            "`train_sampling_strategy` must be sequential",
        ),
        "checkpoints of an unfinished run": (
            "dpo",
            ["--parent", sft_run, "--output_dir", died],
            "checkpoint-5 of a run that did not finish",
        ),
    }


CASES = [
    "adapter options", "unfinished parent", "no adapter", "demonstrations",
    "no reward model", "no texts", "an empty batch", "no epoch",
    "a batch of one", "another order",
    "a stream without an end", "a stream of rankings",
    "a stream for workers", "checkpoints of an unfinished run",
]  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_check_and_recipe_reject_same_options(name, bad_options, tiny_base, tmp_path, capsys):
    recipe, words, message = bad_options[name]
    own = [] if "--output_dir" in words else ["--output_dir", tmp_path / "run"]
    if recipe in ("dpo", "reward", "kto"):
        own += PAIRS
    words = [str(w) for w in ("--model_name_or_path", tiny_base, *own, *words)]
    with pytest.raises(ToolkitError, match=message) as raised:
        recipe_main(recipe)(*stage_of(recipe, *words).options)
    assert not (tmp_path / "run").exists()
    assert load_check().check(f"{WORLD}/{recipe}.yaml", words, recipe, None) == 2
    assert str(raised.value) in capsys.readouterr().out


def test_base_of_parent_is_the_default(tiny_base, sft_run, tmp_path):
    Run(sft_run, "sft", state="finished", config={"model_name_or_path": str(tiny_base)}).save()
    words = ["--parent", str(sft_run), "--output_dir", str(tmp_path / "run"), *PAIRS]
    options, _ = check_requirements(find_recipe("dpo"), stage_of("dpo", *words).options)
    assert options.model.model_name_or_path == str(tiny_base)
    named = stage_of("dpo", *words, "--model_name_or_path", "other/base").options
    options, _ = check_requirements(find_recipe("dpo"), named)
    assert options.model.model_name_or_path == "other/base"
    first = stage_of("sft", "--model_name_or_path", str(tiny_base), "--dtype", "bfloat16")
    words[1] = "planned/sft"
    second = stage_of("dpo", *words).options
    options, _ = check_requirements(find_recipe("dpo"), second, planned={"planned/sft": first})
    assert (options.model.model_name_or_path, options.model.dtype) == (str(tiny_base), "bfloat16")


def test_check_rejects_bad_rows_of_demonstrations(tiny_base, sft_run, tmp_path, capsys):
    file = tmp_path / "shown.jsonl"
    file.write_text(json.dumps({"prompt": "Q", "completion": ""}) + "\n", encoding="utf-8")
    words = ["--model_name_or_path", tiny_base, "--parent", sft_run, "--demonstrations", file]
    words += ["--max_rows", 16, "--output_dir", tmp_path / "run"]
    words = [str(w) for w in (*PAIRS, *words)]
    assert load_check().check(f"{WORLD}/reward.yaml", words, "reward", None) == 2
    assert "shown.jsonl" in capsys.readouterr().out.split("error: ")[1]


def test_interrupted_run_is_resumed_or_rejected(tmp_path, tiny_base, sft_run):
    died = unfinished(tmp_path / "run", sft_run)
    (died / "checkpoint-5").mkdir()
    words = ["--model_name_or_path", tiny_base, "--parent", sft_run, "--output_dir", died]
    words += PAIRS
    with pytest.raises(ToolkitError, match="did not finish"):
        check_requirements(find_recipe("dpo"), stage_of("dpo", *words).options)
    resumed = stage_of("dpo", *words, "--resume_from_checkpoint", "true").options
    for name in (*ADAPTER_FILES, "optimizer.pt", "scheduler.pt", "trainer_state.json"):
        (died / "checkpoint-5" / name).write_text("{}", encoding="utf-8")
    list_contents(died / "checkpoint-5")
    _, checkpoint = check_requirements(find_recipe("dpo"), resumed)
    assert checkpoint == str(died / "checkpoint-5")
    Run(died, "dpo", state="finished").save()
    assert check_requirements(find_recipe("dpo"), stage_of("dpo", *words).options)[1] is None


@pytest.mark.parametrize("recipe", ["sft", "reward", "ppo", "dpo"])
def test_several_gpus_are_rejected(monkeypatch, sft_run, reward_run, recipe):
    words = [] if recipe == "sft" else ["--parent", str(sft_run)]
    words += ["--reward_model", str(reward_run)] if recipe == "ppo" else []
    words += PAIRS if recipe in ("reward", "dpo") else []
    stage = stage_of(recipe, *words)
    stage.args.use_cpu = False
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"2 GPUs are visible.*CUDA_VISIBLE_DEVICES=0"):
        check_requirements(find_recipe(recipe), stage.options)
    with pytest.raises(ConfigError, match="2 GPUs are visible"):
        recipe_main(recipe)(*stage.options)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    check_requirements(find_recipe(recipe), stage.options, planned={})
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    stage.args.use_cpu = True
    options, _ = check_requirements(find_recipe(recipe), stage.options, planned={})
    assert options.model.device_map is None
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    options, _ = check_requirements(find_recipe(recipe), stage.options, planned={})
    assert options.model.device_map == "cpu"  # the base is not loaded on the GPU either
    assert stage.model.device_map is None


def test_requirements_leave_their_options_unchanged(
    tmp_path, tiny_base, sft_run, reward_run, monkeypatch
):
    Run(sft_run, "sft", state="finished", config={"model_name_or_path": str(tiny_base)}).save()
    rewards = ensemble_of(tmp_path / "rewards", reward_run)
    options = stage_of("ppo", "--parent", sft_run, "--reward_model", rewards).options
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    before = [dataclasses.asdict(config) for config in options]
    resolved, _ = check_requirements(find_recipe("ppo"), options, planned={})
    assert [dataclasses.asdict(config) for config in options] == before
    model = resolved.model
    assert (model.model_name_or_path, model.device_map) == (str(tiny_base), "cpu")
    assert len(resolved.rewards) == 2


def ensemble_of(folder, reward_run, members=2):
    for number in range(members):
        shutil.copytree(reward_run, folder / f"member-{number}")
    Run(folder, ENSEMBLE, state="finished", config={"ensemble": members}).save()
    return folder


@pytest.mark.slow
def test_members_of_ensemble_are_checked(tiny_base, sft_run, reward_run, tmp_path):
    folder = ensemble_of(tmp_path / "several", reward_run)
    words = ["--model_name_or_path", tiny_base, "--parent", sft_run, "--reward_model", folder]
    stage = stage_of("ppo", *words, "--output_dir", tmp_path / "run", "--max_rows", 16)
    findings = check_stage(stage)
    assert findings.errors == []
    members = [f"{folder}/member-{i}: an adapter of this base" for i in range(2)]
    assert [note for note in findings.notes if "member-" in note] == members


def pipeline_of(tmp_path, base, **stages):
    """A pipeline's YAML with stages in order: recipe and options."""
    file, configs = tmp_path / "pipeline.yaml", {}
    for name, (recipe, options) in stages.items():
        options = {"model_name_or_path": str(base)} | options
        configs[name] = {
            "recipe": recipe,
            "config": f"{WORLD}/{recipe}.yaml",
            "options": options,
        }
    content = {"output_dir": str(tmp_path / "out"), "seed": 0, "stages": configs}
    file.write_text(json.dumps(content), encoding="utf-8")
    return str(file)


@pytest.mark.slow
def test_later_stages_predict_adapter_of_first_stage(tiny_base, tmp_path, capsys):
    shape = {"use_peft": True, "lora_r": 3}
    file = pipeline_of(
        tmp_path,
        tiny_base,
        sft=("sft", shape),
        first=("dpo", {"parent": "{sft}", "dataset_name": "world:comparisons"}),
        second=("dpo", {"parent": "{first}", "dataset_name": "world:comparisons"}),
    )
    stages = find_stages(file)
    parent, model = stages[2].starting_adapter()
    assert parent is None
    assert model.lora_r == 3
    assert load_check().check(file, [], None, None) == 0
    output = capsys.readouterr().out
    assert output.count("predicted peak") == 3
    assert "cannot be predicted" not in output


@pytest.mark.parametrize("recipe", ["evaluate", "label"])
def test_wrong_option_of_stage_without_training_is_rejected(recipe, tiny_base, tmp_path):
    options = {"runs": ["{sft}"]} if recipe == "evaluate" else {"parent": "{sft}"}
    stages = {"sft": ("sft", {"use_peft": True}), "last": (recipe, options)}
    assert len(find_stages(pipeline_of(tmp_path, tiny_base, **stages))) == 1
    stages["last"] = (recipe, options | {"temperature": -1})
    with pytest.raises(ConfigError, match="`temperature` must be"):
        find_stages(pipeline_of(tmp_path, tiny_base, **stages))


def test_members_of_planned_ensemble_are_predicted(tiny_base, tmp_path):
    file = pipeline_of(
        tmp_path,
        tiny_base,
        sft=("sft", {"use_peft": True}),
        reward=("reward", {"parent": "{sft}", "dataset_name": "world:comparisons", "ensemble": 3}),
        ppo=("ppo", {"parent": "{sft}", "reward_model": "{reward}"}),
    )
    stage = find_stages(file)[2]
    options, _ = check_requirements(stage.recipe, stage.options, planned=stage.planned)
    stage = dataclasses.replace(stage, options=options)
    assert stage.rewards == [f"{tmp_path}/out/reward/member-{i}" for i in range(3)]
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    planner = Planner.of(stage, tokenizer, {"prompt_ids": [5] * 4}, cuda=False)
    assert len(planner.dry_runs[0].trainer.roles.rewards) == 3


def test_planned_rankings_have_labelled_number_of_answers(tiny_base, tmp_path):
    file = pipeline_of(
        tmp_path,
        tiny_base,
        sft=("sft", {"use_peft": True}),
        label=("label", {"parent": "{sft}", "completions": 3, "base_completions": 1}),
        reward=("reward", {"parent": "{sft}", "dataset_name": "{label}"}),
    )
    stage = find_stages(file)[1]
    assert isinstance(stage.planned[str(tmp_path / "out" / "label")], LabelArguments)
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    vices = stage.planned[str(tmp_path / "out" / "label")].written_vices
    assert len(full_rows(stage, tokenizer)[0]["ids"]) == 3 + 1 + vices
    stage.own.shuffle_pairs = True
    assert len(full_rows(stage, tokenizer)[0]["ids"]) == 2
