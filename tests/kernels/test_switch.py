"""One switch selects the fast or the plain versions, and PPO gives the same numbers with both."""

import json
import os
import subprocess
import sys

import pytest
import torch
from peft.tuners.lora import Linear as LoraLinear
from transformers import TrainerCallback

from tests.ppo.setup import make, prompts
from toolkit.kernels import chunked_logprobs, kernels_enabled, use_kernels
from toolkit.kernels.fused_lora import FusedLoraLinear
from toolkit.models import passes


@pytest.mark.parametrize(("value", "expected"), [("0", "False"), ("1", "True"), (None, "True")])
def test_environment_variable_turns_kernels_off(value, expected):
    environment = {k: v for k, v in os.environ.items() if k != "TOOLKIT_KERNELS"}
    if value is not None:
        environment["TOOLKIT_KERNELS"] = value
    code = "from toolkit.kernels import kernels_enabled; print(kernels_enabled())"
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == expected


def test_switch_is_restored_after_an_error():
    before = kernels_enabled()

    def fail():
        with use_kernels(not before):
            assert kernels_enabled() is not before
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fail()
    assert kernels_enabled() is before


class Gradients(TrainerCallback):
    """Keeps the gradients of every optimizer step."""

    def __init__(self, roles):
        self.roles, self.steps = roles, []

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        named = self.roles.model.named_parameters()
        self.steps.append({n: p.grad.clone() for n, p in named if p.grad is not None})


def test_ppo_gives_the_same_numbers_with_kernels_off(
    make_ppo_roles, tokenizer, tmp_path, monkeypatch
):
    """A rollout and the first update: what is logged, and the gradients of policy and value."""

    def train(enabled):
        with use_kernels(enabled):
            roles = make_ppo_roles()
            kinds = {type(m) for m in roles.model.modules() if isinstance(m, LoraLinear)}
            assert kinds == {FusedLoraLinear if enabled else LoraLinear}
            gradients, folder = Gradients(roles), tmp_path / str(enabled)
            trainer = make(
                roles,
                tokenizer,
                prompts(),
                folder,
                callbacks=[gradients],
                max_steps=1,
                ent_coef=0.01,
            )
            torch.manual_seed(0)
            trainer.train()
        row = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
        return {k: v for k, v in row.items() if "time" not in k and "second" not in k}, gradients

    metrics, gradients = train(True)

    def fail(*_, **__):
        raise AssertionError("a fast version was used although kernels are off")

    monkeypatch.setattr(passes, "pack", fail)
    monkeypatch.setattr(chunked_logprobs._ChunkedLogprobs, "apply", fail)
    plain_metrics, plain_gradients = train(False)
    assert metrics.keys() == plain_metrics.keys()
    for name, value in plain_metrics.items():
        assert metrics[name] == pytest.approx(value, abs=1e-4, rel=1e-4), name
    for step, expected_step in zip(gradients.steps, plain_gradients.steps, strict=True):
        assert step.keys() == expected_step.keys() != set()
        for name, expected in expected_step.items():
            torch.testing.assert_close(step[name], expected, atol=1e-5, rtol=1e-4)
