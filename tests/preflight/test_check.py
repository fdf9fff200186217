"""`toolkit check`: the rows, samples, errors and predicted memory that it prints."""

import importlib.util
import json
from pathlib import Path

import pytest
from datasets import Dataset
from transformers import AutoTokenizer

from tests.conftest import ROOT, SHARED
from toolkit.errors import ConfigError
from toolkit.options.command_line import parse
from toolkit.preflight import check
from toolkit.preflight.check import check_stage
from toolkit.preflight.findings import Findings, check_disk, check_tokens
from toolkit.preflight.fit import device_memory, predict
from toolkit.preflight.rows import histogram, longest_row, percentiles, row_tokens
from toolkit.recipe import Options, find_recipe
from toolkit.runner import train
from toolkit.stages import Stage, find_stages

WORLD = "recipes/configs/world"
REAL = sorted((SHARED / "data").glob("*.json*")) if (SHARED / "data").is_dir() else []
EVALUATED = ["--eval_strategy", "steps", "--eval_steps", "1"]


@pytest.fixture(autouse=True)
def _at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def stage_of(recipe, *words):
    config = ["--config", f"{WORLD}/{recipe}.yaml", *map(str, words)]
    recipe = find_recipe(recipe)
    return Stage(recipe, Options(*parse(recipe.argument_classes(), config)))


