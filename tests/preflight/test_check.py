"""What `recipes/check.py` and the recipes say before a run."""

import importlib
import importlib.util
import json
from pathlib import Path

import pytest
from datasets import Dataset
from transformers import AutoTokenizer

from tests.conftest import ROOT, SHARED
from toolkit.errors import ConfigError
from toolkit.options.command_line import parse
from toolkit.preflight.check import check_stage
from toolkit.preflight.findings import Findings, check_disk, check_tokens
from toolkit.preflight.lengths import histogram, neediest_row, percentiles, row_tokens
from toolkit.preflight.report import print_report
from toolkit.preflight.stages import Stage, find_stages
from toolkit.recipe import Options, find_recipe
from toolkit.runner import train

WORLD = "recipes/configs/world"
REAL = sorted((SHARED / "data").glob("*.json*")) if (SHARED / "data").is_dir() else []


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


def test_sft_is_described_with_the_loss_on_the_answer_alone(tiny_base, tmp_path, capsys):
    found = check_stage(
        stage_of("sft", "--model_name_or_path", tiny_base, "--output_dir", tmp_path / "run")
    )
    said = capsys.readouterr().out
    assert found.errors == []
    assert "480 rows" in said
    assert "predicted peak" in said
    sample = said.split("--- 1, row\n")[1].split("\n--- ")[0]
    before, _, rest = sample.partition("⟦")
    assert before.startswith("<|user|>")
    assert before.endswith("<|assistant|>")
    assert rest.endswith("<|end|>⟧")
    assert not (tmp_path / "run").exists()


def test_of_a_stream_the_first_rows_are_described(tiny_base, tmp_path, capsys):
    file = tmp_path / "d.jsonl"
    row = '{"prompt": "Is it %d?", "completion": "Yes."}\n'
    file.write_text("".join(row % i for i in range(1500)) + "{\n", encoding="utf-8")
    words = ["--dataset_name", file, "--dataset_streaming", "true", "--max_steps", 7]
    words += ["--model_name_or_path", tiny_base, "--output_dir", tmp_path / "run"]
    found = check_stage(stage_of("sft", *words))
    assert found.errors == []
    said = capsys.readouterr().out
    assert "the first 1000 rows of a stream -> prompt-completion (train 1000)" in said
    assert "1000 rows, " in said


EVALUATED = ["--eval_strategy", "steps", "--eval_steps", "1"]


def test_a_run_that_is_evaluated_is_predicted_too(tiny_base, tmp_path, capsys):
    words = ["--model_name_or_path", tiny_base, "--output_dir", tmp_path / "run", *EVALUATED]
    assert check_stage(stage_of("sft", *words)).errors == []
    assert "predicted peak" in capsys.readouterr().out


@pytest.mark.parametrize("recipe", ["sft", "reward", "dpo"])
def test_an_evaluation_without_a_test_split_is_refused(recipe, tiny_base, sft_run, tmp_path):
    file = tmp_path / "d.jsonl"
    row = {"prompt": "Is it?", "chosen": "Yes.", "rejected": "No."}
    file.write_text(json.dumps(row) + "\n", encoding="utf-8")
    words = ["--model_name_or_path", tiny_base, "--output_dir", tmp_path / "run", *EVALUATED]
    words += ["--dataset_name", file, *(["--parent", sft_run] if recipe != "sft" else [])]
    stage, said = stage_of(recipe, *words), "there is no test split: set `test_split_size`"
    with pytest.raises(ConfigError, match=said):
        check_stage(stage)
    with pytest.raises(ConfigError, match=said):
        train(find_recipe(recipe), *stage.options)


def test_a_limit_that_cuts_every_end_is_warned_of(tiny_base):
    stage = stage_of("sft", "--model_name_or_path", tiny_base)
    found = Findings()
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    rows = Dataset.from_list([{"input_ids": [9, 9, 9]}] * 3)

    def collator(some):
        import torch

        ids = torch.tensor([row["input_ids"] for row in some])
        return {"input_ids": ids, "labels": ids}

    class Config:
        vocab_size, max_position_embeddings = 100, 2

    check_tokens(stage, tokenizer, rows, [2] * 300 + [3], collator, Config, found)
    assert any("no row teaches to end" in line for line in found.warnings)
    assert any("the base embeds 100" in line for line in found.errors)
    assert any(
        "1 of 301 rows have more tokens than the base's context of 2" in e for e in found.errors
    )


def test_checkpoints_that_find_no_room_are_an_error(tmp_path, monkeypatch):
    stage = stage_of("sft", "--output_dir", tmp_path / "new" / "run", "--save_total_limit", 2)
    parts = {"adapters": 1 << 30, "heads": 0, "optimizer": 2 << 30}
    for free, fails in ((20 << 30, False), (8 << 30, True)):
        found = Findings()
        monkeypatch.setattr(
            "toolkit.preflight.findings.shutil.disk_usage",
            lambda _, free=free: type("Usage", (), {"free": free}),
        )
        check_disk(stage, parts, 100, found)
        assert bool(found.errors) == fails


