"""The policy's average: computed by hand, saved, resumed, and in the finished run."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from tests.ppo.setup import make, prompts
from toolkit.errors import CheckpointError
from toolkit.models.roles import POLICY, REFERENCE

pytestmark = pytest.mark.slow

ADAPTER = "adapter_model.safetensors"


class Weights(TrainerCallback):
    """The policy's weights after every step, by parameter."""

    def __init__(self, roles):
        self.roles, self.history = roles, []

    def on_step_end(self, args, state, control, **kwargs):
        named = self.roles.model.named_parameters()
        self.history.append({n: p.detach().clone() for n, p in named if f".{POLICY}." in n})


def as_peft(weights):
    return {name.replace(f".{POLICY}.", "."): tensor for name, tensor in weights.items()}


def same(weights, expected):
    assert weights.keys() == expected.keys()
    return all(torch.equal(weights[name], expected[name]) for name in weights)


def test_finished_run_holds_average_and_last_policy(ppo_roles, tokenizer, tmp_path):
    """Three steps at d = ½: weights ¼, ½, 1 over their sum 7/4."""
    trainer = make(ppo_roles, tokenizer, prompts(), tmp_path, ema_decay=0.5, max_steps=3)
    steps = Weights(ppo_roles)
    trainer.add_callback(steps)
    trainer.train()
    trainer.save_model()
    first, second, third = map(as_peft, steps.history)
    assert same(load_file(tmp_path / "last" / ADAPTER), third)
    average = load_file(tmp_path / ADAPTER)
    assert average.keys() == third.keys()
    for name, tensor in average.items():
        expected = (first[name] + 2 * second[name] + 4 * third[name]) / 7
        torch.testing.assert_close(tensor, expected, atol=1e-7, rtol=1e-5)
    assert not torch.equal(average[name], third[name])
    assert same(as_peft(steps.history[-1]), third)


def test_best_checkpoint_gives_its_average_and_policy(ppo_roles, tokenizer, tmp_path):
    """`last/` then holds the policy of that checkpoint, not the one at the end of training."""
    trainer = make(
        ppo_roles,
        tokenizer,
        prompts(),
        tmp_path,
        ema_decay=0.5,
        held_out=prompts().select(range(2)),
        eval_metrics=lambda **_: {"falls": -trainer.state.global_step},
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_falls",
        greater_is_better=True,
    )
    steps = Weights(ppo_roles)
    trainer.add_callback(steps)
    trainer.train()
    trainer.save_model()
    best = tmp_path / "checkpoint-2"
    assert trainer.state.best_model_checkpoint == str(best)
    assert len(steps.history) == 8
    first, second = map(as_peft, steps.history[:2])
    assert same(load_file(tmp_path / "last" / ADAPTER), second)
    average = load_file(tmp_path / ADAPTER)
    for name, tensor in average.items():
        expected = (first[name] + 2 * second[name]) / 3
        torch.testing.assert_close(tensor, expected, atol=1e-7, rtol=1e-5)
    for file in (ADAPTER, "head.safetensors"):
        assert same(load_file(tmp_path / "value" / file), load_file(best / "value" / file))


def test_average_changes_no_training_and_resumes_exactly(make_ppo_roles, tokenizer, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 3}
    plain = make_ppo_roles()
    make(plain, tokenizer, prompts(), tmp_path / "plain", **options).train()
    whole = make_ppo_roles()
    trainer = make(whole, tokenizer, prompts(), tmp_path / "whole", ema_decay=0.9, **options)
    trainer.train()
    trainer.save_model()
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(parameter, dict(plain.model.named_parameters())[name]), name
    checkpoint = tmp_path / "whole" / "checkpoint-3"
    raw = load_file(tmp_path / "plain" / "checkpoint-3" / ADAPTER)
    assert same(load_file(checkpoint / ADAPTER), raw)
    assert {t.dtype for t in load_file(checkpoint / "ema.safetensors").values()} == {torch.float32}
    trainer = make(
        make_ppo_roles(), tokenizer, prompts(), tmp_path / "again", ema_decay=0.9, **options
    )
    trainer.train(resume_from_checkpoint=str(checkpoint))
    trainer.save_model()
    for file in (ADAPTER, f"last/{ADAPTER}"):
        assert same(load_file(tmp_path / "again" / file), load_file(tmp_path / "whole" / file))


def test_checkpoint_without_average_is_rejected(make_ppo_roles, tokenizer, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    make(make_ppo_roles(), tokenizer, prompts(), tmp_path / "plain", **options).train()
    trainer = make(
        make_ppo_roles(), tokenizer, prompts(), tmp_path / "run", ema_decay=0.9, **options
    )
    with pytest.raises(
        CheckpointError, match=r"written with `ema_decay` None, but this run has 0\.9"
    ):
        trainer.train(resume_from_checkpoint=str(tmp_path / "plain" / "checkpoint-2"))


def test_evaluation_uses_the_average(make_ppo_roles, tokenizer, tmp_path):
    """The average equals the reference, so its KL is 0; the policy itself does not change."""
    roles = make_ppo_roles()
    trainer = make(
        roles, tokenizer, prompts(), tmp_path, ema_decay=0.9, held_out=prompts().select(range(4))
    )
    named = dict(roles.model.named_parameters())
    own = {n: p for n, p in named.items() if f".{POLICY}." in n}
    for name, parameter in own.items():
        parameter.data.add_(0.05)
        assert torch.equal(trainer.ema.average[name], named[name.replace(POLICY, REFERENCE)])
    before = {n: p.detach().clone() for n, p in own.items()}
    assert trainer.evaluate()["eval_objective/kl"] == pytest.approx(0.0, abs=1e-4)
    assert same(own, before)
    trainer.ema = None
    assert abs(trainer.evaluate()["eval_objective/kl"]) > 0.01


def test_run_listing_ignores_last_and_value_folders(tmp_path):
    from toolkit.runs.listing import list_runs
    from toolkit.runs.run import Run

    with Run.start(tmp_path / "ppo", recipe="ppo") as run:
        for name in ("last", "value"):
            (run.path / name).mkdir()
            (run.path / name / "adapter_config.json").write_text(json.dumps({}))
        run.finish()
    runs, broken = list_runs(tmp_path)
    assert ([r.name for r in runs], broken) == (["ppo"], [])
    Run.start(tmp_path / "ppo", recipe="ppo").begin()
    assert not (tmp_path / "ppo" / "last").exists()
