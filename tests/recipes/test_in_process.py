"""The training recipes called in this process: on a 4-bit base, and killed and continued."""

import importlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from toolkit.config import run_cli
from toolkit.runs import ENSEMBLE, Run, reward_models

WORLD = "recipes/configs/world"
QUICK = {"logging_steps": 1, "warmup_steps": 0, "per_device_train_batch_size": 4}
STEPS = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 2}


def call(recipe, folder, **options):
    """Run a recipe with its shipped config of the embedded world and some options changed."""
    module = importlib.import_module(f"recipes.{recipe}")
    words = ["--config", f"{WORLD}/{recipe}.yaml", "--output_dir", str(folder)]
    for name, value in (QUICK | options).items():
        words += [f"--{name}", str(value).lower() if isinstance(value, bool) else str(value)]
    assert run_cli(module.main, module.arguments(), words) == 0
    return folder


@pytest.mark.slow
def test_qlora_from_sft_to_ppo_through_the_recipes(tiny_base, tmp_path):
    """Every training recipe on one base in 4 bit, as on a card that holds no more."""
    base = {"model_name_or_path": tiny_base, "load_in_4bit": True, "dtype": "bfloat16"}
    few = base | {"max_steps": 2, "max_rows": 16}
    sft = call("sft", tmp_path / "sft", **few)
    reward = call(
        "reward", tmp_path / "reward", parent=sft, dataset_name="world:comparisons", **few
    )
    dpo = call("dpo", tmp_path / "dpo", parent=sft, dataset_name="world:comparisons", **few)
    kto = call("kto", tmp_path / "kto", parent=sft, dataset_name="world:comparisons", **few)
    ppo = call(
        "ppo",
        tmp_path / "ppo",
        parent=sft,
        reward_model=reward,
        total_episodes=16,
        gradient_accumulation_steps=1,
        response_length=8,
        **(few | {"max_steps": -1}),
    )
    start = load_file(sft / "adapter_model.safetensors")
    for folder in (sft, reward, dpo, kto, ppo):
        run = Run.load(folder)
        assert (run.state, run.base["quantization"]) == ("finished", "4bit-nf4")
        found = load_file(folder / "adapter_model.safetensors")
        assert found.keys() == start.keys()
        assert folder == sft or any((found[k] != start[k]).any() for k in start)
    assert abs(json.loads((reward / "run.json").read_text())["results"]["bias"]) > 0
    assert (ppo / "value" / "head.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["sft", "reward", "dpo", "kto"])
def test_a_run_that_died_resumes_to_the_same_adapter(recipe, tiny_base, sft_run, tmp_path):
    options = STEPS | {"model_name_or_path": tiny_base, "max_rows": 16}
    if recipe != "sft":
        options |= {"parent": sft_run, "dataset_name": "world:comparisons"}
    else:
        options |= {"lora_r": 4}
    run = call(recipe, tmp_path / "run", **options)
    expected = load_file(run / "adapter_model.safetensors")
    logged = [row["step"] for row in Run.load(run).metrics()]
    # as a crash after step 3 would have left it
    shutil.rmtree(run / "checkpoint-4")
    (run / "adapter_model.safetensors").unlink()
    died = Run.load(run)
    died.fail(RuntimeError("out of memory"))
    call(recipe, run, resume_from_checkpoint=True, **options)
    found = load_file(run / "adapter_model.safetensors")
    for name, tensor in expected.items():
        assert (found[name] == tensor).all(), name
    assert [row["step"] for row in Run.load(run).metrics()] == logged


@pytest.mark.slow
def test_ppo_hands_over_an_average_and_logs_what_gold_sees(
    tiny_base, sft_run, reward_run, tmp_path
):
    ppo = call(
        "ppo",
        tmp_path / "ppo",
        model_name_or_path=tiny_base,
        parent=sft_run,
        reward_model=reward_run,
        total_episodes=16,
        gradient_accumulation_steps=1,
        response_length=8,
        ema_decay=0.5,
        eval_strategy="steps",
        eval_steps=4,
        eval_prompts=24,
        max_rows=32,
    )
    run = Run.load(ppo)
    assert run.results["adapter"].startswith("the adapter is the policy's average (ema_decay 0.5)")
    assert "last/" in (ppo / "README.md").read_text()
    average, last = (load_file(ppo / f / "adapter_model.safetensors") for f in (".", "last"))
    assert any((average[name] != last[name]).any() for name in last)
    evaluated = [row for row in run.metrics() if "eval_gold/over_refusal" in row]
    assert [row["step"] for row in evaluated] == [4, 8]
    assert len((ppo / "samples.jsonl").read_text().splitlines()) == 2 * 24
    assert run.results["warnings"] == []


@pytest.mark.slow
def test_an_ensemble_trains_on_one_base_goes_on_where_it_stopped_and_rewards_ppo(
    tiny_base, sft_run, tmp_path
):
    options = {"model_name_or_path": tiny_base, "parent": sft_run, "max_steps": 2, "max_rows": 40}
    options |= {"dataset_name": "world:comparisons", "demonstrations": "world:demonstrations"}
    folder = call("reward", tmp_path / "reward", ensemble=3, unit_variance=True, **options)
    run = Run.load(folder)
    assert (run.recipe, run.state, run.results["members"]) == (ENSEMBLE, "finished", 3)
    assert 0 <= run.results["members_agreement"] <= 1
    members = reward_models(str(folder))
    heads = [load_file(f"{member}/head.safetensors")["weight"] for member in members]
    assert not torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[1], heads[2])
    assert [Run.load(m).seed for m in members] == [0, 1, 2]
    assert all(Run.load(m).results["score_std"] == 1.0 for m in members)
    alone = call("reward", tmp_path / "alone", unit_variance=True, **options)
    assert torch.equal(load_file(alone / "head.safetensors")["weight"], heads[0])
    # as a crash in the middle of the last member would have left it
    shutil.rmtree(members[2])
    died = Run.load(folder)
    died.fail(RuntimeError("killed"))
    call(
        "reward",
        folder,
        ensemble=3,
        unit_variance=True,
        resume_from_checkpoint=True,
        **options,
    )
    assert torch.equal(load_file(f"{members[2]}/head.safetensors")["weight"], heads[2])
    assert Run.load(folder).results == run.results
    ppo = call(
        "ppo",
        tmp_path / "ppo",
        model_name_or_path=tiny_base,
        parent=sft_run,
        reward_model=folder,
        total_episodes=8,
        gradient_accumulation_steps=1,
        response_length=8,
        reward_aggregation="mean_minus_std",
        max_rows=16,
    )
    assert [v for k, v in Run.load(ppo).parents.items() if k != "adapter"] == members
