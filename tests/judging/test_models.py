"""Answers of runs, and a judge without a server."""

import shutil

import pytest

from toolkit.app.judgements.judged import FILE, read_judgements
from toolkit.errors import ConfigError

LOCAL = {"dataset_name": None, "judge_url": None, "judge_model": None, "dtype": "float32"}
SMALL = {"prompts": "world:prompts", "max_prompts": 2, "max_new_tokens": 8, "temperature": 1.0}


@pytest.mark.slow
def test_local_judge_judges_runs_and_keeps_their_answers(judge, tiny_base, sft_run, tmp_path):
    other = shutil.copytree(sft_run, tmp_path / "other")
    options = LOCAL | SMALL | {"model_name_or_path": tiny_base, "runs": [sft_run, other]}
    options |= {"samples_per_prompt": 2, "judge_run": "base"}
    assert judge(**options) == 0
    report = judge.read("report.json")
    assert report["questions"] == 2 * 2  # the runs have the same weights and the same seed
    assert (report["left_out"], report["malformed_replies"]) == ({}, 0)
    assert report["prompt_tokens"] > 4 * 100
    ranks = {
        (j.ranks, tuple(reply.name for reply in j.replies))
        for j in read_judgements(judge.out / FILE)
    }
    assert {names for _, names in ranks} == {("sft", "sft", "other", "other")}
    assert all(order[:2] == order[2:] for order, _ in ranks)  # equal answers tie
    sampled = judge.out / "sampled.jsonl"
    before = sampled.stat().st_mtime_ns
    assert judge(**options) == 0
    assert judge.read("report.json")["from_earlier_calls"] == 4
    assert judge(**options | {"judge_run": sft_run, "mode": "aspects"}) == 0
    assert judge.read("report.json")["from_earlier_calls"] == 0
    assert sampled.stat().st_mtime_ns == before
    # the same answers, judged by a server
    assert (
        judge(
            **options
            | {"judge_run": None, "judge_url": f"{judge.server}/ok/v1", "judge_model": "m"}
        )
        == 0
    )
    assert sampled.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"judge_url": None}, "name one judge"),
        ({"judge_run": "base"}, "name one judge"),
        ({"dataset_name": None}, "name what is judged"),
        ({"runs": ["runs/sft"]}, "name what is judged"),
        ({"judge_model": None}, "`judge_model` is missing"),
    ],
)
def test_one_judge_and_one_source_are_needed(options, message, judge, capsys):
    assert judge(**options) == ConfigError.exit_code
    assert message in capsys.readouterr().err
