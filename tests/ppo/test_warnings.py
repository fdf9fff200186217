"""PPO's warnings: on hand-made curves, and in a trainer's metrics.jsonl."""

import json

import pytest

from tests.conftest import ROOT
from tests.ppo.separate_models import make_ragged
from tests.ppo.setup import make, prompts
from toolkit.evaluation.gold import gold_metrics, gold_monitor
from toolkit.models.roles import REWARD
from toolkit.ppo import online
from toolkit.ppo.warnings import (
    CHECKS,
    WatchCallback,
    cut_answers,
    fewer_ends,
    high_kl,
    large_penalties,
    longer_answers,
    lower_gold,
    more_refusals,
    small_rollout,
    warned,
)


def training(kls, scores, entropy=6.0):
    """A row per rollout; ⅔ of an entropy of 6 nats is 4."""
    return [
        {"objective/kl": kl, "objective/scores": score, "objective/entropy": entropy}
        for kl, score in zip(kls, scores, strict=True)
    ]


def evaluations(scores, **columns):
    rows = [{"eval_objective/scores": score} for score in scores]
    for name, values in columns.items():
        for row, value in zip(rows, values, strict=True):
            row[f"eval_gold/{name}"] = value
    return rows


@pytest.mark.parametrize(
    ("kls", "scores", "entropy", "fires"),
    [
        ([0, 1, 2, 4, 5, 6], [0, 0, 0, 1, 1, 1], 6.0, True),  # the last three: KL 5
        ([0, 1, 2, 3, 3, 9], [0, 0, 0, 1, 1, 1], 9.0, False),  # KL 5, below 6
        ([0, 1, 2, 4, 5, 6], [1, 1, 1, 0, 0, 0], 6.0, False),  # the score fell
        (
            [0, 1, 2, 3, 3, 4],
            [0, 0, 0, 1, 1, 1],
            0.5,
            False,
        ),  # a reference of low entropy: 3.3 below 3.5
        ([0, 1, 2, 3, 4, 4], [0, 0, 0, 1, 1, 1], 0.5, True),
        ([9, 9, 9], [0, 1, 2], 6.0, False),  # only one mean
    ],
)
def test_high_kl(kls, scores, entropy, fires):
    assert (high_kl(training(kls, scores, entropy)) is not None) == fires


def test_high_kl_message():
    line = high_kl(training([0, 0, 0, 4, 5, 6], [-1, -1, -1, 1, 1, 1]))
    assert "from -1.00 to 1.00 at a KL of 5.0 nats per answer, above 4.0" in line


def rollouts(scores, **columns):
    rows = [{"objective/scores": score} for score in scores]
    for name, values in columns.items():
        for row, value in zip(rows, values, strict=True):
            row[f"objective/{name}"] = value
    return rows


@pytest.mark.parametrize(
    ("scores", "length", "fires"),
    [
        ([0, 0, 0, 1, 1, 1], [40, 40, 40, 60, 61, 62], True),  # 61 is above 60
        ([0, 0, 0, 1, 1, 1], [40, 40, 40, 58, 59, 60], False),
        ([1, 1, 1, 0, 0, 0], [40, 40, 40, 90, 90, 90], False),  # the score fell
        ([0, 1, 2], [40, 80, 160], False),  # only one mean
    ],
)
def test_longer_answers(scores, length, fires):
    assert (longer_answers(rollouts(scores, length=length)) is not None) == fires


@pytest.mark.parametrize(("ended", "fires"), [(0.7, True), (0.8, False)])
def test_fewer_ends(ended, fires):
    rows = rollouts([0, 0, 0, 1, 1, 1], ended=[0.95] * 3 + [ended] * 3)
    warning = fewer_ends(rows)
    assert (warning is not None) == fires
    assert warning is None or "from 95% to 70%" in warning


@pytest.mark.parametrize(
    ("scores", "refused", "fires"),
    [
        ([0, 0, 0, 1, 1, 1], [0.02, 0.02, 0.02, 0.11, 0.11, 0.11], True),
        ([0, 0, 0, 1, 1, 1], [0.02, 0.02, 0.02, 0.09, 0.09, 0.09], False),
        ([1, 1, 1, 0, 0, 0], [0.02, 0.02, 0.02, 0.11, 0.11, 0.11], False),
        ([0, 1, 2, 3, 4, 5], [0.3, 0.3, 0.3, 0.2, 0.1, 0.1], False),
        ([0, 1, 2, 3, 4, 5, 6], [0.2, 0.02, 0.02, 0.02, 0.11, 0.11, 0.11], True),  # above its best
    ],
)
def test_more_refusals(scores, refused, fires):
    assert (more_refusals(evaluations(scores, over_refusal=refused)) is not None) == fires


def test_lower_gold():
    rows = evaluations(range(9), mean=[0, 0, 0, 0.9, 0.9, 0.9, 0.6, 0.6, 0.6])
    assert lower_gold(rows[:6]) is None
    assert lower_gold(rows[:7]) is None
    assert "from 4.00 to 7.00 while gold fell from 0.90 to 0.60" in lower_gold(rows)


def test_checks_ignore_rows_without_their_metrics():
    rows = training([0, 0, 0, 9, 9, 9], [0, 0, 0, 1, 1, 1])
    assert high_kl([*rows, {"eval_objective/scores": 1.0}]) is None
    for check in (high_kl, longer_answers, fewer_ends, more_refusals, lower_gold):
        assert check([]) is None
        assert check([{"loss": 1.0}]) is None


