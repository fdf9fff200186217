"""`toolkit judge` against a server process: verdicts, files, faults, resuming."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from tests.conftest import ROOT
from tests.judging.server import FAULTS, KEY
from toolkit.data.auxiliary import load_split
from toolkit.errors import ConfigError, Interrupted, JudgeError
from toolkit.judging import endpoint
from toolkit.judging.replies import FILE
from toolkit.runs.run import Run

MANY = [{"prompt": f"Is {i} good?", "completions": [f"good {i}", f"bad {i}"]} for i in range(20)]


def test_pairwise_verdicts_become_training_data(judge):
    assert judge() == 0
    first, second = judge.read("train.jsonl")
    assert (first["ranks"], first["scores"], first["judge"]) == ([1, 2], [1, 0], "tiny")
    assert second["ranks"] == [3, 1, 2]
    sea = [("good good", "bad"), ("good", "bad"), ("good good", "good")]
    pairs = [(row["chosen"], row["rejected"]) for row in judge.read("preference.jsonl")]
    assert sorted(pairs) == sorted([("It is good.", "It is bad."), *sea])
    report = judge.read("report.json")
    assert (report["questions"], report["pairs"], report["ties"]) == (8, 4, 0)
    assert report["same_in_both_orders"]["mean"] == 1
    assert report["first_shown_wins"]["mean"] == 0.5
    assert report["longer_wins"]["mean"] == 1
    assert (report["prompt_tokens"], report["completion_tokens"]) == (8 * 7, 8 * 3)
    assert report["agreement"] == {"people": None, "dataset": None}


@pytest.mark.parametrize("kind", ["preference", "unpaired"])
def test_recipes_read_the_folder_as_the_files_for_trl(kind, judge):
    assert judge() == 0
    options = {"option": "dataset_name", "kind": kind, "drop_bad_rows": False, "seed": 0}
    assert load_split(str(judge.out), "train", **options) == judge.read(f"{kind}.jsonl")


def test_verdicts_that_depend_on_order_are_ties(judge):
    assert judge("first") == 0
    report = judge.read("report.json")
    assert (report["first_shown_wins"]["mean"], report["same_in_both_orders"]["mean"]) == (1, 0)
    assert report["ties"] == 1
    assert [row["ranks"] for row in judge.read("train.jsonl")] == [[1, 1], [1, 1, 1]]
    assert not (judge.out / "preference.jsonl").exists()


def test_aspects_rank_answers_by_mean_rating(judge):
    assert judge(mode="aspects") == 0
    _, sea = judge.read("train.jsonl")
    assert (sea["scores"], sea["ranks"]) == ([1, 3, 2], [3, 1, 2])
    report = judge.read("report.json")
    assert report["questions"] == 5 * 4
    assert report["ratings"]["honesty"] == pytest.approx((2 + 1 + 1 + 3 + 2) / 5)


def test_agreement_with_the_labels_of_a_dataset(judge):
    rows = [{"prompt": f"{i}?", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(4)]
    rows.append({"prompt": "5?", "chosen": "bad", "rejected": "good"})
    assert judge(rows=rows) == 0
    found = judge.read("report.json")["agreement"]["dataset"]
    assert (found["pairs"], found["votes"], found["equal"]) == (5, 5, 0.8)


def test_every_fault_of_the_server_is_retried(judge):
    assert judge("flaky", concurrency=1) == 0
    assert judge.requests("flaky") == 2 * 8 > len(FAULTS)
    assert judge.read("report.json")["left_out"] == {}


@pytest.mark.parametrize("behaviour", ["malformed", "old"])
def test_server_without_schemas_gives_the_same_verdicts(behaviour, judge):
    assert judge(behaviour) == 0
    assert judge.read("train.jsonl")[1]["ranks"] == [3, 1, 2]
    assert judge.read("report.json")["malformed_replies"] == (8 if behaviour == "malformed" else 0)


def test_malformed_replies_are_counted_and_left_out(judge, capsys):
    assert judge("never", malformed_retries=1) == 0
    report = judge.read("report.json")
    assert (report["left_out"], report["malformed_replies"]) == ({"malformed": 8}, 16)
    assert judge.requests("never") == 16
    assert (report["ranked_prompts"], report["answers_left_out"]) == (0, 5)
    assert not (judge.out / "train.jsonl").exists()
    text = capsys.readouterr().out
    assert "left out: 8 malformed" in text
    assert "the first one that is left out: 'The verdict is {" in text


def test_rejected_request_leaves_out_only_its_answer(judge):
    rows = [{"prompt": "Sea?", "completions": ["bad", "vast good good", "good"]}]
    assert judge("narrow", rows=rows) == 0
    (row,) = judge.read("train.jsonl")
    assert (row["completions"], row["ranks"]) == (["bad", "good"], [2, 1])
    assert judge.read("report.json")["left_out"] == {"rejected": 4}


@pytest.mark.parametrize(
    ("behaviour", "options", "error", "message"),
    [
        ("key", {}, ConfigError, "status 401); set the environment variable TOOLKIT_JUDGE_KEY"),
        ("hang", {"timeout": 0.2, "retries": 0}, JudgeError, "no reply within 0.2 s"),
        ("down", {"retries": 1}, JudgeError, "answered no question: status 503: {"),
        ("404", {}, ConfigError, "status 404 for the model 'tiny', expected 200"),
    ],
)
def test_server_that_does_not_answer_is_named(behaviour, options, error, message, judge, capsys):
    assert judge(behaviour, **options) == error.exit_code
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith(f"{error.__name__}: judge_url: {judge.server}/{behaviour}/v1")
    assert message in line
    assert Run.load(judge.out).state == "failed"


def test_refused_connection_names_url_and_fix(judge, capsys):
    url = "http://127.0.0.1:9/v1"
    assert judge(judge_url=url) == JudgeError.exit_code
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"judge_url: {url} does not answer (connection refused" in line
    assert "start the server, or correct the address" in line


def test_server_that_is_down_stops_after_a_few_questions(judge, capsys):
    assert judge("down", rows=MANY, retries=0, concurrency=1) == JudgeError.exit_code
    assert "Replies are kept: the same command continues" in capsys.readouterr().err
    assert 2 * len(MANY) > endpoint.MAX_FAILURES


def test_key_is_sent_and_never_stored(judge, monkeypatch):
    monkeypatch.setenv(endpoint.KEY, KEY)
    assert judge("key") == 0
    stored = [file for file in judge.out.rglob("*") if file.is_file()]
    assert len(stored) > 5
    assert not [file for file in stored if KEY.encode() in file.read_bytes()]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"judge_url": "http://me:pass@host/v1"}, "must not contain a password"),
        ({"judge_url": "localhost:8000"}, "must be an address such as"),
        ({"concurrency": 0}, "`concurrency` must be at least 1"),
        ({"judge_prompt": ROOT / "README.md"}, "must contain the placeholder {"),
    ],
)
def test_wrong_options_are_rejected(options, message, judge, capsys):
    assert judge(**options) == ConfigError.exit_code
    assert message in capsys.readouterr().err
    assert not judge.out.exists()


def test_own_instructions_are_used(judge, tmp_path):
    own = tmp_path / "own.txt"
    own.write_text(
        "{a}\nAnswer A: {answer_b}\nAnswer B: {answer_a}\n{prompt}"
    )  # the other way round
    assert judge(judge_prompt=own) == 0
    assert judge.read("train.jsonl")[1]["ranks"] == [1, 3, 2]


def test_second_call_asks_only_missing_questions(judge):
    before = judge.requests("ok")
    assert judge(max_prompts=1) == 0
    assert judge() == 0
    assert judge.read("report.json")["from_earlier_calls"] == 2
    assert judge(judge_model="other", max_prompts=1) == 0
    assert judge.requests("ok") - before == 8 + 2


def test_stopped_run_continues_without_judging_twice(judge):
    stop = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))
    stop.start()
    assert judge("slow", rows=MANY, concurrency=1) == Interrupted("", signal.SIGTERM).exit_code
    written = len(judge.read(FILE))
    assert 0 < written < 40
    before = judge.requests("slow")
    assert judge("slow", rows=MANY) == 0
    assert judge.requests("slow") - before == 40 - written
    assert len(judge.read("train.jsonl")) == 20


@pytest.mark.slow
def test_killed_run_continues_without_judging_twice(judge, tmp_path):
    before = judge.requests("slow")
    assert judge("first", rows=MANY, max_prompts=1) == 0  # writes the file
    words = ["--dataset_name", str(tmp_path / "answers.jsonl"), "--output_dir", str(judge.out)]
    words += ["--judge_url", f"{judge.server}/slow/v1", "--judge_model", "m", "--concurrency", "1"]
    command = [sys.executable, str(ROOT / "recipes" / "judge.py"), *words]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while len(judge.read(FILE)) < 2 + 5:
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
    file = judge.out / FILE
    content = file.read_text()
    whole = content[: content.rfind("\n") + 1]
    file.write_text(whole + json.dumps({"judge": "m", "key": "x", "choice": "A"})[:-9])  # cut short
    assert judge("slow", rows=MANY, judge_model="m") == 0
    assert judge.requests("slow") - before <= 40 + 1  # the request that was under way
    assert len(judge.read("train.jsonl")) == 20
