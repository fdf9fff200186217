"""Every recipe rejects unusable values of options before a model is loaded."""

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
from toolkit.preflight.options import try_options, try_training_options
from toolkit.preflight.requirements import check_requirements
from toolkit.recipe import find_recipe, recipes

INVALID_NUMBERS = [
    ("learning_rate", "-1", "at least 0, got -1.0"),
    ("weight_decay", "-1", "at least 0, got -1.0"),
    ("adam_beta1", "1.5", "in 0…1, got 1.5"),
    ("max_grad_norm", "-1", "at least 0, got -1.0"),
    ("max_steps", "-7", "at least 1, or -1 to train for"),
    ("max_steps", "0", "at least 1, or -1 to train for"),
    ("per_device_eval_batch_size", "0", "in 1…65536, got 0"),
    ("gradient_accumulation_steps", "0", "in 1…65536, got 0"),
    ("logging_steps", "-1", "above 0, got -1.0"),
    ("save_steps", "-3", "above 0, got -3.0"),
    ("save_total_limit", "-1", "at least 0, got -1"),
    ("eval_steps", "0", "above 0, got 0.0"),
    ("seed", "-1", "in 0…4294967295, got -1"),
    ("seed", "4294967296", "in 0…4294967295, got 4294967296"),
    ("dataloader_num_workers", "-1", "in 0…256, got -1"),
    ("dataloader_num_workers", "100000", "in 0…256, got 100000"),
    ("per_device_train_batch_size", "1000000", "in 1…65536, got 1000000"),
    ("lora_r", "1000000000", "in 1…65536, got 1000000000"),
]
INVALID_NUMBERS_OF_RECIPE = [
    ("sft", "max_length", "0", "at least 1, got 0"),
    ("sft", "max_length", "-5", "at least 1, got -5"),
    ("sft", "label_smoothing_factor", "2", "in 0…1, got 2.0"),
    ("sft", "save_steps", "2.5", "a whole number of steps, or below 1 a share"),
    ("reward", "center_rewards_coefficient", "-1", "at least 0, got -1.0"),
    ("dpo", "beta", "-1", "above 0, got -1.0"),
    ("dpo", "beta", "0", "above 0, got 0.0"),
    ("dpo", "label_smoothing", "0.7", "in 0…0.5, got 0.7"),
    ("dpo", "loss_weights", "-1", "at least 0, got -1.0"),
    ("dpo", "pad_to_multiple_of", "-1", "in 1…65536, got -1"),
    ("sft", "dataset_num_proc", "100000", "in 1…256, got 100000"),
    ("reward", "ensemble", "1000000", "in 1…256, got 1000000"),
    ("ppo", "num_mini_batches", "1000000", "in 1…65536, got 1000000"),
    ("kto", "beta", "-1", "above 0, got -1.0"),
    ("grpo", "steps_per_generation", "100000", "in 1…65536, got 100000"),
    ("kto", "desirable_weight", "-1", "at least 0, got -1.0"),
]
LIBRARY_ERRORS = [
    ("dpo", "--loss_type bogus", "`loss_type` .'bogus'. cannot be used: Unknown loss type: bogus"),
    ("dpo", "--loss_type sigmoid bogus", "Unknown loss type: bogus"),
    ("dpo", "--loss_type exo_pair", "cannot be used: Label smoothing must be greater than 0.0"),
    ("dpo", "--f_divergence_type bogus", "`f_divergence_type` bogus cannot be used: Unknown"),
    ("dpo", "--f_divergence_type js_divergence --loss_type nca_pair", "only supported for the"),
    ("dpo", "--sync_ref_model true", "`sync_ref_model` is not supported"),
    ("kto", "--sync_ref_model true", "`sync_ref_model` is not supported"),
    ("sft", "--optim galore_adamw", "`optim` galore_adamw, .* cannot be used: .*galore_torch"),
    ("grpo", "--loss_type bogus", "`loss_type` bogus cannot be used: Unknown loss type: bogus"),
    ("ppo", "--optim_args foo", "`optim_args` foo, .* cannot be used"),
    ("reward", "--lr_scheduler_type cosine_with_min_lr", "One of min_lr or min_lr_rate"),
    ("sft", "--lr_scheduler_type warmup_stable_decay", "missing .* 'num_decay_steps'"),
    ("sft", "--optim_args eps=1e-6,betas=(0.9,nan)", "`optim_args` contains NaN"),
    ("ppo", '--lr_scheduler_kwargs {"min_lr_rate":NaN}', "`lr_scheduler_kwargs` contains NaN"),
    ("kto", "--report_to bogus", "`report_to` .*bogus.* cannot be used"),
]


