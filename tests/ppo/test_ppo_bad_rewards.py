"""A reward that is not finite stops the run and shows its sample; earlier checkpoints are intact."""

import ast
import math

import pytest
import torch

from tests.ppo.separate_models import keep_rollouts
from tests.ppo.setup import PROMPTS, make, prompts
from toolkit.errors import RewardError

pytestmark = pytest.mark.slow

ROW = 5  # the first row with a bad reward


def parts_of(error):
    """The error's message before the sample, and the sample."""
    before, _, shown = str(error.value).partition(" for the first, ")
    return before, ast.literal_eval(shown)


def is_shown(shown, tokenizer, rollout):
    """Whether the text is the whole prompt and completion of that row."""
    prompt, completion = rollout.prompts[ROW], rollout.completions[ROW]
    assert len({str(completion) for completion in rollout.completions}) == 8
    assert any(text in shown for text in PROMPTS)
    return shown == tokenizer.decode(prompt) + tokenizer.decode(completion)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_infinite_model_score_is_shown_with_its_sample(
    ppo_roles, tokenizer, tmp_path, monkeypatch, bad
):
    rollouts = keep_rollouts(monkeypatch, scores=[(ROW, bad), (ROW + 2, math.inf)])
    with pytest.raises(RewardError) as error:
        make(ppo_roles, tokenizer, prompts(), tmp_path).train()
    before, shown = parts_of(error)
    assert before == f"the reward of 2 of 8 completions is not finite: {bad}"
    assert is_shown(shown, tokenizer, rollouts[0])


def test_infinite_reward_sum_is_shown_with_its_sample(ppo_roles, tokenizer, tmp_path, monkeypatch):
    """Ten times 3·10³⁸ is too large for float32."""
    rollouts = keep_rollouts(monkeypatch)

    def huge(completions, **_):
        return [3e38 * (row == ROW) for row in range(len(completions))]

    options = {"reward_funcs": huge, "reward_weights": [10.0]}
    with pytest.raises(RewardError) as error:
        make(ppo_roles, tokenizer, prompts(), tmp_path, **options).train()
    before, shown = parts_of(error)
    assert before == "the reward of 1 of 8 completions is not finite: inf"
    assert is_shown(shown, tokenizer, rollouts[0])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_infinite_function_reward_is_shown_with_its_sample(
    ppo_roles, tokenizer, tmp_path, monkeypatch, bad
):
    rollouts, function_prompts = keep_rollouts(monkeypatch), []

    def spoils(prompts, completions, **_):
        function_prompts.extend(prompts)
        return [bad if row == ROW else 0.0 for row in range(len(completions))]

    with pytest.raises(RewardError) as error:
        make(ppo_roles, tokenizer, prompts(), tmp_path, reward_funcs=spoils).train()
    text = tokenizer.decode(rollouts[0].completions[ROW], skip_special_tokens=True)
    messages = [{"role": "assistant", "content": text}]
    assert str(error.value) == (
        f"reward function spoils: expected a finite number, got {bad} for prompt "
        f"{function_prompts[ROW]!r}, completion {messages!r}"
    )
    assert function_prompts[ROW][0]["content"] in tokenizer.decode(rollouts[0].prompts[ROW])


def test_run_resumes_after_function_returned_too_few_rewards(make_ppo_roles, tokenizer, tmp_path):
    """The error is in the second rollout. A run that resumes before it ends like one without the error."""
    calls = []

    def length(completion_ids, **_):
        return list(map(len, completion_ids))

    def forgets_one(completion_ids, **_):
        calls.append(1)
        return length(completion_ids)[len(calls) - 1 :]

    def run(folder, function, resume=None):
        options = {"save_strategy": "steps", "save_steps": 2}
        roles = make_ppo_roles()
        trainer = make(roles, tokenizer, prompts(), folder, reward_funcs=function, **options)
        trainer.train(resume_from_checkpoint=resume)
        return dict(roles.model.named_parameters())

    message = "reward function forgets_one: expected a list of 8 rewards, one per completion, got 7"
    with pytest.raises(RewardError, match=message):
        run(tmp_path / "stopped", forgets_one)
    assert len(calls) == 2
    last = {folder.name for folder in (tmp_path / "stopped").glob("checkpoint-*")}
    assert last == {"checkpoint-2", "checkpoint-4"}
    whole = run(tmp_path / "whole", length)
    length.__name__ = "forgets_one"  # the corrected function, under the same name
    again = run(tmp_path / "again", length, str(tmp_path / "stopped" / "checkpoint-4"))
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())