def load_check():
    spec = importlib.util.spec_from_file_location("check", ROOT / "recipes" / "check.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_check_prints_sft_rows_with_loss_on_answer(tiny_base, tmp_path, capsys):
    """Also for a run that is evaluated."""
    words = ["--model_name_or_path", tiny_base, "--output_dir", tmp_path / "run", *EVALUATED]
    findings = check_stage(stage_of("sft", *words))
    output = capsys.readouterr().out
    assert findings.errors == []
    assert "480 rows" in output
    assert "predicted peak" in output
    sample = output.split("--- 1, row\n")[1].split("\n--- ")[0]
    before, _, rest = sample.partition("⟦")
    assert before.startswith("<|user|>")
    assert before.endswith("<|assistant|>")
    assert rest.endswith("<|end|>⟧")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("recipe", ["rloo", "grpo"])
def test_check_predicts_memory_of_groups(recipe, tiny_base, sft_run, reward_run, tmp_path, capsys):
    words = ["--model_name_or_path", tiny_base, "--output_dir", tmp_path / "run"]
    words += ["--parent", sft_run, "--reward_model", reward_run, "--max_rows", "20"]
    findings = check_stage(stage_of(recipe, *words))
    assert (findings.errors, findings.warnings) == ([], [])
    output = capsys.readouterr().out
    phases = output.split("predicted peak", 1)[1].splitlines()[1].split()
    assert phases == ["reading", "sampling", "scoring", "update"]


def test_check_describes_first_rows_of_stream(tiny_base, tmp_path, capsys):
    file = tmp_path / "d.jsonl"
    row = '{"prompt": "Is it %d?", "completion": "Yes."}\n'
    file.write_text("".join(row % i for i in range(1500)) + "{\n", encoding="utf-8")
    words = ["--dataset_name", file, "--dataset_streaming", "true", "--max_steps", 7]
    words += ["--save_strategy", "steps"]
    words += ["--model_name_or_path", tiny_base, "--output_dir", tmp_path / "run"]
    findings = check_stage(stage_of("sft", *words))
    assert findings.errors == []
    output = capsys.readouterr().out
    assert "the first 1000 rows of a stream -> prompt-completion (train 1000)" in output
    assert "1000 rows, " in output


@pytest.mark.parametrize("recipe", ["sft", "reward", "dpo"])
def test_evaluation_without_test_split_raises(recipe, tiny_base, sft_run, tmp_path):
    file = tmp_path / "d.jsonl"
    row = {"prompt": "Is it?", "chosen": "Yes.", "rejected": "No."}
    file.write_text(json.dumps(row) + "\n", encoding="utf-8")
    words = ["--model_name_or_path", tiny_base, "--output_dir", tmp_path / "run", *EVALUATED]
    words += ["--dataset_name", file, *(["--parent", sft_run] if recipe != "sft" else [])]
    stage, message = (
        stage_of(recipe, *words),
        "the dataset has no test split: set `test_split_size`",
    )
    with pytest.raises(ConfigError, match=message):
        check_stage(stage)
    with pytest.raises(ConfigError, match=message):
        train(find_recipe(recipe), *stage.options)


def test_rows_without_end_or_beyond_context_are_reported(tiny_base):
    findings = Findings()
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    rows = Dataset.from_list([{"input_ids": [9, 9, 9]}] * 3)

    def collator(batch):
        import torch

        ids = torch.tensor([row["input_ids"] for row in batch])
        return {"input_ids": ids, "labels": ids}

    class Config:
        vocab_size, max_position_embeddings = 100, 2

    check_tokens(tokenizer, rows, [2] * 300 + [3], collator, Config, findings)
    assert any("has no loss in the first 3 rows" in line for line in findings.warnings)
    assert any("100 embeddings" in line for line in findings.errors)
    long = "1 of 301 rows are longer than the base's context of 2 tokens"
    assert any(long in line for line in findings.errors)


@pytest.mark.parametrize(
    ("recipe", "words", "free_gb", "fails"),
    [
        ("sft", [], 20, False),
        ("sft", [], 8, True),
        ("reward", ["--ensemble", 1], 20, False),
        ("reward", ["--ensemble", 3], 20, True),  # checkpoints of every member
    ],
)
def test_checkpoints_without_space_are_an_error(
    recipe, words, free_gb, fails, tmp_path, monkeypatch
):
    parts = {"adapters": 1 << 30, "heads": 0, "optimizer": 2 << 30}
    usage = type("Usage", (), {"free": free_gb << 30})
    monkeypatch.setattr("toolkit.preflight.findings.shutil.disk_usage", lambda _: usage)
    words = ["--output_dir", tmp_path / "run", "--save_total_limit", 2, *words]
    findings = Findings()
    check_disk(stage_of(recipe, *words), parts, 100, findings)
    assert bool(findings.errors) == fails
    if fails:  # checkpoints of an earlier run make space
        old = tmp_path / "run" / "member-0" / "checkpoint-5"
        old.mkdir(parents=True)
        with (old / "optimizer.pt").open("wb") as file:
            file.truncate(40 << 30)  # a sparse file
        findings = Findings()
        check_disk(stage_of(recipe, *words), parts, 100, findings)
        assert findings.errors == []


@pytest.mark.slow
def test_check_exits_2_for_adapter_of_another_base(tiny_base, sft_run, capsys):
    main = load_check().check
    base = "toolkit/world/assets/base"
    data = ["--dataset_name", "world:comparisons", "--max_rows", "16"]
    words = ["--parent", str(sft_run), *data]
    assert main(f"{WORLD}/dpo.yaml", [*words, "--model_name_or_path", base], "dpo", None) == 2
    assert "trained on base" in capsys.readouterr().out
    code = main(f"{WORLD}/dpo.yaml", [*words, "--model_name_or_path", str(tiny_base)], None, 8.0)
    output = capsys.readouterr().out
    assert code == 0, output
    assert "1, chosen" in output
    assert "a GPU of 8 GB" in output
    assert (
        main(f"{WORLD}/kto.yaml", [*words, "--model_name_or_path", str(tiny_base)], None, 8.0) == 0
    )
    output = capsys.readouterr().out
    assert "1, a good answer" in output
    assert "predicted peak" in output


def test_check_names_largest_batch_that_fits(tiny_base, capsys):
    words = ["--model_name_or_path", str(tiny_base), "--max_rows", "16"]
    code = load_check().check(f"{WORLD}/sft.yaml", words, None, 0.02)
    output = capsys.readouterr().out
    assert code == 2
    assert "do not fit into 20 MB; the largest `per_device_train_batch_size` that fits is" in output


@pytest.mark.slow
def test_pipeline_is_checked_before_its_first_stage_ran(tmp_path, capsys):
    file = tmp_path / "pipeline.yaml"
    text = Path(f"{WORLD}/pipeline.yaml").read_text(encoding="utf-8")
    file.write_text(text.replace("runs/quickstart", str(tmp_path / "runs")), encoding="utf-8")
    assert load_check().check(str(file), [], None, None) == 0
    output = capsys.readouterr().out
    for name in ("sft", "reward", "ppo", "dpo"):
        assert f"=== {name} ({name})" in output
    assert output.count("predicted peak") == 4
    assert "an earlier stage will write it" in output


def test_check_shows_answers_of_rankings(tiny_base, sft_run, tmp_path, capsys):
    file = tmp_path / "ranked.jsonl"
    row = '{"prompt": "what %d", "completions": ["one", "two", "three"], "ranks": [1, 2, 3]}\n'
    file.write_text("".join(row % n for n in range(12)))
    words = ["--dataset_name", file, "--model_name_or_path", tiny_base, "--parent", sft_run]
    words += ["--output_dir", tmp_path / "run"]
    findings = check_stage(stage_of("reward", *words))
    output = capsys.readouterr().out
    assert findings.errors == []
    assert "--- 1, answer 3 of 3" in output
    assert "predicted peak" in output


def test_recipe_of_yaml_comes_from_name_or_options(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("dataset_name: world:prompts\nresponse_length: 8\n")
    assert [stage.recipe.name for stage in find_stages(str(file))] == ["ppo"]
    file.write_text("dataset_name: world:demonstrations\n")
    for name, recipe in {
        "naive_sft": "sft",
        "my-dpo-v2": "dpo",
        "DPO.small": "dpo",
        "sft_for_dpo": "sft",
    }.items():
        named = tmp_path / f"{name}.yaml"
        named.write_text(file.read_text())
        assert [stage.recipe.name for stage in find_stages(str(named))] == [recipe]
    for name in ("mine", "after-sft-dpo", "\u4f60", "presft"):
        unnamed = tmp_path / f"{name}.yaml"
        unnamed.write_text(file.read_text())
        with pytest.raises(ConfigError, match=r"--recipe .*sft"):
            find_stages(str(unnamed))
    assert find_stages(str(file), recipe="sft")[0].recipe.name == "sft"


@pytest.mark.slow
def test_fresh_process_predicts_same_as_fork(tiny_base, sft_run, reward_run, tmp_path):
    """A process that uses a GPU cannot fork."""
    words = ["--model_name_or_path", tiny_base, "--output_dir", tmp_path, "--parent", sft_run]
    pairs = {"prompt_ids": [5] * 9, "chosen_ids": [5] * 4, "rejected_ids": [5] * 3}
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    memory = device_memory(1, use_cpu=True)
    for stage, row in (
        (stage_of("dpo", *words), pairs),
        (stage_of("ppo", *words, "--reward_model", reward_run), {"prompt_ids": [5] * 9}),
    ):
        results = [
            predict(stage, tokenizer, row, memory, always_largest=False, fresh=fresh)
            for fresh in (True, False)
        ]
        assert results[0] == results[1]


@pytest.mark.parametrize(("has_parent", "line"), [(True, "need up to"), (False, "need disk; ")])
def test_check_without_prediction_reports_disk(
    has_parent, line, tiny_base, sft_run, tmp_path, monkeypatch
):
    def predict(*_, **__):
        raise ConfigError("an unknown model")

    monkeypatch.setattr(check, "predict", predict)
    words = ["--model_name_or_path", tiny_base, "--output_dir", tmp_path / "run", "--max_rows", 16]
    words += ["--parent", sft_run, "--dataset_name", "world:comparisons"] if has_parent else []
    findings = check_stage(stage_of("dpo" if has_parent else "sft", *words))
    assert findings.errors == []
    assert findings.warnings == ["memory cannot be predicted (an unknown model)"]
    assert any(f"checkpoints {line}" in note for note in findings.notes)


def test_lengths_and_longest_row_of_every_layout():
    ranking = {"ids": [[1] * 4, [1] * 9], "better": [0], "worse": [1], "margins": [0.0]}
    more = {"ids": [[1] * 3] * 3, "better": [0], "worse": [1], "margins": [0.0]}
    rows = Dataset.from_list([ranking, more])
    lengths = row_tokens(rows)
    assert lengths == [9, 3]
    assert [len(ids) for ids in longest_row(rows, lengths)["ids"]] == [9, 9, 9]
    pairs = Dataset.from_list(
        [{"prompt_ids": [1, 2], "chosen_ids": [1], "rejected_ids": [1, 2, 3]}]
    )
    assert row_tokens(pairs) == [5]
    assert row_tokens(pairs, 4) == [4]
    labelled = Dataset.from_list([{"prompt_ids": [1, 2], "completion_ids": [1, 2], "label": True}])
    assert row_tokens(labelled) == [4]
    assert row_tokens(Dataset.from_list([{"input_ids": [1, 2, 3]}])) == [3]
    assert row_tokens(Dataset.from_list([{"prompt": "a", "prompt_ids": [1]}])) == [1]
    with pytest.raises(ConfigError, match="the trainer's rows have the columns text; expected one"):
        row_tokens(Dataset.from_list([{"text": "a"}]))
    assert percentiles(range(1, 101)) == {
        "least": 1, "median": 50, "95 %": 95, "99 %": 99, "most": 100,
    }  # fmt: skip
    assert list(percentiles([7]).values()) == [7] * 5
    bars = histogram([1] * 10 + [80])
    assert sum(int(line.rsplit(" ", 1)[1]) for line in bars) == 11


@pytest.mark.skipif(not REAL, reason="needs the shared real data")
@pytest.mark.parametrize("file", REAL, ids=[file.stem for file in REAL])
def test_check_accepts_real_data(file, tiny_base, tmp_path, capsys, sft_run):
    recipe = "sft" if "alpaca" in file.name else "dpo"
    words = ["--dataset_name", file, "--model_name_or_path", tiny_base, "--max_length", 512]
    words += ["--max_rows", 64, "--drop_bad_rows", "true", "--output_dir", tmp_path / "run"]
    if recipe == "dpo":
        words += ["--parent", sft_run]
    findings = check_stage(stage_of(recipe, *words))
    output = capsys.readouterr().out
    assert findings.errors == []
    assert "predicted peak" in output
    assert "--- 2, " in output