@pytest.fixture(autouse=True)
def _at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture
def words_of(tiny_base, sft_run, reward_run, tmp_path):
    """The words of a recipe's command line, with more options."""

    def make(recipe, more):
        words = ["--model_name_or_path", tiny_base, "--output_dir", tmp_path / "run"]
        words += [] if recipe == "sft" else ["--parent", sft_run]
        words += ["--reward_model", reward_run] if recipe in ("ppo", "rloo", "grpo") else []
        if recipe in ("reward", "dpo", "kto"):
            words += ["--dataset_name", "world:comparisons"]
        return [str(word) for word in (*words, *more)]

    return make


@pytest.mark.parametrize(("option", "value", "message"), INVALID_NUMBERS)
@pytest.mark.parametrize("recipe", recipes())
def test_number_out_of_range_is_rejected(recipe, option, value, message, words_of):
    with pytest.raises(ConfigError) as raised:
        check_requirements(
            find_recipe(recipe), stage_of(recipe, *words_of(recipe, [f"--{option}", value])).options
        )
    assert f"`{option}` must be {message}" in str(raised.value)


@pytest.mark.parametrize(("recipe", "option", "value", "message"), INVALID_NUMBERS_OF_RECIPE)
def test_number_of_one_recipe_out_of_range_is_rejected(recipe, option, value, message, words_of):
    with pytest.raises(ConfigError) as raised:
        check_requirements(
            find_recipe(recipe), stage_of(recipe, *words_of(recipe, [f"--{option}", value])).options
        )
    assert f"{recipe}: `{option}` must be {message}" in str(raised.value)


@pytest.mark.parametrize(("recipe", "words", "message"), LIBRARY_ERRORS)
def test_library_errors_are_raised_before_loading_a_model(
    recipe, words, message, words_of, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("toolkit.models.base.load_base", None)
    words = words_of(recipe, words.split())
    with pytest.raises(ConfigError, match=f"^{recipe}: .*{message}") as raised:
        recipe_main(recipe)(*stage_of(recipe, *words).options)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()
    config = f"recipes/configs/world/{recipe}.yaml"
    assert load_check().check(config, words, recipe, None) == 2
    assert str(raised.value) in capsys.readouterr().out


@pytest.mark.slow
def test_every_loss_of_dpo_is_accepted(words_of):
    """TRL lists them only in an error message."""
    listed = re.search(
        r"Unknown loss type: .*?\]\"", inspect.getsource(DPOTrainer), re.DOTALL
    ).group()
    names = re.findall(r"'(\w+)'", listed)
    assert len(names) == 15
    for name in names:
        smoothed = ["--label_smoothing", "0.001"] if name == "exo_pair" else []
        stage = stage_of("dpo", *words_of("dpo", ["--loss_type", name, *smoothed]))
        try_options(stage.recipe, stage.options)


def test_trying_a_loss_keeps_the_device(words_of, monkeypatch, tmp_path):
    """accelerate keeps one device per process: that of the latest training arguments."""
    options = stage_of("dpo", *words_of("dpo", [])).options
    device = torch.device("meta")  # instead of a GPU
    monkeypatch.setattr(PartialState, "default_device", property(lambda _: device))
    training = DPOConfig(output_dir=str(tmp_path), loss_type=["ipo"], bf16=False, report_to="none")
    try:
        assert Accelerator().device == device
        try_options(find_recipe("dpo"), options._replace(args=training))
        assert Accelerator().device == device
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize(
    "name", ["adamw_torch", "adamw_8bit", "paged_adamw_8bit", "adafactor", "sgd"]
)
def test_installed_optimizers_are_accepted(name, words_of):
    try_training_options("sft", stage_of("sft", *words_of("sft", ["--optim", name])).args)


def test_pretrain_rejects_empty_layers(capsys, tmp_path):
    import importlib.util

    spec = importlib.util.spec_from_file_location("pretrain", ROOT / "recipes" / "pretrain.py")
    pretrain = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pretrain)
    words = ["--output_dir", str(tmp_path / "base"), "--max_steps", "1", "--hidden_size", "0"]
    with pytest.raises(ConfigError, match="pretrain: `hidden_size` must be in 1…65536, got 0"):
        pretrain.main(*parse(pretrain.arguments(), words))


@pytest.mark.parametrize("recipe", ["sft", "ppo"])
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("use_liger_kernel", "`use_liger_kernel` needs the package liger-kernel, which is not"),
        ("push_to_hub", "`push_to_hub` needs the hub and a token that may write to it"),
    ],
)
def test_option_that_fails_after_training_stops_at_the_start(recipe, option, message, tmp_path):
    config = f"recipes/configs/world/{recipe}.yaml"
    words = ["--config", config, f"--{option}", "true", "--output_dir", str(tmp_path)]
    args = parse(find_recipe(recipe).argument_classes(), words)[1]
    with pytest.raises(ConfigError, match=message):
        try_training_options(recipe, args)