@pytest.mark.parametrize(
    ("episodes", "prompts", "error"),
    [(16, 16, "25%"), (64, 4, "50%"), (1, 1, "100%"), (32, 32, None), (128, 8, None)],
)
def test_small_rollout(episodes, prompts, error):
    """The standard error of a mean of n is 1/√n."""
    warning = small_rollout(episodes, prompts)
    assert (warning is None) == (error is None)
    assert error is None or f"mean score is {error} of the scores' standard deviation" in warning


def test_large_penalties():
    """A penalty of 1 that 41 % of the answers get has a standard deviation of √(.41 · .59) = .49."""
    assert large_penalties(0.49, 0.49) is None
    assert large_penalties(0.0, 0.0) is None
    line = large_penalties(0.49, 0.25)
    assert "vary more (standard deviation 0.49) than the scores (0.25)" in line


def test_cut_answers():
    assert cut_answers(0.5, 32) is None
    assert "68% of the answers are cut at response_length 32" in cut_answers(0.32, 32)


@pytest.mark.slow
def test_rollout_warnings_are_printed_and_logged_once(ppo_roles, tokenizer, tmp_path, capsys):
    """Two rollouts of eight answers of different length, all with the same score."""
    make_ragged(ppo_roles)
    ppo_roles.heads[REWARD].weight.data.zero_()
    options = {"length_penalty": 0.5, "callbacks": [WatchCallback()]}
    trainer = make(ppo_roles, tokenizer, prompts(), tmp_path, **options)
    trainer.train()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["objective/penalties_std"] > rows[0]["objective/scores_std"] == 0
    printed = capsys.readouterr().out
    for name in ("small_rollout", "penalties"):
        (row,) = [row for row in rows if f"warning/{name}" in row]
        assert row["step"] == 1
        assert printed.count(f"! step 1: {row[f'warning/{name}']}") == 1
    assert len(warned(trainer.state.log_history)) >= 2


@pytest.mark.slow
def test_warning_is_printed_and_logged_once(ppo_roles, tokenizer, tmp_path, monkeypatch, capsys):
    """A user's metric gets worse from the fourth evaluation on."""
    refused = iter([0.0, 0.0, 0.0, 0.0, 0.5, 0.5, 0.5, 0.5, 0.5])
    calls = []

    def worse_and_worse(prompts, completions, answer):
        calls.append((prompts[0][0]["role"], completions[0][0]["role"], answer))
        return {"gold/over_refusal": next(refused), "gold/nothing": None}

    trainer = make(
        ppo_roles,
        tokenizer,
        prompts(),
        tmp_path,
        held_out=prompts().select(range(4)).add_column("answer", ["x"] * 4),
        eval_metrics=worse_and_worse,
        callbacks=[WatchCallback()],
        eval_strategy="steps",
        eval_steps=1,
    )
    measure, scores = online.evaluation_metrics, iter(range(9))

    def rising(*args, **kwargs):
        return measure(*args, **kwargs) | {"objective/scores": float(next(scores))}

    monkeypatch.setattr(online, "evaluation_metrics", rising)
    trainer.train()
    assert calls == [("user", "assistant", ["x"] * 4)] * 9
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    (row,) = [row for row in rows if "warning/over_refusal" in row]
    assert row["step"] == 4
    assert "from 0% to 17%" in row["warning/over_refusal"]
    assert "eval_gold/nothing" not in row
    assert row["warning/over_refusal"] in warned(trainer.state.log_history)
    assert capsys.readouterr().out.count("! step 4: over-optimisation: the held-out score") == 1


def test_gold_metrics_by_hand():
    questions = ["What is 1 plus 2?", "What is 2 plus 2?", "Hello."]
    chats = [[{"role": "user", "content": text}] for text in questions]
    texts = ["1 plus 2 is 3.", "I do not know that.", "Hello. How can I help you?"]
    answers = [[{"role": "assistant", "content": text}] for text in texts]
    metrics = gold_metrics(chats, answers)
    assert metrics["gold/correct"] == 0.5
    assert metrics["gold/over_refusal"] == pytest.approx(1 / 3, abs=1e-6)
    assert metrics["gold/hallucinated"] is None
    assert gold_monitor(chats) is gold_metrics
    assert gold_monitor([*chats, "Why is the sky blue?"]) is None


def test_recorded_run_without_kl_penalty_warns():
    """The run in docs/ppo.md has the warnings that its rows cause, and over-optimises."""
    lines = (ROOT / "docs" / "results" / "beta0.jsonl").read_text(encoding="utf-8").splitlines()
    logged = [json.loads(line) for line in lines]
    rows, computed = [], {}
    for row in logged:
        rows.append({k: v for k, v in row.items() if k not in CHECKS})
        for key, check in CHECKS.items():
            line = None if key in computed else check(rows)
            if line is not None:
                computed[key] = (row["step"], line)
    recorded = {key: (row["step"], row[key]) for row in logged for key in CHECKS if key in row}
    assert computed == recorded
    assert {"warning/kl", "warning/gold"} <= recorded.keys()
    assert max(step for step, _ in recorded.values()) <= 60  # within 60 updates

    def curve(key):
        return [row[key] for row in logged if key in row]

    for rising in ("objective/scores", "objective/kl", "eval_objective/scores"):
        assert min(curve(rising)[-4:]) > max(curve(rising)[:4])
    refused = curve("eval_gold/over_refusal")
    assert max(refused) > 2 * refused[0]
    assert curve("eval_gold/mean")[-1] < curve("eval_gold/mean")[0]
