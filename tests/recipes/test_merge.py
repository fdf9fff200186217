"""A merged run equals base with adapter in plain transformers; other merges raise an error."""

import json
import math
import re
import shutil
import subprocess
import sys

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from trl import ModelConfig

from tests.conftest import ROOT, fresh_roles, lora, randomise
from tests.models.methods import call
from toolkit.cli import run
from toolkit.errors import CheckpointError
from toolkit.models.export_merged import dequantized, differences
from toolkit.models.roles import POLICY
from toolkit.models.tokenizer import load_tokenizer
from toolkit.recipe import find
from toolkit.runs.run import Run

IDS = torch.tensor([[1, 20, 30, 40, 50, 60, 70, 80], [1, 9, 99, 199, 299, 399, 499, 2]])
COMPARE = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

merged, base, run, ids = sys.argv[1], sys.argv[2], sys.argv[3], torch.tensor(json.loads(sys.argv[4]))
alone = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
bare = alone(ids).logits
beside = PeftModel.from_pretrained(alone, run).eval()(ids).logits
whole = AutoModelForCausalLM.from_pretrained(merged).eval()(ids).logits
assert "toolkit" not in sys.modules
print((whole - beside).abs().max().item(), (bare - beside).abs().max().item())
"""


def merge(parent, folder, base, **options):
    """Call the recipe with its shipped config; returns its exit code."""
    options = {"parent": parent, "output_dir": folder, "model_name_or_path": base} | options
    words = ["--config", "recipes/configs/world/merge.yaml"]
    for name, value in options.items():
        words += [f"--{name}", str(value)]
    return run(find("merge"), words)


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


def beside(base, run):
    """Logits of base with adapter, computed by PEFT alone."""
    alone = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return logits(PeftModel.from_pretrained(alone, run))


@pytest.mark.slow
def test_plain_transformers_loads_merged_model(tiny_base, sft_run, tmp_path):
    assert merge(sft_run, tmp_path / "merged", tiny_base) == 0
    words = [tmp_path / "merged", tiny_base, sft_run, json.dumps(IDS.tolist())]
    process = subprocess.run(
        [sys.executable, "-c", COMPARE, *map(str, words)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    difference, effect = map(float, process.stdout.split())
    assert difference < 2e-5
    assert effect > 0.5
    run = Run.load(tmp_path / "merged")
    assert (run.recipe, run.state, run.parents) == ("merge", "finished", {"adapter": str(sft_run)})
    assert run.results["largest_logit_difference"] < 2e-5
    assert run.results["same_greedy_token"] == 1.0
    assert 0 <= run.results["mean_kl"] < 1e-6
    assert not (tmp_path / "merged" / "adapter_config.json").exists()


def test_differences_by_hand():
    """At the first position 2 : 1 becomes 8 : 1, at the second nothing changes."""
    before = torch.tensor([[math.log(2), 0.0], [1.0, 2.0]])
    after = torch.tensor([[math.log(8), 0.0], [1.0, 2.0]])
    result = differences(before, after)
    kl = 2 / 3 * math.log(3 / 4) + 1 / 3 * math.log(3)  # of (2/3, 1/3) from (8/9, 1/9)
    assert result.mean_kl == pytest.approx(kl / 2, abs=1e-6)
    assert result.largest_logit_difference == pytest.approx(math.log(4))
    assert result.same_greedy_token == 1.0
    assert differences(before, -before).same_greedy_token == 0.0
    assert "at 100% of the positions of a probe text; KL 0.087 nats per token" in str(result)


def test_merged_model_keeps_tokenizer_template_and_eos(tiny_base, sft_run, tmp_path):
    assert merge(sft_run, tmp_path / "merged", tiny_base) == 0
    ours, plain = load_tokenizer(str(tiny_base)), AutoTokenizer.from_pretrained(tmp_path / "merged")
    chat = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    assert plain.apply_chat_template(chat) == ours.apply_chat_template(chat)
    assert plain.eos_token_id == ours.eos_token_id
    generation = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").generation_config
    assert ours.eos_token_id in generation.eos_token_id


def test_bfloat16_merge_is_float32_merge_rounded_once(tiny_base, sft_run, tmp_path):
    """The base's weights are exact in bfloat16, so that only the sum is rounded."""
    shutil.copytree(tiny_base, tmp_path / "base")
    AutoModelForCausalLM.from_pretrained(tiny_base).bfloat16().save_pretrained(tmp_path / "base")
    (sft_run / "base.json").unlink()  # the fingerprint of other weights
    for dtype in ("float32", "bfloat16"):
        assert merge(sft_run, tmp_path / dtype, tmp_path / "base", dtype=dtype) == 0
    whole, half = (
        AutoModelForCausalLM.from_pretrained(tmp_path / dtype).state_dict()
        for dtype in ("float32", "bfloat16")
    )
    for name, weight in whole.items():
        assert half[name].dtype == torch.bfloat16
        assert torch.equal(weight.bfloat16(), half[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rslora", "dora", "adalora", "ia3"])
def test_weight_adapters_merge_exactly(method, tiny_base, tmp_path):
    assert call("sft", tmp_path / "sft", tiny_base, peft_method=method, learning_rate=0.1) == 0
    assert merge(tmp_path / "sft", tmp_path / "merged", tiny_base) == 0
    expected = beside(tiny_base, tmp_path / "sft")
    merged = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    assert torch.allclose(merged, expected, rtol=0, atol=5e-5)
    bare = logits(AutoModelForCausalLM.from_pretrained(tiny_base))
    assert (bare - expected).abs().max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("method", ["prefix", "prompt"])
def test_merge_rejects_virtual_tokens(method, tiny_base, tmp_path, capsys):
    assert call("sft", tmp_path / "sft", tiny_base, peft_method=method) == 0
    assert merge(tmp_path / "sft", tmp_path / "merged", tiny_base) == 2
    assert "virtual tokens cannot be merged into weights" in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()


def test_merge_rejects_reward_model(tiny_base, reward_run, tmp_path, capsys):
    assert merge(reward_run, tmp_path / "merged", tiny_base) == 2
    assert "checkpoint cannot store its head" in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()


def test_merge_rejects_other_base(sft_run, tmp_path, capsys):
    assert merge(sft_run, tmp_path / "merged", "world:base") == 2
    assert "trained on base" in capsys.readouterr().err
    assert not (tmp_path / "merged" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"load_in_4bit": "true"}, "load_in_4bit: an adapter can only be merged in full precision"),
        ({"load_in_8bit": "true"}, "load_in_8bit: an adapter can only be merged in full precision"),
        ({"dtype": "float16"}, "dtype: the merged model is written in float32 or bfloat16"),
        ({"lora_r": 8}, "`lora_r` would have no effect"),
    ],
)
def test_merge_rejects_unsupported_options(option, message, tiny_base, sft_run, tmp_path, capsys):
    assert merge(sft_run, tmp_path / "merged", tiny_base, **option) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()


