"""A resumed run of any recipe: the same result and log, and only with the same settings and data."""

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from trl import DatasetMixtureConfig, DPOConfig, KTOConfig, RewardConfig, ScriptArguments, SFTConfig

from tests.recipes.test_in_process import QUICK, STEPS, WORLD, call
from toolkit.cli import run
from toolkit.groups.config import GRPOConfig, RLOOConfig
from toolkit.models.arguments import ModelArguments
from toolkit.options.arguments import (
    PPOArguments,
    RewardArguments,
    SampleArguments,
    SFTArguments,
)
from toolkit.ppo.config import PPOConfig
from toolkit.recipe import find
from toolkit.runs.provenance import plain
from toolkit.runs.resuming import list_contents
from toolkit.runs.run import Run
from toolkit.runs.settings import DATA, FREE, LENGTH, SETTINGS_FILE
from toolkit.trainers.callbacks import RunCallback

TRAINERS = (SFTConfig, RewardConfig, DPOConfig, KTOConfig, PPOConfig, RLOOConfig, GRPOConfig)
OTHERS = (ScriptArguments, DatasetMixtureConfig, ModelArguments, SFTArguments, RewardArguments)
TIMES = ("_runtime", "_per_second", "step_time")
ONLINE = ("ppo", "rloo", "grpo")
EVAL = {"eval_strategy": "steps", "eval_steps": 4}


def names_of(*configs):
    return {f.name for config in configs for f in dataclasses.fields(config)}


def test_options_that_may_change_exist_and_are_few():
    """Any other option, also one that a later TRL adds, must stay the same."""
    free = set(" ".join(FREE.values()).split())
    known = names_of(*TRAINERS, *OTHERS, PPOArguments, SampleArguments)
    new_names = {"activation_checkpointing", "activation_checkpointing_kwargs"}  # in newer versions
    assert (free | set(DATA) | set(LENGTH)) - known <= new_names
    assert not free & (set(DATA) | set(LENGTH))
    same = known - free - set(DATA) - set(LENGTH)
    assert same >= set(
        """learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps optim optim_args weight_decay
        adam_beta1 adam_beta2 adam_epsilon per_device_train_batch_size gradient_accumulation_steps seed
        data_seed bf16 fp16 tf32 dtype load_in_4bit neftune_noise_alpha label_smoothing_factor beta
        loss_type loss_weights max_length packing truncation_mode completion_only_loss eos_token
        pad_token precompute_ref_log_probs desirable_weight center_rewards_coefficient shuffle_pairs
        demonstrations lora_r lora_alpha lora_target_modules peft_method use_dora chat_template
        train_sampling_strategy dataloader_drop_last metric_for_best_model load_best_model_at_end
        ema_decay kl_coef gamma lam num_generations temperature""".split()
    )


class Crash(RuntimeError):
    """Stands for a kill."""


def crash(recipe, folder, monkeypatch, *, step, **options):
    """Run a recipe that dies before this step, after the checkpoints until then."""

    def die(self, args, state, control, **_):
        if state.global_step == step:
            raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(RunCallback, "on_step_begin", die, raising=False)
        with pytest.raises(Crash):
            call(recipe, folder, **options)
    return folder


def options_of(recipe, base, sft, reward):
    """Options of a short run on the tiny base."""
    options = {"model_name_or_path": base, "max_rows": 16, "save_strategy": "steps"}
    if recipe == "sft":
        return options | {"lora_r": 4}
    options |= {"parent": sft}
    options |= {"reward_model": reward} if recipe in ONLINE else {}
    if recipe == "ppo":
        ppo = {"total_episodes": 16, "response_length": 6}
        return options | ppo | {"gradient_accumulation_steps": 1}
    if (
        recipe in ONLINE
    ):  # a generation of four prompts every two steps, an epoch of six or eight steps
        options |= {"num_generations": 2, "steps_per_generation": 2, "num_iterations": 1}
        return options | {"max_completion_length": 6, "gradient_accumulation_steps": 1}
    return options | {"dataset_name": "world:comparisons"}


