"""A reward that cannot be trained on ends the run with its sample, and earlier checkpoints are whole."""

import ast
import math

import pytest
import torch

from tests.ppo.separate_models import keep_rollouts
from tests.ppo.setup import PROMPTS, make, prompts
from toolkit.errors import RewardError

ROW = 5  # the first that is at fault


def told(error):
    """An error's message up to the sample, and the sample."""
    before, _, shown = str(error.value).partition(" for the first, ")
    return before, ast.literal_eval(shown)


def is_shown(shown, tokenizer, found):
    """Whether it is the row at fault: its whole prompt, and then its completion."""
    prompt, said = found.prompts[ROW], found.completions[ROW]
    assert len({str(completion) for completion in found.completions}) == 8
    assert any(text in shown for text in PROMPTS)
    return shown == tokenizer.decode(prompt) + tokenizer.decode(said)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_reward_models_bad_score_is_shown_with_the_first_sample_that_has_one(
    ppo_roles, tokenizer, tmp_path, monkeypatch, bad
):
    kept = keep_rollouts(monkeypatch, scores=[(ROW, bad), (ROW + 2, math.inf)])
    with pytest.raises(RewardError) as error:
        make(ppo_roles, tokenizer, prompts(), tmp_path).train()
    before, shown = told(error)
    assert before == f"the reward of 2 of 8 completions is not finite: {bad}"
    assert is_shown(shown, tokenizer, kept[0])


def test_finite_rewards_whose_sum_is_not_are_shown_too(ppo_roles, tokenizer, tmp_path, monkeypatch):
    """Ten times 3·10³⁸ is too large for float32."""
    kept = keep_rollouts(monkeypatch)

    def huge(completions, **_):
        return [3e38 * (row == ROW) for row in range(len(completions))]

    options = {"reward_funcs": huge, "reward_weights": [10.0]}
    with pytest.raises(RewardError) as error:
        make(ppo_roles, tokenizer, prompts(), tmp_path, **options).train()
    before, shown = told(error)
    assert before == "the reward of 1 of 8 completions is not finite: inf"
    assert is_shown(shown, tokenizer, kept[0])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_functions_bad_reward_is_shown_with_its_own_sample(
    ppo_roles, tokenizer, tmp_path, monkeypatch, bad
):
    kept, asked = keep_rollouts(monkeypatch), []

    def spoils(prompts, completions, **_):
        asked.extend(prompts)
        return [bad if row == ROW else 0.0 for row in range(len(completions))]

    with pytest.raises(RewardError) as error:
        make(ppo_roles, tokenizer, prompts(), tmp_path, reward_funcs=spoils).train()
    text = tokenizer.decode(kept[0].completions[ROW], skip_special_tokens=True)
    said = [{"role": "assistant", "content": text}]
    assert str(error.value) == (
        f"reward function spoils: gave {bad} to prompt {asked[ROW]!r}, completion {said!r}"
    )
    assert asked[ROW][0]["content"] in tokenizer.decode(kept[0].prompts[ROW])


def test_a_function_of_too_few_rewards_ends_the_run_and_its_checkpoint_goes_on(
    make_ppo_roles, tokenizer, tmp_path
):
    """In the second rollout; from the checkpoint before it a run ends where one without a fault does."""
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

    wanted = "reward function forgets_one: expected a list of 8 rewards, one per completion, got 7"
    with pytest.raises(RewardError, match=wanted):
        run(tmp_path / "stopped", forgets_one)
    assert len(calls) == 2
    last = {folder.name for folder in (tmp_path / "stopped").glob("checkpoint-*")}
    assert last == {"checkpoint-2", "checkpoint-4"}
    whole = run(tmp_path / "whole", length)
    length.__name__ = "forgets_one"  # mended, and called as it was
    again = run(tmp_path / "again", length, str(tmp_path / "stopped" / "checkpoint-4"))
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())
