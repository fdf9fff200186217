"""The log files of a resumed run: rows before the checkpoint stay, byte for byte."""

import json
from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from toolkit.errors import CheckpointError
from toolkit.trainers.callbacks import SAMPLES_FILE, RunCallback


def test_resumed_run_keeps_unicode_line_separators(tmp_path):
    samples = tmp_path / SAMPLES_FILE
    rows = [
        json.dumps({"step": step, "answer": f"a{mark}b"}, ensure_ascii=False) + "\n"
        for step, mark in ((2, "\u2028"), (4, "\u2029"), (6, "\u0085"), (8, "."))
    ]
    cut_short = '{"step": 9, "answer": "é'.encode()[:-1]
    samples.write_bytes("".join(rows).encode() + cut_short)
    args = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True)
    RunCallback().on_train_begin(args, TrainerState(global_step=6), TrainerControl())
    assert samples.read_text(encoding="utf-8") == "".join(rows[:3])
    RunCallback().on_train_begin(args, TrainerState(global_step=0), TrainerControl())
    assert samples.read_bytes() == b""


FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="the system has no device that is always full")
def test_full_disk_while_logging_names_resume(tmp_path):
    args = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True)
    (tmp_path / "metrics.jsonl").symlink_to(FULL)
    with pytest.raises(
        CheckpointError, match=r"metrics\.jsonl: cannot be written \(No space left.*resume_from"
    ):
        RunCallback().on_log(args, TrainerState(global_step=6), TrainerControl(), {"loss": 1.0})


def test_removed_folder_is_named_while_logging(tmp_path):
    args = TrainingArguments(str(tmp_path / "run"), report_to=[], use_cpu=True)
    with pytest.raises(CheckpointError, match=r"run: was removed or renamed while .* start again"):
        RunCallback().on_log(args, TrainerState(global_step=6), TrainerControl(), {"loss": 1.0})
