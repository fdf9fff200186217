"""The presets for hub models, on a tiny base and on rows with the columns of their datasets."""

import json

import pytest
import yaml

from tests.conftest import ROOT
from toolkit.cli import run as run_command
from toolkit.recipe import commands, find
from toolkit.runs.run import Run

PRESETS = ("qwen3-0.6b", "llama-3.2-1b", "qwen3-4b-qlora", "qwen3-8b-qlora", "mistral-7b-qlora")
STAGES = ("sft", "reward", "ppo", "dpo", "evaluate")


def message(role, text):
    return {"role": role, "content": text}


def question(i):
    return message("user", f"What is {i}?")


# rows with the columns that the hub's datasets have
HUB = {
    "trl-lib/Capybara": lambda i: {
        "source": "x",
        "messages": [
            part
            for turn in range(3)
            for part in (question(i + turn), message("assistant", f"It is {i + turn}."))
        ],
        "num_turns": 3,
    },
    "trl-lib/ultrafeedback_binarized": lambda i: {
        "chosen": [question(i), message("assistant", f"It is {i}.")],
        "rejected": [question(i), message("assistant", "No idea.")],
        "score_chosen": 8.0,
        "score_rejected": 2.5,
    },
    "trl-lib/ultrafeedback-prompt": lambda i: {"prompt": [question(i)]},
    "trl-lib/tldr": lambda i: {"prompt": f"POST: {i}\n\nTL;DR:", "completion": f" It is {i}."},
    "trl-lib/tldr-preference": lambda i: {
        "prompt": f"POST: {i}\n\nTL;DR:",
        "chosen": f" It is {i}.",
        "rejected": " Nothing.",
    },
    "Anthropic/hh-rlhf": lambda i: {
        "chosen": f"\n\nHuman: What is {i}?\n\nAssistant: It is {i}.",
        "rejected": f"\n\nHuman: What is {i}?\n\nAssistant: No idea." if i else "\n\nHuman: ",
    },
}
QUICK = {"max_steps": 2, "max_rows": 8, "per_device_train_batch_size": 2, "save_strategy": "no"}
QUICK |= {"gradient_accumulation_steps": 1, "optim": "adamw_torch", "logging_steps": 1}
EPISODES = {"total_episodes": 4, "num_mini_batches": 1, "num_ppo_epochs": 1, "response_length": 4}
EPISODES |= {"eval_steps": 2}
REPORT = {"max_prompts": 4, "max_new_tokens": 4, "few_shot": 1}
ANSWERS = {
    "max_completion_length": 4,
    "num_generations": 2,
    "steps_per_generation": 2,
    "eval_steps": 2,
}
CHANGED = {
    "grpo": QUICK | ANSWERS,
    "sft": QUICK,
    "reward": QUICK,
    "dpo": QUICK,
    "ppo": QUICK | EPISODES,
    "evaluate": REPORT,
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Each dataset as a folder of JSONL files."""
    root = tmp_path_factory.mktemp("hub")
    for name, row in HUB.items():
        folder = root / name
        folder.mkdir(parents=True)
        for split, numbers in (("train", range(12)), ("test", range(20, 26))):
            lines = "".join(json.dumps(row(i)) + "\n" for i in numbers)
            (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    return root


def run(preset, stage, out, base, hub):
    """Run a stage with its preset's YAML; only model, data, directories and sizes are replaced."""
    preset_options = yaml.safe_load((ROOT / f"recipes/configs/{preset}/{stage}.yaml").read_text())
    shared = f"runs/{preset}/"

    def local(value):
        if isinstance(value, list):
            return [local(v) for v in value]
        if isinstance(value, str) and value in HUB:
            return str(hub / value)
        if isinstance(value, str) and value.startswith(shared):
            return str(out / value.removeprefix(shared))
        return value

    changed = {key: local(value) for key, value in preset_options.items()} | CHANGED[stage]
    changed |= {"model_name_or_path": str(base)}
    assert changed["output_dir"].startswith(str(out))
    file = out / f"{stage}.yaml"
    file.write_text(yaml.safe_dump(changed), encoding="utf-8")
    assert run_command(find(stage), ["--config", str(file)]) == 0
    return Run.load(changed["output_dir"])


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_preset_trains(preset, tiny_base, hub, tmp_path, capsys):
    """SFT of every preset; all stages of two presets, one with and one without a chat template."""
    runs = {"sft": run(preset, "sft", tmp_path, tiny_base, hub)}
    # SFT trains every answer: of eight training dialogues and of six in the test split, three each
    dialogues = "14 dialogues became 42 examples, one for each assistant turn"
    assert (dialogues in capsys.readouterr().out) == preset.startswith("qwen3")
    assert runs["sft"].results["steps"] == 2
    quantization = "4bit-nf4-double" if preset.endswith("qlora") else "none"
    assert runs["sft"].base["quantization"] == quantization
    if preset == "qwen3-0.6b":
        run(preset, "reward", tmp_path, tiny_base, hub)
        grpo = run(preset, "grpo", tmp_path, tiny_base, hub)
        assert grpo.results["steps"] == 2 and (grpo.path / "samples.jsonl").is_file()
    if preset not in ("llama-3.2-1b", "mistral-7b-qlora"):
        return
    runs |= {stage: run(preset, stage, tmp_path, tiny_base, hub) for stage in STAGES[1:]}
    assert {stage: r.state for stage, r in runs.items()} == dict.fromkeys(STAGES, "finished")
    assert len({json.dumps(r.base, sort_keys=True) for r in runs.values()}) == 1
    report = json.loads((runs["evaluate"].path / "report.json").read_text())
    assert set(report["checkpoints"]) == {"base", "sft", "ppo", "dpo"}


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_pipeline_uses_its_own_configs(preset):
    folder = ROOT / "recipes" / "configs" / preset
    others = {"grpo", "judge"} if preset == "qwen3-0.6b" else set()  # without a stage of its own
    assert {f.stem for f in folder.glob("*.yaml")} == {*STAGES, "pipeline"} | others
    pipeline = yaml.safe_load((folder / "pipeline.yaml").read_text())
    stages = pipeline["stages"].values()
    assert [stage["recipe"] for stage in stages] == list(STAGES)
    assert set(STAGES) <= commands().keys()
    assert [stage["config"] for stage in stages] == [f"{preset}/{stage}" for stage in STAGES]
    texts = {stage: (folder / f"{stage}.yaml").read_text(encoding="utf-8") for stage in STAGES}
    assert len({yaml.safe_load(text)["model_name_or_path"] for text in texts.values()}) == 1
    for stage, text in texts.items():
        for line in text.splitlines():
            name = line.split(":")[0]
            if name in ("learning_rate", "beta", "lora_r", "bnb_4bit_quant_type"):
                assert "#" in line, f"{preset}/{stage}: {name} names no source"
