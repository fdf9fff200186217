"""Run by test_device.py: training and evaluation with the model on the simulated device."""

import contextlib
import shutil

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from transformers import TrainingArguments, set_seed

from tests.conftest import fresh_roles
from tests.device.simulated import DEVICE, NAME, Generator, simulated
from tests.ppo.setup import make, prompts
from toolkit.cli import run
from toolkit.models import base as base_module
from toolkit.models.roles import POLICY, REFERENCE, REWARD
from toolkit.recipe import find


@contextlib.contextmanager
def device_of_bases(monkeypatch):
    """Load every base onto the device and train there."""
    own = TrainingArguments.device.fget
    monkeypatch.setattr(TrainingArguments, "device", property(lambda self: own(self) and DEVICE))
    monkeypatch.setattr(Accelerator, "device", property(lambda _: DEVICE))
    for name in ("AutoModelForCausalLM", "AutoModelForSequenceClassification"):
        monkeypatch.setattr(base_module, name, _OnDevice(getattr(base_module, name)))
    monkeypatch.setattr(torch, "Generator", Generator)
    with simulated():
        yield


@pytest.fixture
def device(monkeypatch):
    """`device_of_bases` for a whole test."""
    with device_of_bases(monkeypatch):
        yield


class _OnDevice:
    def __init__(self, auto):
        self.auto = auto

    def from_pretrained(self, *args, **kwargs):
        """Load, then move; with `output_loading_info` the report follows the model."""
        loaded = self.auto.from_pretrained(*args, **kwargs)
        return (
            (loaded[0].to(DEVICE), *loaded[1:]) if isinstance(loaded, tuple) else loaded.to(DEVICE)
        )


def test_operations_on_two_devices_raise(device):
    x = torch.ones(2, 3, device=NAME)
    assert x.device == DEVICE
    for wrong in (
        lambda: x + torch.ones(2, 3),
        lambda: torch.ones(2, 3) @ x.t(),
        lambda: torch.cat([x, torch.ones(2, 3)]),
        lambda: torch.ones(3)[torch.tensor([0], device=NAME)],
        lambda: torch.nn.functional.embedding(torch.tensor([0]), x),
    ):
        with pytest.raises(RuntimeError, match="expected all tensors on"):
            wrong()
    with pytest.raises(TypeError, match="copy it to the CPU"):
        x.numpy()
    assert (x * torch.tensor(2.0)).cpu().sum() == 12


def test_ppo_resumes_on_device(make_ppo_roles, tokenizer, tmp_path, device):
    def longer(prompts, completions, completion_ids, **_):
        return [float(len(ids)) for ids in completion_ids]

    def train(resume=None):
        set_seed(1)
        trainer = make(
            make_ppo_roles(),
            tokenizer,
            prompts(),
            tmp_path / "ppo",
            reward_funcs=[longer],
            ptx_texts=["The Bramor bird is blue.", "Hello to you."],
            held_out=prompts().select(range(3)),
            num_generations=2,
            ent_coef=0.01,
            ptx_coef=0.5,
            whiten_rewards=True,
            ema_decay=0.9,
            kl_target=3.0,
            save_strategy="steps",
            save_steps=4,
            eval_strategy="steps",
            eval_steps=4,
        )
        trainer.train(resume_from_checkpoint=resume)
        trainer.save_model()
        first = next(row for row in trainer.state.log_history if "objective/kl" in row)
        assert first["objective/kl"] == pytest.approx(0.0, abs=1e-5)
        assert {p.device for p in trainer.roles.model.parameters()} == {DEVICE}
        return load_file(tmp_path / "ppo" / "adapter_model.safetensors")

    whole = train()
    shutil.rmtree(tmp_path / "ppo" / "checkpoint-8")
    again = train(resume=True)
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.parametrize("changes", [{}, {"gradient_checkpointing": True}], ids=str)
def test_ppo_trains_in_bfloat16(
    changes, model_config, sft_run, reward_run, tokenizer, tmp_path, device
):
    model_config.dtype = "bfloat16"
    roles = fresh_roles(model_config)
    roles.attach(POLICY, sft_run, trainable=True)
    roles.attach(REFERENCE, sft_run)
    roles.attach(REWARD, reward_run, head=True)
    roles.add_value_head()
    make(roles, tokenizer, prompts(), tmp_path / "run", bf16=True, **changes).train()


def test_every_recipe_runs(tiny_base, tmp_path, device):
    def call(recipe, **options):
        words = ["--config", f"recipes/configs/world/{recipe}.yaml"]
        words += ["--output_dir", str(tmp_path / recipe), "--model_name_or_path", str(tiny_base)]
        for name, value in options.items():
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
        assert run(find(recipe), words) == 0
        return tmp_path / recipe

    few = {"max_rows": 16, "per_device_train_batch_size": 4, "warmup_steps": 0}
    short = few | {"max_steps": 2}
    sft = call("sft", **short)
    compared = call("label", parent=sft, train_prompts=12, test_prompts=8, max_new_tokens=6)
    after = {"parent": sft, "dataset_name": compared}
    reward = call("reward", ensemble=2, **after, **short)
    dpo = call("dpo", **after, **short)
    kto = call("kto", **after, **short)
    size = {"gradient_accumulation_steps": 1, "response_length": 6, "total_episodes": 8}
    ppo = call("ppo", parent=sft, reward_model=reward, **size, **few)
    report = call(
        "evaluate",
        runs=[sft, ppo, dpo, kto],
        reward_model=reward,
        comparisons=compared,
        max_prompts=6,
        max_new_tokens=6,
    )
    assert (report / "report.json").is_file()
    call("merge", parent=ppo)
