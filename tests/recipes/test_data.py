"""A recipe's training rows: mixtures, text, dropped rows."""

import json
import re

import pytest
import yaml

from tests.conftest import ROOT, SHARED
from toolkit.cli import run
from toolkit.options.command_line import parse
from toolkit.recipe import find, find_recipe
from toolkit.runner import train

pytestmark = pytest.mark.slow


def call(recipe, folder, tmp_path, **options):
    """Run a recipe with its shipped config of the embedded world and some options changed."""
    config = ROOT / "recipes" / "configs" / "world" / f"{recipe}.yaml"
    options = yaml.safe_load(config.read_text()) | {"output_dir": str(folder)} | options
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({k: v for k, v in options.items() if v is not None}))
    command = find_recipe(recipe)
    return train(command, *parse(command.argument_classes(), ["--config", str(file)]))


QUICK = {
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "logging_steps": 1,
    "save_strategy": "no",
    "warmup_steps": 0,
}


def test_mixture_of_real_files_lists_dropped_rows(tmp_path, capsys):
    names = ("hh_rlhf_harmless.jsonl.gz", "alpaca_instructions.json")
    files = [SHARED / "data" / name for name in names]
    for file in files:
        if not file.exists():
            pytest.skip(f"the real data file {file.name} is not at ../shared/data")
    run = call(
        "sft",
        tmp_path / "sft",
        tmp_path,
        dataset_name=None,
        sources=[{"dataset_name": str(file)} for file in files],
        drop_bad_rows=True,
        test_split_size=0.05,
        **QUICK,
    )
    assert run.state == "finished"
    dropped = [json.loads(line) for line in (run.path / "dropped_rows.jsonl").open()]
    assert [row["number"] for row in dropped] == [87, 517, 668, 764, 926, 1104]
    assert {row["place"] for row in dropped} == {str(files[0])}
    assert json.loads((run.path / "run.json").read_text())["config"]["sources"][1] == {
        "dataset_name": str(files[1]),
        "dataset_config": None,
        "split": "train",
        "fraction": None,
        "columns": None,
        "dataset_format": None,
    }
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("mixture of")]
    train, test = map(int, re.search(r"\(train (\d+), test (\d+)\)", line).groups())
    assert train + test == 1156 - 6 + 500


def test_sft_learns_text_without_prompts(tmp_path):
    file = tmp_path / "d.jsonl"
    file.write_text(
        "".join(json.dumps({"text": f"The sky is blue, {i}."}) + "\n" for i in range(8))
    )
    run = call("sft", tmp_path / "sft", tmp_path, dataset_name=str(file), **QUICK)
    assert run.state == "finished"
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").open()]
    assert rows[0]["loss"] > 0


@pytest.mark.parametrize(("turns", "examples"), [(None, 6), ("last", 3)])
def test_sft_learns_every_answer_of_a_dialogue(tmp_path, capsys, turns, examples):
    file = tmp_path / "d.jsonl"
    messages = [{"role": role, "content": "Sky?"} for role in ("user", "assistant") * 2]
    file.write_text("".join(json.dumps({"messages": messages}) + "\n" for _ in range(3)))
    options = QUICK if turns is None else QUICK | {"turns": turns}
    run = call("sft", tmp_path / "sft", tmp_path, dataset_name=str(file), **options)
    assert run.state == "finished"
    text = capsys.readouterr().out
    assert f"3 rows -> prompt-completion (train {examples})" in text
    assert ("; 3 dialogues became 6 examples, one for each assistant turn" in text) == (not turns)


@pytest.mark.parametrize(
    ("completion", "message"),
    [
        ("Blue.<|end|>", 'must not contain the chat template\'s "<|end|>"'),
        ("Blue.", None),
    ],
)
def test_sft_rejects_template_tokens_in_messages(tmp_path, capsys, completion, message):
    file = tmp_path / "d.jsonl"
    row = {"instruction": "Sky?", "output": completion}
    file.write_text(json.dumps(row) + "\n" + json.dumps(row | {"output": "Green."}) + "\n")
    words = ["--config", "recipes/configs/world/sft.yaml", "--dataset_name", str(file)]
    words += ["--output_dir", str(tmp_path / "sft"), "--max_steps", "1"]
    code = run(find("sft"), words)
    error = capsys.readouterr().err
    if message is None:
        assert code == 0
    else:
        assert code == 2
        assert message in error
        assert f"{file} row 1:" in error
