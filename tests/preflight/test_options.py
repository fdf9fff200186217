"""Values that no training could use are refused by every recipe before a model is loaded."""

import inspect
import re

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from trl import DPOConfig, DPOTrainer

from tests.conftest import ROOT
from tests.preflight.test_check import load_check, stage_of
from tests.preflight.test_requirements import recipe_main
from toolkit.errors import ConfigError
from toolkit.options.command_line import parse
from toolkit.preflight.options import try_options
from toolkit.preflight.requirements import check_requirements
from toolkit.recipe import find_recipe, recipes

NUMBERS = [
    ("learning_rate", "-1", "at least 0, got -1.0"),
    ("weight_decay", "-1", "at least 0, got -1.0"),
    ("adam_beta1", "1.5", "in 0…1, got 1.5"),
    ("max_grad_norm", "-1", "at least 0, got -1.0"),
    ("max_steps", "-7", "at least 1, or -1 for as many as"),
    ("max_steps", "0", "at least 1, or -1 for as many as"),
    ("per_device_eval_batch_size", "0", "at least 1, got 0"),
    ("gradient_accumulation_steps", "0", "at least 1, got 0"),
    ("logging_steps", "-1", "above 0, got -1.0"),
    ("save_steps", "-3", "above 0, got -3.0"),
    ("save_total_limit", "-1", "at least 0, got -1"),
    ("eval_steps", "0", "above 0, got 0.0"),
    ("seed", "-1", "in 0…4294967295, got -1"),
    ("seed", "4294967296", "in 0…4294967295, got 4294967296"),
    ("dataloader_num_workers", "-1", "at least 0, got -1"),
]
OF_ONE = [
    ("sft", "max_length", "0", "at least 1, got 0"),
    ("sft", "max_length", "-5", "at least 1, got -5"),
    ("sft", "label_smoothing_factor", "2", "in 0…1, got 2.0"),
    ("sft", "save_steps", "2.5", "a whole number of steps, or below 1 a share"),
    ("reward", "center_rewards_coefficient", "-1", "at least 0, got -1.0"),
    ("dpo", "beta", "-1", "above 0, got -1.0"),
    ("dpo", "beta", "0", "above 0, got 0.0"),
    ("dpo", "label_smoothing", "0.7", "in 0…0.5, got 0.7"),
    ("dpo", "loss_weights", "-1", "at least 0, got -1.0"),
    ("dpo", "pad_to_multiple_of", "-1", "at least 1, got -1"),
    ("kto", "beta", "-1", "above 0, got -1.0"),
    ("kto", "desirable_weight", "-1", "at least 0, got -1.0"),
]
LIBRARIES = [
    ("dpo", "--loss_type bogus", "`loss_type` .'bogus'. cannot be used: Unknown loss type: bogus"),
    ("dpo", "--loss_type sigmoid bogus", "Unknown loss type: bogus"),
    ("dpo", "--loss_type exo_pair", "cannot be used: Label smoothing must be greater than 0.0"),
    ("dpo", "--f_divergence_type bogus", "`f_divergence_type` bogus cannot be used: Unknown"),
    ("dpo", "--f_divergence_type js_divergence --loss_type nca_pair", "only supported for the"),
    ("dpo", "--sync_ref_model true", "`sync_ref_model` True cannot be used"),
    ("kto", "--sync_ref_model true", "`sync_ref_model` True cannot be used"),
    ("sft", "--optim galore_adamw", "`optim` galore_adamw, .* cannot be used: .*galore_torch"),
    ("ppo", "--optim_args foo", "`optim_args` foo, .* cannot be used"),
    ("reward", "--lr_scheduler_type cosine_with_min_lr", "One of min_lr or min_lr_rate"),
    ("sft", "--lr_scheduler_type warmup_stable_decay", "missing .* 'num_decay_steps'"),
    ("sft", "--optim_args eps=1e-6,betas=(0.9,nan)", "`optim_args` holds a NaN"),
    ("ppo", '--lr_scheduler_kwargs {"min_lr_rate":NaN}', "`lr_scheduler_kwargs` holds a NaN"),
    ("kto", "--report_to bogus", "`report_to` .*bogus.* cannot be used"),
]


