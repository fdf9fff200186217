"""Recipes reject bases on which the rows of a batch, or of a packed row, change each other's numbers."""

import json
import shutil

import pytest
from transformers import AutoTokenizer, OPTConfig, OPTForCausalLM, set_seed

from tests.conftest import ROOT
from toolkit.cli import main, run
from toolkit.recipe import find
from toolkit.runs.run import Run

pytestmark = pytest.mark.slow

DATA = {"sft": "demonstrations"} | dict.fromkeys(
    ("ppo", "rloo", "grpo"), "prompts"
)  # the others read comparisons


def call(recipe, base, folder, **options):
    """Run a recipe with its shipped config of the embedded world; its exit code."""
    defaults = {
        "model_name_or_path": base,
        "output_dir": folder,
        "dataset_name": f"world:{DATA.get(recipe, 'comparisons')}",
        "max_rows": 16,
        "max_steps": 1,
        "per_device_train_batch_size": 2,
        "warmup_steps": 0,
        "save_strategy": "no",
    }
    words = ["--config", str(ROOT / f"recipes/configs/world/{recipe}.yaml")]
    for name, value in (defaults | options).items():
        words += [f"--{name}", str(value)]
    return run(find(recipe), words)


@pytest.fixture(scope="session")
def switching_base(tiny_base, tmp_path_factory):
    """The tiny base with frequencies that switch when a row of a batch has more than 40 tokens."""
    folder = tmp_path_factory.mktemp("switching") / "base"
    shutil.copytree(tiny_base, folder)
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "factor": 4.0,
        "short_factor": [1.0] * 16,
        "long_factor": [4.0] * 16,
        "original_max_position_embeddings": 40,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("recipe", ["sft", "reward", "dpo", "kto", "ppo", "rloo", "grpo"])
def test_base_that_switches_with_longest_row_is_rejected(
    recipe, switching_base, sft_run, reward_run, tmp_path, capsys
):
    options = {} if recipe == "sft" else {"parent": sft_run}
    if recipe == "ppo":
        options |= {"reward_model": reward_run, "max_steps": -1, "total_episodes": 8}
        options |= {"gradient_accumulation_steps": 1, "response_length": 48}
    if recipe in ("rloo", "grpo"):
        options |= {"reward_model": reward_run, "max_completion_length": 48}
    assert call(recipe, switching_base, tmp_path / "run", **options) == 2
    error = capsys.readouterr().err
    assert "ConfigError: " in error and "the rows beside it" in error
    answer = {"ppo": "response_length", "sft": None}.get(recipe, "max_completion_length")
    is_online = DATA.get(recipe) == "prompts"
    option = f"`max_prompt_length` and `{answer}`" if is_online else "`max_length`"
    assert f"limit the length of rows with {option} to at most 40 tokens" in error
    assert Run.load(tmp_path / "run").state == "failed"


def test_label_checks_its_own_lengths(tiny_base, switching_base, sft_run, tmp_path, capsys):
    words = ["label", "--parent", str(sft_run), "--model_name_or_path", str(switching_base)]
    words += ["--train_prompts", "4", "--test_prompts", "4", "--output_dir", str(tmp_path / "run")]
    assert main(words) == 2
    assert "limit the length of rows with `max_new_tokens` to at most 40" in capsys.readouterr().err
    words[words.index(str(switching_base))] = str(tiny_base)
    assert main([*words, "--max_new_tokens", "5000"]) == 2
    assert "leave no room for `max_new_tokens` 5000" in capsys.readouterr().err


def test_sft_packs_only_where_rows_are_kept_apart(tiny_base, tmp_path, capsys):
    options = {"packing": True, "max_length": 64}
    assert call("sft", tiny_base, tmp_path / "llama", **options) == 0
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    set_seed(0)
    shape = {"hidden_size": 32, "ffn_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = OPTConfig(vocab_size=len(tokenizer), **shape, word_embed_proj_dim=32, init_std=0.2)
    OPTForCausalLM(config).save_pretrained(tmp_path / "opt")
    tokenizer.save_pretrained(tmp_path / "opt")
    opt = {"max_length": 64, "lora_target_modules": "q_proj"}
    assert call("sft", tmp_path / "opt", tmp_path / "plain", **opt) == 0
    capsys.readouterr()
    assert call("sft", tmp_path / "opt", tmp_path / "packed", **options | opt) == 2
    assert "OPTForCausalLM with attn_implementation sdpa does not keep" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"packing": True, "packing_strategy": "wrapped"}, "set `packing_strategy: bfd`"),
        ({"eval_packing": True}, "with `eval_packing` but without `packing`"),
    ],
)
def test_packing_that_joins_rows_is_rejected(options, message, tiny_base, tmp_path, capsys):
    assert call("sft", tiny_base, tmp_path, **options) == 2
    assert message in capsys.readouterr().err
