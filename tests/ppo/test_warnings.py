"""Warnings in PPO's log: on curves by hand, and through a trainer into metrics.jsonl."""

import json

import pytest

from tests.conftest import ROOT
from tests.ppo.setup import make, prompts
from toolkit.evaluation.evaluate import gold_metrics, gold_monitor
from toolkit.ppo.warnings import (
    CHECKS,
    WatchCallback,
    lengthening,
    refusing,
    runaway,
    unending,
    warned,
    worsening,
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
        ([0, 1, 2, 3, 3, 4], [0, 0, 0, 1, 1, 1], 0.5, False),  # a sure reference: 3.3 below 3.5
        ([0, 1, 2, 3, 4, 4], [0, 0, 0, 1, 1, 1], 0.5, True),
        ([9, 9, 9], [0, 1, 2], 6.0, False),  # one mean alone rises over nothing
    ],
)
def test_runaway_kl(kls, scores, entropy, fires):
    assert (runaway(training(kls, scores, entropy)) is not None) == fires


def test_runaway_says_what_it_saw():
    line = runaway(training([0, 0, 0, 4, 5, 6], [-1, -1, -1, 1, 1, 1]))
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
        ([0, 1, 2], [40, 80, 160], False),  # one mean alone
    ],
)
def test_answers_grow_with_the_score(scores, length, fires):
    assert (lengthening(rollouts(scores, length=length)) is not None) == fires


@pytest.mark.parametrize(("ended", "fires"), [(0.7, True), (0.8, False)])
def test_answers_no_longer_end_while_the_score_rises(ended, fires):
    rows = rollouts([0, 0, 0, 1, 1, 1], ended=[0.95] * 3 + [ended] * 3)
    found = unending(rows)
    assert (found is not None) == fires
    assert found is None or "from 95% to 70%" in found


@pytest.mark.parametrize(
    ("scores", "refused", "fires"),
    [
        ([0, 0, 0, 1, 1, 1], [0.02, 0.02, 0.02, 0.11, 0.11, 0.11], True),
        ([0, 0, 0, 1, 1, 1], [0.02, 0.02, 0.02, 0.09, 0.09, 0.09], False),
        ([1, 1, 1, 0, 0, 0], [0.02, 0.02, 0.02, 0.11, 0.11, 0.11], False),
        ([0, 1, 2, 3, 4, 5], [0.3, 0.3, 0.3, 0.2, 0.1, 0.1], False),
        ([0, 1, 2, 3, 4, 5, 6], [0.2, 0.02, 0.02, 0.02, 0.11, 0.11, 0.11], True),  # over its best
    ],
)
def test_refusals_rise_with_the_score(scores, refused, fires):
    assert (refusing(evaluations(scores, over_refusal=refused)) is not None) == fires


def test_gold_falls_below_its_best_while_the_score_rises():
    rows = evaluations(range(9), mean=[0, 0, 0, 0.9, 0.9, 0.9, 0.6, 0.6, 0.6])
    assert worsening(rows[:6]) is None
    assert worsening(rows[:7]) is None
    assert "from 4.00 to 7.00 while gold fell from 0.90 to 0.60" in worsening(rows)


def test_an_evaluation_is_not_held_against_a_rollout_and_nothing_against_nothing():
    rows = training([0, 0, 0, 9, 9, 9], [0, 0, 0, 1, 1, 1])
    assert runaway([*rows, {"eval_objective/scores": 1.0}]) is None
    for check in (runaway, lengthening, unending, refusing, worsening):
        assert check([]) is None
        assert check([{"loss": 1.0}]) is None


def test_a_warning_is_said_once_and_is_in_the_log(ppo_roles, tokenizer, tmp_path, capsys):
    """A user's own metric that gets worse; four evaluations after two whose mean was better."""
    refused = iter([0.0, 0.0, 0.0, 0.5, 0.5, 0.5, 0.5, 0.5])
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
    look, score = trainer.maker.look, iter(range(8))

    def rising(rows):
        notes, samples = look(rows)
        return notes | {"objective/scores": float(next(score))}, samples

    trainer.maker.look = rising
    trainer.train()
    assert calls == [("user", "assistant", ["x"] * 4)] * 8
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    (found,) = [row for row in rows if "warning/over_refusal" in row]
    assert found["step"] == 4
    assert "from 0% to 17%" in found["warning/over_refusal"]
    assert "eval_gold/nothing" not in found
    assert warned(trainer.state.log_history) == [found["warning/over_refusal"]]
    assert capsys.readouterr().out.count("! step 4: over-optimisation: the held-out score") == 1


def test_gold_of_answers_by_hand():
    questions = ["What is 1 plus 2?", "What is 2 plus 2?", "Hello."]
    asked = [[{"role": "user", "content": text}] for text in questions]
    said = ["1 plus 2 is 3.", "I do not know that.", "Hello. How can I help you?"]
    answers = [[{"role": "assistant", "content": text}] for text in said]
    found = gold_metrics(asked, answers)
    assert found["gold/correct"] == 0.5
    assert found["gold/over_refusal"] == pytest.approx(1 / 3, abs=1e-6)
    assert found["gold/hallucinated"] is None
    assert gold_monitor(asked) is gold_metrics
    assert gold_monitor([*asked, "Why is the sky blue?"]) is None


def test_the_log_of_a_run_without_a_kl_penalty_shows_that_it_over_optimises():
    """The run of docs/ppo.md: its warnings are those that its own rows give rise to, and they are true."""
    lines = (ROOT / "docs" / "results" / "beta0.jsonl").read_text(encoding="utf-8").splitlines()
    logged = [json.loads(line) for line in lines]
    rows, said = [], {}
    for row in logged:
        rows.append({k: v for k, v in row.items() if k not in CHECKS})
        for key, check in CHECKS.items():
            line = None if key in said else check(rows)
            if line is not None:
                said[key] = (row["step"], line)
    found = {key: (row["step"], row[key]) for row in logged for key in CHECKS if key in row}
    assert said == found
    assert {"warning/kl", "warning/gold"} <= found.keys()
    assert max(step for step, _ in found.values()) <= 60  # within a few dozen updates

    def curve(key):
        return [row[key] for row in logged if key in row]

    for rising in ("objective/scores", "objective/kl", "eval_objective/scores"):
        assert min(curve(rising)[-4:]) > max(curve(rising)[:4])
    refused = curve("eval_gold/over_refusal")
    assert max(refused) > 2 * refused[0]
    assert curve("eval_gold/mean")[-1] < curve("eval_gold/mean")[0]
