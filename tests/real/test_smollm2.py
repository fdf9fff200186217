"""Every recipe and the app on a real pretrained chat model."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import ROOT
from toolkit.cli import main
from toolkit.runs.run import Run

pytestmark = [pytest.mark.real, pytest.mark.slow]
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LORA = ["--use_peft", "true", "--lora_r", "8", "--lora_target_modules", *TARGETS]
QUICK = ["--report_to", "none", "--logging_steps", "1", "--save_strategy", "no", "--seed", "0"]


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """A folder with demonstrations, comparisons and prompts."""
    folder = tmp_path_factory.mktemp("data")
    things = ("a train", "the rain", "bread", "a dog", "the sea", "a cup", "a letter", "the moon")
    rows = [
        {
            "prompt": user(f"Write one sentence about {thing}."),
            "chosen": [{"role": "assistant", "content": f"Here is a sentence about {thing}."}],
            "rejected": [{"role": "assistant", "content": "No."}],
        }
        for thing in things
    ]
    shown = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
    for name, kept in (("pairs", rows), ("shown", shown)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in kept))
    return folder


def toolkit(*words: object) -> None:
    assert main([str(word) for word in words]) == 0


@pytest.fixture(scope="session")
def runs(smollm2, data, tmp_path_factory) -> Path:
    """`sft` and `reward`: two steps each, in bfloat16."""
    folder = tmp_path_factory.mktemp("runs")
    base = ["--model_name_or_path", smollm2, "--max_steps", "2", "--learning_rate", "1e-3"]
    base += ["--per_device_train_batch_size", "2", "--eval_strategy", "no", *QUICK]
    toolkit("sft", "--config", "smollm2-135m/sft", "--output_dir", folder / "sft", *base)
    words = ["--dataset_name", data / "pairs.jsonl", "--output_dir", folder / "reward", *LORA]
    toolkit("reward", "--dtype", "bfloat16", "--bf16", "true", *words, *base)
    return folder


def greedy(model, tokenizer, count: int = 12) -> str:
    ids = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_tensors="pt")
    ids = ids if isinstance(ids, torch.Tensor) else ids["input_ids"]
    out = model.generate(ids, do_sample=False, max_new_tokens=count, pad_token_id=0)
    return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))


def test_model_is_the_chat_model_of_the_docs(smollm2):
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.bfloat16)
    config = model.config
    assert (config.num_hidden_layers, config.hidden_size, config.vocab_size) == (30, 576, 49152)
    assert config.tie_word_embeddings and tokenizer.pad_token == tokenizer.eos_token == "<|im_end|>"
    text = tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    assert text.endswith("What is the capital of France?<|im_end|>\n<|im_start|>assistant\n")
    assert greedy(model, tokenizer) == "The capital of France is Paris."


def test_plain_peft_loads_adapter_of_sft(smollm2, runs):
    losses = [row["loss"] for row in Run.load(runs / "sft").metrics() if "loss" in row]
    assert len(losses) == 2 and all(0 < loss < 10 for loss in losses)
    base = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    ids = torch.tensor([[1, 4093, 198, 1780, 314, 260, 3575]])
    with torch.no_grad():
        before = base(ids).logits
        adapted = PeftModel.from_pretrained(base, runs / "sft").eval()
        plain = adapted(ids).logits
    assert (plain - before).abs().max() > 0.01
    from toolkit.models.arguments import ModelArguments
    from toolkit.trainers.load_policy import load_roles

    model = ModelArguments(model_name_or_path=smollm2, dtype="float32")
    roles, _ = load_roles(model, parent=runs / "sft")
    roles.attach("policy", runs / "sft")
    with torch.no_grad(), roles.using("policy") as ours:
        assert torch.allclose(ours(ids).logits, plain, atol=1e-3)


def test_first_ppo_rollout_has_ratio_1_and_kl_0(runs, data, tmp_path):
    sizes = ["--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "1"]
    sizes += ["--num_mini_batches", "1", "--num_ppo_epochs", "1", "--total_episodes", "8"]
    words = ["--parent", runs / "sft", "--reward_model", runs / "reward", "--bf16", "true"]
    words += ["--dataset_name", data / "shown.jsonl", "--response_length", "8", *sizes, *QUICK]
    toolkit("ppo", "--output_dir", tmp_path / "ppo", *words)
    run = Run.load(tmp_path / "ppo")
    first, second = [row for row in run.metrics() if "objective/kl" in row]
    assert first["objective/kl"] == pytest.approx(0.0, abs=1e-2)
    assert first["val/ratio"] == pytest.approx(1.0, abs=1e-2)
    assert math.isfinite(second["objective/kl"]) and second["objective/kl"] != 0.0
    assert run.config["dtype"] == "bfloat16"  # the parent's


def test_merged_model_answers_as_base_with_adapter(smollm2, runs, tmp_path):
    toolkit("merge", "--parent", runs / "sft", "--output_dir", tmp_path / "merged")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, runs / "sft").eval()
    assert greedy(merged, tokenizer) == greedy(adapted, tokenizer)


def test_four_bit_base_trains_a_step(smollm2, data, tmp_path):
    words = ["--model_name_or_path", smollm2, "--load_in_4bit", "true", *LORA, *QUICK]
    words += ["--dataset_name", data / "shown.jsonl", "--max_steps", "1", "--bf16", "true"]
    toolkit("sft", "--output_dir", tmp_path / "sft", "--per_device_train_batch_size", "2", *words)
    (loss,) = [row["loss"] for row in Run.load(tmp_path / "sft").metrics() if "loss" in row]
    assert 0 < loss < 10


def test_app_answers_coherently(smollm2, runs, capsys):
    words = ["--runs", runs, "--ask", "What is the capital of France?", "--temperature", "0"]
    toolkit("app", *words, "--model_name_or_path", smollm2, "--max_new_tokens", "16")
    assert "Paris" in capsys.readouterr().out


@pytest.mark.parametrize("recipe", ["sft", "ppo"])
def test_check_takes_seconds_and_little_memory(recipe, smollm2, runs, data, tmp_path):
    words = ["--config", f"smollm2-135m/{recipe}", "--model_name_or_path", smollm2]
    words += ["--dataset_name", data / "shown.jsonl", "--output_dir", tmp_path / "run"]
    if recipe == "ppo":
        words += ["--parent", runs / "sft", "--reward_model", runs / "reward"]
    code = (
        "import resource, sys; from benchmarks.meter import process_megabytes as megabytes\n"
        "from toolkit.cli import main; assert main(sys.argv[1:]) == 0\n"
        "own, other = (resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))\n"
        "print(own.ru_utime + own.ru_stime + other.ru_utime + other.ru_stime)\n"
        "print(max(megabytes('VmHWM'), other.ru_maxrss / 1024))\n"
    )
    command = [sys.executable, "-c", code, "check", *map(str, words)]
    process = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert process.returncode == 0, process.stdout + process.stderr
    assert "predicted peak" in process.stdout
    seconds, megabytes = map(float, process.stdout.splitlines()[-2:])
    assert seconds < 14  # of processor time; 7 to 8 s on an idle machine
    assert megabytes < 1200