def test_an_adapter_of_another_base_ends_with_exit_code_2(tiny_base, sft_run, capsys):
    main = load_check().check
    base = "toolkit/world/assets/base"
    data = ["--dataset_name", "world:comparisons", "--max_rows", "16"]
    words = ["--parent", str(sft_run), *data]
    assert main(f"{WORLD}/dpo.yaml", [*words, "--model_name_or_path", base], "dpo", None) == 2
    assert "trained on base" in capsys.readouterr().out
    code = main(f"{WORLD}/dpo.yaml", [*words, "--model_name_or_path", str(tiny_base)], None, 8.0)
    said = capsys.readouterr().out
    assert code == 0, said
    assert "1, chosen" in said
    assert "a card of 8 GB" in said
    assert (
        main(f"{WORLD}/kto.yaml", [*words, "--model_name_or_path", str(tiny_base)], None, 8.0) == 0
    )
    said = capsys.readouterr().out
    assert "1, a good answer" in said
    assert "predicted peak" in said


def test_a_run_that_does_not_fit_names_the_batch_that_does(tiny_base, capsys):
    words = ["--model_name_or_path", str(tiny_base), "--max_rows", "16"]
    code = load_check().check(f"{WORLD}/sft.yaml", words, None, 0.02)
    said = capsys.readouterr().out
    assert code == 2
    assert "will not fit in 20 MB; the largest `per_device_train_batch_size` that does is" in said


def test_every_stage_of_a_pipeline_is_checked_before_the_first_has_run(tmp_path, capsys):
    file = tmp_path / "pipeline.yaml"  # of which nothing has run, whatever is in runs/
    text = Path(f"{WORLD}/pipeline.yaml").read_text(encoding="utf-8")
    file.write_text(text.replace("runs/quickstart", str(tmp_path / "runs")), encoding="utf-8")
    assert load_check().check(str(file), [], None, None) == 0
    said = capsys.readouterr().out
    for name in ("sft", "reward", "ppo", "dpo"):
        assert f"=== {name} ({name})" in said
    assert said.count("predicted peak") == 4
    assert "made by an earlier stage" in said


def test_rankings_that_are_there_are_read_and_shown(tiny_base, sft_run, tmp_path, capsys):
    file = tmp_path / "ranked.jsonl"
    row = '{"prompt": "what %d", "completions": ["one", "two", "three"], "ranks": [1, 2, 3]}\n'
    file.write_text("".join(row % n for n in range(12)))
    words = ["--dataset_name", file, "--model_name_or_path", tiny_base, "--parent", sft_run]
    words += ["--output_dir", tmp_path / "run"]
    found = check_stage(stage_of("reward", *words))
    said = capsys.readouterr().out
    assert found.errors == []
    assert "--- 1, answer 3 of 3" in said
    assert "predicted peak" in said