def untimed(folder):
    return [
        {k: v for k, v in row.items() if not k.endswith(TIMES) and not k.startswith("time/")}
        for row in Run.load(folder).metrics()
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "streaming"),
    [
        ("sft", False),
        ("reward", False),
        ("dpo", False),
        ("kto", False),
        *((recipe, False) for recipe in ONLINE),
        ("sft", True),
        ("dpo", True),
    ],
)
def test_killed_run_resumes_to_same_adapter_and_log(
    recipe, streaming, tiny_base, sft_run, reward_run, tmp_path, monkeypatch
):
    """Saved after steps 3 and 6, logged after 4 and 8, killed before 8."""
    options = options_of(recipe, tiny_base, sft_run, reward_run)
    options |= {"save_steps": 3, "logging_steps": 4, "max_steps": 8}
    options |= {"dataset_streaming": True} if streaming else EVAL
    options |= {} if "eval_steps" not in options or recipe in ONLINE else {"test_split_size": 4}
    whole = call(recipe, tmp_path / "whole", **options)
    killed = crash(recipe, tmp_path / "killed", monkeypatch, step=7, **options)
    call(recipe, killed, resume_from_checkpoint=True, **options)
    expected, resumed = (load_file(f / "adapter_model.safetensors") for f in (whole, killed))
    for name, tensor in expected.items():
        assert torch.equal(resumed[name], tensor), name
    rows = untimed(whole)
    assert [row["step"] for row in rows if "loss" in row] == [4, 8]
    assert untimed(killed) == rows
    assert Run.load(killed).resumed == [{"from": "checkpoint-6", "changed": {}}]