@pytest.fixture(autouse=True)
def _at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture
def asked(tiny_base, sft_run, reward_run, tmp_path):
    """A recipe's words, with more of them."""

    def words(recipe, more):
        found = ["--model_name_or_path", tiny_base, "--output_dir", tmp_path / "run"]
        found += [] if recipe == "sft" else ["--parent", sft_run]
        found += ["--reward_model", reward_run] if recipe == "ppo" else []
        if recipe in ("reward", "dpo", "kto"):
            found += ["--dataset_name", "world:comparisons"]
        return [str(word) for word in (*found, *more)]

    return words


@pytest.mark.parametrize(("option", "value", "wanted"), NUMBERS)
@pytest.mark.parametrize("recipe", recipes())
def test_a_number_out_of_range_is_refused(recipe, option, value, wanted, asked):
    with pytest.raises(ConfigError) as refused:
        check_requirements(
            find_recipe(recipe), stage_of(recipe, *asked(recipe, [f"--{option}", value])).options
        )
    assert f"`{option}` must be {wanted}" in str(refused.value)


@pytest.mark.parametrize(("recipe", "option", "value", "wanted"), OF_ONE)
def test_a_number_of_one_recipe_is_refused(recipe, option, value, wanted, asked):
    with pytest.raises(ConfigError) as refused:
        check_requirements(
            find_recipe(recipe), stage_of(recipe, *asked(recipe, [f"--{option}", value])).options
        )
    assert f"{recipe}: `{option}` must be {wanted}" in str(refused.value)


@pytest.mark.parametrize(("recipe", "words", "said"), LIBRARIES)
def test_what_a_library_refuses_is_said_before_a_model_is_loaded(
    recipe, words, said, asked, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("toolkit.models.base.load_base", None)
    words = asked(recipe, words.split())
    with pytest.raises(ConfigError, match=f"^{recipe}: .*{said}") as refused:
        recipe_main(recipe)(*stage_of(recipe, *words).options)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()
    config = f"recipes/configs/world/{recipe}.yaml"
    assert load_check().check(config, words, recipe, None) == 2
    assert str(refused.value) in capsys.readouterr().out


def test_every_loss_of_dpo_is_let_through(asked):
    """TRL names them only in the error of its last branch."""
    listed = re.search(
        r"Unknown loss type: .*?\]\"", inspect.getsource(DPOTrainer), re.DOTALL
    ).group()
    names = re.findall(r"'(\w+)'", listed)
    assert len(names) == 15
    for name in names:
        smoothed = ["--label_smoothing", "0.001"] if name == "exo_pair" else []
        training = stage_of("dpo", *asked("dpo", ["--loss_type", name, *smoothed])).args
        try_options("dpo", training)


def test_trying_a_loss_leaves_training_on_its_device(monkeypatch, tmp_path):
    """accelerate keeps one device per process, of the training arguments that were made last."""
    there = torch.device("meta")  # for the card that this machine may not have
    monkeypatch.setattr(PartialState, "default_device", property(lambda _: there))
    training = DPOConfig(output_dir=str(tmp_path), loss_type=["ipo"], bf16=False, report_to="none")
    try:
        assert Accelerator().device == there
        try_options("dpo", training)
        assert Accelerator().device == there
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize(
    "name", ["adamw_torch", "adamw_8bit", "paged_adamw_8bit", "adafactor", "sgd"]
)
def test_optimizers_that_are_there_are_let_through(name, asked):
    try_options("sft", stage_of("sft", *asked("sft", ["--optim", name])).args)


def test_the_base_of_the_world_has_a_shape(capsys, tmp_path):
    import importlib.util

    spec = importlib.util.spec_from_file_location("pretrain", ROOT / "recipes" / "pretrain.py")
    pretrain = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pretrain)
    words = ["--output_dir", str(tmp_path / "base"), "--max_steps", "1", "--hidden_size", "0"]
    with pytest.raises(ConfigError, match="pretrain: `hidden_size` must be at least 1, got 0"):
        pretrain.main(*parse(pretrain.arguments(), words))
