"""The Python examples of docs/python.md and docs/ppo.md train, with small models instead of hub models."""

import json
import re

import pytest
import yaml
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification
from trl import ModelConfig

from tests.conftest import ROOT
from toolkit.models.tokenizer import load_tokenizer

HUB_PROMPTS = 'load_dataset("trl-lib/ultrafeedback-prompt", split="train")'


def python_of(document, heading):
    """The only Python block under a heading."""
    section = (ROOT / document).read_text(encoding="utf-8").split(f"## {heading}", 1)[1]
    (code,) = re.findall(r"```python\n(.*?)```", section.split("\n## ", 1)[0], re.DOTALL)
    return code


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(code, folder, places):
    """Run `code` in `folder`, the working directory, with the hub names and sizes replaced."""
    prompts = [{"prompt": [{"role": "user", "content": f"What is {n}?"}]} for n in range(8)]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)), encoding="utf-8")
    places |= {
        HUB_PROMPTS: 'load_dataset("json", data_files="prompts.jsonl", split="train")',
        "total_episodes=10_000": "total_episodes=64",
        "response_length=256": 'response_length=6, use_cpu=True, report_to="none"',
    }
    for old, new in places.items():
        assert code.count(old) == 1, old
        code = code.replace(old, new)
    exec(code, {"__name__": "__main__"})


def test_documented_base_equals_preset_base():
    """The adapters of the presets cannot be loaded in another quantization."""
    (call,) = re.findall(r"(ModelConfig\(.*?\))", python_of("docs/python.md", "PPO from Python"))
    model = eval(call, {"ModelConfig": ModelConfig})
    for stage in ("sft", "reward"):
        file = ROOT / "recipes" / "configs" / "qwen3-0.6b" / f"{stage}.yaml"
        preset = yaml.safe_load(file.read_text(encoding="utf-8"))
        for name in ("model_name_or_path", "dtype", "load_in_4bit", "load_in_8bit"):
            assert getattr(model, name) == preset.get(name, getattr(ModelConfig(), name)), name


@pytest.mark.slow
def test_documented_trainer_trains(tiny_base, sft_run, reward_run, folder):
    run(
        python_of("docs/python.md", "PPO from Python"),
        folder,
        {
            "Qwen/Qwen3-0.6B-Base": str(tiny_base),
            "bfloat16": "float32",
            "runs/qwen3-0.6b/sft": str(sft_run),
            "runs/qwen3-0.6b/reward": str(reward_run),
        },
    )
    before = load_file(sft_run / "adapter_model.safetensors")
    after = load_file(folder / "runs" / "mine" / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    assert any((before[name] != after[name]).any() for name in before)


@pytest.mark.slow
def test_hub_reward_model_works_as_reward_function(tiny_base, folder, capsys):
    config = AutoConfig.from_pretrained(tiny_base, num_labels=1, pad_token_id=0)
    judge = AutoModelForSequenceClassification.from_config(config)
    judge.save_pretrained(folder / "judge")
    load_tokenizer(str(tiny_base)).save_pretrained(folder / "judge")
    run(
        python_of("docs/ppo.md", "A reward model of the hub"),
        folder,
        {
            "Skywork/Skywork-Reward-V2-Qwen3-0.6B": str(folder / "judge"),
            '"Qwen/Qwen3-0.6B"': f'"{tiny_base}"',
        },
    )
    assert "the reference is the bare base" in capsys.readouterr().out
    weights = load_file(folder / "runs" / "judged" / "adapter_model.safetensors")
    assert any(w.any() for name, w in weights.items() if "lora_B" in name)