@pytest.fixture(scope="module")
def stopped(tiny_base, adapter_runs, tmp_path_factory):
    """A DPO run that died after checkpoint 2 of 4, its data and its parent; do not change."""
    folder = tmp_path_factory.mktemp("stopped")
    data, parent = folder / "rows.jsonl", folder / "sft"
    shutil.copytree(adapter_runs / "sft", parent)
    pair = {"chosen": "Yes, it is.", "rejected": "No."}
    rows = [{"prompt": f"Is {n} a number?"} | pair for n in range(12)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.MonkeyPatch.context() as patch:
        options = dpo_options(folder, tiny_base)
        crash("dpo", folder / "run", patch, step=3, **options)
    return folder


def dpo_options(folder, base):
    return STEPS | {
        "model_name_or_path": base,
        "parent": folder / "sft",
        "dataset_name": folder / "rows.jsonl",
        "lr_scheduler_type": "constant",
        "max_steps": -1,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 6,
        "test_split_size": 1,
    }


@pytest.fixture
def again(stopped, tiny_base, tmp_path):
    """A copy of the stopped run, and a function that resumes it with changed options."""
    folder = shutil.copytree(stopped, tmp_path / "copy")

    def resume(**changes):
        options = (
            QUICK | dpo_options(folder, tiny_base) | {"resume_from_checkpoint": True} | changes
        )
        words = ["--config", f"{WORLD}/dpo.yaml", "--output_dir", str(folder / "run")]
        for name, value in options.items():
            words += [f"--{name}", str(value).lower() if isinstance(value, bool) else str(value)]
        return run(find("dpo"), words)

    return folder, resume


CHANGED = {
    "beta": 0.7,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "linear",
    "loss_type": "ipo",
    "max_length": 100,
    "seed": 1,
    "gradient_accumulation_steps": 2,
    "per_device_train_batch_size": 3,
    "num_train_epochs": 1,
    "max_steps": 4,
    "warmup_steps": 1,
    "weight_decay": 0.1,
    "optim": "sgd",
    "dtype": "bfloat16",
    "chat_template": "chatml",
}


@pytest.mark.slow
def test_resume_rejects_changed_options_by_name(again, capsys):
    folder, resume = again
    manifest = (folder / "run" / "run.json").read_bytes()
    for name, value in CHANGED.items():
        assert resume(**{name: value}) == 2, name
        message = capsys.readouterr().err
        saved = Run.load(folder / "run").config[name]
        assert f"checkpoint-2: written with `{name}` {saved}, but this run has " in message
        assert "another output_dir" in message
        assert (folder / "run" / "run.json").read_bytes() == manifest
    assert (folder / "run" / "checkpoint-2").is_dir()


@pytest.mark.slow
def test_resume_rejects_changed_data_and_parent(again, capsys):
    folder, resume = again
    file, manifest = folder / "rows.jsonl", (folder / "run" / "run.json").read_text()
    rows = file.read_text()
    file.write_text(rows.replace("No.", "Nope.", 1))
    assert resume() == 2
    assert "written with `training rows` 11 (" in capsys.readouterr().err
    file.write_text(rows)
    assert resume(test_split_size=2) == 2
    assert "`test_split_size` was 1.0, is 2.0)" in capsys.readouterr().err
    other = shutil.copytree(folder / "sft", folder / "other")
    weights = (other / "adapter_model.safetensors").read_bytes()
    (other / "adapter_model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    assert resume(parent=other) == 2
    assert "written with `parent` adapter " in capsys.readouterr().err
    run_dir = Run.load(folder / "run")
    assert run_dir.config == json.loads(manifest)["config"]
    assert run_dir.resumed == []


@pytest.mark.slow
def test_longer_run_with_moved_data_is_recorded(again, stopped):
    """The learning rate is constant, so the run may become longer, but not shorter."""
    folder, resume = again
    moved = (folder / "rows.jsonl").rename(folder / "moved.jsonl")
    assert resume(dataset_name=moved, num_train_epochs=3, max_grad_norm=1e9) == 0
    finished = Run.load(folder / "run")
    assert finished.results["steps"] == 6
    changed = finished.resumed[0]["changed"]
    assert changed == {
        "dataset_name": [str(stopped / "rows.jsonl"), str(moved)],
        "parent": [str(stopped / "sft"), str(folder / "sft")],
        "num_train_epochs": [2.0, 3.0],
        "max_grad_norm": [1.0, 1e9],
    }
    assert resume(dataset_name=moved, num_train_epochs=2, max_grad_norm=1e9) == 2


@pytest.mark.slow
def test_checkpoint_of_earlier_version_is_accepted_with_warning(again, capsys):
    folder, resume = again
    checkpoint = folder / "run" / "checkpoint-2"
    (checkpoint / SETTINGS_FILE).unlink()
    list_contents(checkpoint)
    assert resume(beta=0.7) == 0
    printed = capsys.readouterr().out
    assert printed.count("has no settings.json, because an earlier version") == 1
    assert "beta" in Run.load(folder / "run").resumed[0]["changed"]


@pytest.mark.slow
def test_resumed_ensemble_rejects_changed_options(
    tiny_base, sft_run, tmp_path, monkeypatch, capsys
):
    options = options_of("reward", tiny_base, sft_run, None) | {"ensemble": 2, "max_steps": 2}
    folder = tmp_path / "reward"
    call("reward", folder, **options)
    shutil.rmtree(folder / "member-1")
    Run.load(folder).fail(Crash("killed"))
    manifest = (folder / "run.json").read_bytes()
    words = {"resume_from_checkpoint": True, "learning_rate": 0.5}
    with pytest.raises(AssertionError):
        call("reward", folder, **(options | words))
    assert "member-0: written with `learning_rate`" in capsys.readouterr().err
    assert (folder / "run.json").read_bytes() == manifest


def test_jit_checkpoints_are_rejected(tiny_base, tmp_path, capsys):
    with pytest.raises(AssertionError):
        call("sft", tmp_path, model_name_or_path=tiny_base, enable_jit_checkpoint=True)
    assert "`enable_jit_checkpoint` is not supported" in capsys.readouterr().err


def test_run_records_vocabulary_tokens_but_no_secrets():
    recorded = plain(SFTConfig(output_dir="x", use_cpu=True, bf16=False, eos_token="<e>"))
    assert recorded["eos_token"] == "<e>"
    assert "hub_token" not in recorded
