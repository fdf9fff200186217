"""Evaluation during training: metrics and samples equal those of each row computed alone."""

import json

import pytest
import torch
from datasets import Dataset

from tests.ppo.separate_models import (
    keep_rollouts,
    kls_of,
    lengths_of,
    logprobs_of,
    make_ragged,
    scores_of,
    unended,
)
from tests.ppo.setup import make, prompts
from toolkit.data.encoding import encode_prompt
from toolkit.models.roles import POLICY, REWARD

pytestmark = pytest.mark.slow

TEMPERATURE = 0.8
BETA = 0.7
NAMES = ("What is", "Say", "Tell me of", "Where is the bird called")
HELD_OUT = [f"{name} {number}?" for number in (1, 2, 3) for name in NAMES]


@pytest.fixture
def trainer(ppo_roles, tokenizer, tmp_path):
    """With a KL, penalties, a clip that some scores reach, and a β that differs from `kl_coef`."""
    make_ragged(ppo_roles)
    trainer = make(
        ppo_roles,
        tokenizer,
        prompts(),
        tmp_path,
        held_out=Dataset.from_dict(
            {"prompt": [[{"role": "user", "content": text}] for text in HELD_OUT]}
        ),
        temperature=TEMPERATURE,
        kl_coef=0.3,
        reward_clip=0.5,
        length_penalty=0.25,
        missing_eos_penalty=1.5,
        local_rollout_forward_batch_size=5,
    )
    trainer.kl_control.coef = BETA
    return trainer


def samples(folder):
    return [json.loads(row) for row in (folder / "samples.jsonl").read_text().splitlines()]


def test_evaluation_metrics_are_means_over_held_out_rows(trainer, monkeypatch):
    rollouts = keep_rollouts(monkeypatch)
    metrics = trainer.evaluate()
    (rollout,) = rollouts
    scores, kls = (
        scores_of(trainer.roles, REWARD, rollout),
        kls_of(trainer.roles, rollout, TEMPERATURE),
    )
    lengths, unfinished = lengths_of(rollout), unended(rollout)
    assert (scores.abs() > 0.5).any() and (scores.abs() < 0.5).any()
    assert 0 < unfinished.mean() < 1 and lengths.min() < lengths.max() and kls.mean().abs() > 0.1
    left = scores.clamp(-0.5, 0.5) - 0.25 * lengths - 1.5 * unfinished
    expected = {
        "scores": scores.mean(),
        "penalised_scores": left.mean(),
        "kl": kls.mean(),
        "rlhf_reward": (left - BETA * kls).mean(),
        "length": lengths.mean(),
        "ended": 1 - unfinished.mean(),
    }
    expected = {f"eval_objective/{name}": value.item() for name, value in expected.items()}
    assert metrics == pytest.approx(expected, abs=1e-4)
    assert len({round(value, 2) for value in expected.values()}) == 6


def test_each_sample_has_its_own_completion_and_score(trainer, tokenizer, monkeypatch, tmp_path):
    rollouts = keep_rollouts(monkeypatch)
    trainer.evaluate()
    (rollout,), rows = rollouts, samples(tmp_path)
    scores = scores_of(trainer.roles, REWARD, rollout).tolist()
    assert len(rows) == len(HELD_OUT) == len({str(row["completion"]) for row in rows})
    for number, (row, text) in enumerate(zip(rows, HELD_OUT, strict=True)):
        prompt, completion = [{"role": "user", "content": text}], rollout.completions[number]
        assert row["step"] == 0
        assert row["prompt"] == prompt
        assert rollout.prompts[number] == encode_prompt(tokenizer, prompt)
        answer = tokenizer.decode(completion, skip_special_tokens=True)
        assert row["completion"] == [{"role": "assistant", "content": answer}]
        assert row["score"] == pytest.approx(scores[number], abs=2e-4)
        # the completion was sampled for this prompt
        expected = logprobs_of(
            trainer.roles, POLICY, rollout.prompts[number], completion, TEMPERATURE
        )
        torch.testing.assert_close(
            rollout.logprobs[number, : len(completion)], expected, atol=1e-4, rtol=1e-4
        )


def test_evaluation_repeats_and_keeps_random_state(trainer, tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = trainer.evaluate()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert trainer.evaluate() == first
    rows = samples(tmp_path)
    assert rows[: len(HELD_OUT)] == rows[len(HELD_OUT) :]
