"""How much of the sampling loop is spent on rows that have ended."""

import torch

from toolkit.models.roles import POLICY
from toolkit.sampling.decoding import decode

ROWS, STEPS = 64, 24
MOST_ENDED = 0.125  # of the rows that a step computes, fewer than this share have ended
STOP = list(range(0, 512, 9))  # so many that rows end at every step


def sampled(roles, monkeypatch):
    """The rows that each step computed, and those of them that had not ended."""
    trunk, widths = roles.base.base_model, []
    forward = trunk.forward

    def seen(*args, **kwargs):
        widths.append(len(kwargs["input_ids"]))
        return forward(*args, **kwargs)

    monkeypatch.setattr(trunk, "forward", seen)
    prompts = [[1, 20 + i % 8, 30] for i in range(ROWS)]
    torch.manual_seed(0)
    with roles.using(POLICY) as model:
        found = decode(
            model, prompts, max_new_tokens=STEPS, temperature=1.0, stop=STOP, pad_id=0
        ).completions
    ends = [len(row) if row[-1] in STOP else STEPS + 1 for row in found]
    widths = widths[1:]  # the first reads the prompts
    return widths, [sum(end > step for end in ends) for step in range(1, len(widths) + 1)]


def test_less_than_an_eighth_of_the_rows_of_a_step_have_ended(ppo_roles, monkeypatch):
    computed, going = sampled(ppo_roles, monkeypatch)
    assert len(computed) > STEPS // 2
    assert going[-1] < ROWS / 2, "rows end, or nothing is shown"
    for step, (rows, left) in enumerate(zip(computed, going, strict=True)):
        assert 0 <= rows - left < MOST_ENDED * rows, f"step {step}: {left} of {rows} are going on"


def test_rows_that_end_do_not_each_cost_a_copy_of_the_cache(ppo_roles, monkeypatch):
    """A wide batch waits until an eighth has ended, though rows end at every step."""
    computed, going = sampled(ppo_roles, monkeypatch)
    assert any(rows > left for rows, left in zip(computed, going, strict=True))
