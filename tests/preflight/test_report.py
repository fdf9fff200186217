"""The report at the start of a run: rows, disk and warnings; it predicts nothing and stops nothing."""

import multiprocessing
import subprocess

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer

from tests.conftest import ROOT
from tests.preflight.test_check import stage_of
from toolkit.preflight.report import print_report

SEQUENCES = [{"input_ids": [5] * 9, "labels": [5] * 9}] * 4
PAIRS = [{"prompt_ids": [5], "chosen_ids": [5], "rejected_ids": [5]}]


@pytest.fixture(autouse=True)
def _at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def collator(rows):
    return {"labels": torch.tensor([row["labels"] for row in rows])}


def test_start_report_keeps_random_state_and_starts_no_process(
    tiny_base, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(multiprocessing, "get_context", None)
    monkeypatch.setattr(subprocess, "Popen", None)
    stage = stage_of("sft", "--model_name_or_path", tiny_base, "--output_dir", tmp_path)
    tokenizer, rows = AutoTokenizer.from_pretrained(tiny_base), Dataset.from_list(SEQUENCES)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    print_report(stage.recipe, stage.options, tokenizer, rows, collator)
    assert torch.equal(torch.rand(1), expected)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "preflight: 4 rows, tokens: median 9, 95 % 9, most 9"
    assert "`toolkit check` predicts how much" in lines[1]
    assert "warning: EOS" in lines[2]
    assert len(lines) == 3


def test_start_report_estimates_disk_from_parent(tiny_base, sft_run, tmp_path, capsys):
    words = ["--model_name_or_path", tiny_base, "--output_dir", tmp_path, "--parent", sft_run]
    stage, tokenizer = stage_of("dpo", *words), AutoTokenizer.from_pretrained(tiny_base)
    print_report(stage.recipe, stage.options, tokenizer, Dataset.from_list(PAIRS))
    assert "preflight: checkpoints need up to" in capsys.readouterr().out


def test_start_report_names_checkpoints_that_cannot_be_resumed(tiny_base, tmp_path, capsys):
    words = ["--model_name_or_path", tiny_base, "--output_dir", tmp_path]
    words += ["--save_only_model", "true", "--save_strategy"]
    tokenizer, rows = AutoTokenizer.from_pretrained(tiny_base), Dataset.from_list(SEQUENCES)
    for strategy in ("steps", "no"):
        stage = stage_of("sft", *words, strategy)
        print_report(stage.recipe, stage.options, tokenizer, rows, collator)
        warned = "with `save_only_model` the run cannot be resumed" in capsys.readouterr().out
        assert warned == (strategy == "steps")


def test_start_report_survives_unknown_rows(tiny_base, tmp_path, capsys):
    stage = stage_of("sft", "--model_name_or_path", tiny_base, "--output_dir", tmp_path)
    rows = Dataset.from_list([{"text": "a"}])
    print_report(stage.recipe, stage.options, AutoTokenizer.from_pretrained(tiny_base), rows)
    assert capsys.readouterr().out.startswith("preflight: no report (the trainer's rows have")