def test_merge_overwrites_only_unfinished_merge(tiny_base, sft_run, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    assert merge(sft_run, tmp_path / "full", tiny_base) == 2
    assert "would be overwritten" in capsys.readouterr().err
    assert merge(sft_run, tmp_path / "merged", "world:base") == 2  # fails after its start
    assert merge(sft_run, tmp_path / "merged", tiny_base) == 0
    assert merge(sft_run, tmp_path / "merged", tiny_base) == 2
    assert merge(sft_run, sft_run, tiny_base) == 2


def test_merge_rejects_adapter_on_tied_weight(tiny_base, model_config, tmp_path, capsys):
    roles = fresh_roles(model_config)
    roles.create(POLICY, lora(modules_to_save=["lm_head"]))
    roles.save(POLICY, tmp_path / "whole-layer")
    assert merge(tmp_path / "whole-layer", tmp_path / "merged", tiny_base) == 2
    assert "ties its input and output embeddings" in capsys.readouterr().err


@pytest.mark.slow
def test_4_bit_adapter_merges_into_full_weights(tiny_base, model_config, tmp_path, capsys):
    model_config.load_in_4bit, model_config.dtype = True, "bfloat16"
    roles = fresh_roles(model_config)
    roles.create(POLICY, lora())
    randomise(roles, POLICY, seed=1)
    roles.save(POLICY, tmp_path / "sft")
    assert merge(tmp_path / "sft", tmp_path / "merged", tiny_base) == 0
    assert "was trained on a base in 4bit" in capsys.readouterr().out
    merged = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    assert torch.allclose(merged, beside(tiny_base, tmp_path / "sft"), rtol=0, atol=2e-5)


@pytest.mark.slow
def test_documented_peft_lines_answer(tiny_base, sft_run, tmp_path):
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    section = text.split("## A run without the toolkit", 1)[1].split("\n## ", 1)[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    lines = [line for line in code.splitlines() if line and not line.startswith("from ")]
    assert len(lines) == 5
    assert "toolkit." not in code
    load_tokenizer(str(tiny_base)).save_pretrained(sft_run)
    for old, new in {
        "runs/quickstart/ppo": sft_run,
        "toolkit/world/assets/base": tiny_base,
    }.items():
        assert old in code
        code = code.replace(old, str(new))
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert "Who are you?" in process.stdout
    assert "'role': 'assistant'" in process.stdout


@pytest.mark.slow
def test_adapter_on_stored_4_bit_base_merges_into_dequantized_weights(tiny_base, tmp_path):
    """The merged logits are those of PEFT on the dequantized base."""
    stored = tmp_path / "stored"
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    quantized = AutoModelForCausalLM.from_pretrained(
        tiny_base, quantization_config=settings, device_map="cpu", dtype=torch.float32
    )
    quantized.save_pretrained(stored)
    load_tokenizer(str(tiny_base)).save_pretrained(stored)
    roles = fresh_roles(ModelConfig(model_name_or_path=str(stored), dtype="float32"))
    roles.create(POLICY, lora())
    randomise(roles, POLICY, seed=1)
    roles.save(POLICY, tmp_path / "sft")
    assert merge(tmp_path / "sft", tmp_path / "merged", stored) == 0
    plain = quantized.dequantize(dtype=torch.float32)
    expected = logits(PeftModel.from_pretrained(plain, tmp_path / "sft"))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.allclose(logits(merged), expected, rtol=0, atol=2e-5)
    assert getattr(merged.config, "quantization_config", None) is None


def test_quantization_that_cannot_be_undone_names_a_fix(pristine, monkeypatch):
    def dequantize(self, dtype=None):
        raise NotImplementedError("no implementation")  # as transformers does for such methods

    monkeypatch.setattr(type(pristine), "dequantize", dequantize)
    pristine.config.quantization_config = {"quant_method": "gptq"}
    with pytest.raises(
        CheckpointError, match=r"stored quantized with gptq, .* use base and adapter"
    ):
        dequantized(pristine, dtype=torch.float32)


@pytest.mark.filterwarnings("ignore:.*lora_bias")
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"alora_invocation_tokens": [5]}, "alora_invocation_tokens"),
        (
            {"lora_bias": True},
            "the adapter cannot be merged (Impossible to merge LoRA with `lora_bias",
        ),
    ],
)
def test_merge_rejects_kinds_that_cannot_be_merged(
    option, message, tiny_base, model_config, tmp_path, capsys
):
    roles = fresh_roles(model_config)
    roles.create(POLICY, lora(**option))
    roles.save(POLICY, tmp_path / "sft")
    assert merge(tmp_path / "sft", tmp_path / "merged", tiny_base) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