def test_a_yaml_is_known_by_its_name_then_by_its_options(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("dataset_name: world:prompts\nresponse_length: 8\n")
    assert [stage.recipe for stage in find_stages(str(file))] == ["ppo"]
    file.write_text("dataset_name: world:demonstrations\n")
    with pytest.raises(ConfigError, match=r"--recipe sft"):
        find_stages(str(file))
    assert find_stages(str(file), recipe="sft")[0].recipe.name == "sft"


def test_the_short_form_never_stops_a_run(tiny_base, tmp_path, capsys):
    """An unknown kind of model: one line, and the random numbers go on as if nothing had been."""
    import torch

    stage = stage_of("sft", "--model_name_or_path", tiny_base, "--output_dir", tmp_path)
    configs = stage.options
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    rows = Dataset.from_list([{"input_ids": [5] * 9, "labels": [5] * 9}] * 4)
    collator = lambda some: {"labels": torch.tensor([row["labels"] for row in some])}  # noqa: E731
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    print_report(find_recipe("sft"), configs, tokenizer, rows, collator)
    assert torch.equal(torch.rand(1), expected)
    assert "predicted peak" in capsys.readouterr().out
    stage.model.lora_target_modules = ["no_such_layer"]
    print_report(find_recipe("sft"), configs, tokenizer, rows, collator)
    said = capsys.readouterr().out
    assert "memory is not predicted (ConfigError: lora_target_modules" in said
    assert len(said.splitlines()) <= 6


def test_a_fresh_process_predicts_the_same(tiny_base, sft_run, reward_run, tmp_path, capsys):
    """As on a GPU, whose process cannot be copied."""
    words = ["--model_name_or_path", tiny_base, "--output_dir", tmp_path, "--parent", sft_run]
    pairs = {"prompt_ids": [5] * 9, "chosen_ids": [5] * 4, "rejected_ids": [5] * 3}
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    for stage, row in (
        (stage_of("dpo", *words), pairs),
        (stage_of("ppo", *words, "--reward_model", reward_run), {"prompt_ids": [5] * 9}),
    ):
        rows, said = Dataset.from_list([row] * 4), []
        for _fresh in (True, False):
            print_report(stage.recipe, stage.options, tokenizer, rows)
            lines = capsys.readouterr().out.splitlines()
            said.append([line for line in lines if "predicted" in line])
        assert "predicted peak" in said[0][0]
        assert said[0] == said[1]


def test_the_disk_is_looked_at_where_memory_is_not_predicted(
    tiny_base, sft_run, tmp_path, capsys, monkeypatch
):
    def fails(*_, **__):
        raise ConfigError("an exotic model")

    monkeypatch.setattr("toolkit.preflight.report.apart", fails)
    rows = Dataset.from_list([{"prompt_ids": [5], "chosen_ids": [5], "rejected_ids": [5]}])
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    words = ["--model_name_or_path", tiny_base, "--output_dir", tmp_path / "run"]
    with_parent = stage_of("dpo", *words, "--parent", sft_run)
    print_report(find_recipe("dpo"), with_parent.options, tokenizer, rows)
    said = capsys.readouterr().out
    assert "memory is not predicted (an exotic model)" in said
    assert "checkpoints take up to" in said
    print_report(
        find_recipe("dpo"),
        stage_of("dpo", *words, "--parent", tmp_path / "no").options,
        tokenizer,
        rows,
    )
    assert "what checkpoints take of disk is not known" in capsys.readouterr().out


def test_an_ensemble_needs_the_disk_of_all_and_what_is_there_is_not_needed_twice(
    tmp_path, monkeypatch
):
    parts = {"adapters": 1 << 30, "heads": 0, "optimizer": 2 << 30}
    monkeypatch.setattr(
        "toolkit.preflight.findings.shutil.disk_usage",
        lambda _: type("Usage", (), {"free": 20 << 30}),
    )
    words = ["--output_dir", tmp_path / "run", "--save_total_limit", 2]
    for members, fails in ((1, False), (3, True)):
        found = Findings()
        check_disk(stage_of("reward", *words, "--ensemble", members), parts, 100, found)
        assert bool(found.errors) == fails
    left = tmp_path / "run" / "member-0" / "checkpoint-5"
    left.mkdir(parents=True)
    with (left / "optimizer.pt").open("wb") as file:
        file.truncate(40 << 30)  # a hole: takes no room
    found = Findings()
    check_disk(stage_of("reward", *words, "--ensemble", 3), parts, 100, found)
    assert found.errors == []


def test_lengths_are_those_of_what_is_read():
    ranking = {"ids": [[1] * 4, [1] * 9], "better": [0], "worse": [1], "margins": [0.0]}
    more = {"ids": [[1] * 3] * 3, "better": [0], "worse": [1], "margins": [0.0]}
    rows = Dataset.from_list([ranking, more])
    lengths = row_tokens("reward", rows)
    assert lengths == [9, 3]
    assert [len(ids) for ids in neediest_row("reward", rows, lengths)["ids"]] == [9, 9, 9]
    pairs = Dataset.from_list(
        [{"prompt_ids": [1, 2], "chosen_ids": [1], "rejected_ids": [1, 2, 3]}]
    )
    assert row_tokens("dpo", pairs) == [5]
    assert row_tokens("dpo", pairs, 4) == [4]
    labelled = Dataset.from_list([{"prompt_ids": [1, 2], "completion_ids": [1, 2], "label": True}])
    assert row_tokens("kto", labelled) == [4]
    assert percentiles(range(1, 101)) == {
        "least": 1, "median": 50, "95 %": 95, "99 %": 99, "most": 100,
    }  # fmt: skip
    assert list(percentiles([7]).values()) == [7] * 5
    bars = histogram([1] * 10 + [80])
    assert sum(int(line.rsplit(" ", 1)[1]) for line in bars) == 11


@pytest.mark.skipif(not REAL, reason="the shared real data is not here")
@pytest.mark.parametrize("file", REAL, ids=[file.stem for file in REAL])
def test_real_data_goes_through_check(file, tiny_base, tmp_path, capsys, sft_run):
    recipe = "sft" if "alpaca" in file.name else "dpo"
    words = ["--dataset_name", file, "--model_name_or_path", tiny_base, "--max_length", 512]
    words += ["--max_rows", 64, "--drop_bad_rows", "true", "--output_dir", tmp_path / "run"]
    if recipe == "dpo":
        words += ["--parent", sft_run]
    found = check_stage(stage_of(recipe, *words))
    said = capsys.readouterr().out
    assert found.errors == []
    assert "predicted peak" in said
    assert "--- 2, " in said
