"""Checkpoints are whole or not there; a signal ends a run without loss."""

import errno
import os
import signal
import threading
from contextlib import nullcontext

import pytest
import torch
from safetensors import SafetensorError
from transformers import TrainerCallback

from tests.ppo.setup import make, prompts
from toolkit.errors import CheckpointError, ConfigError, DivergedError, Interrupted
from toolkit.models import adapters
from toolkit.runs.resuming import CONTENTS, last_checkpoint
from toolkit.runs.run import Run
from toolkit.trainers.callbacks import interruptible
from toolkit.trainers.checkpoints import INCOMING

pytestmark = pytest.mark.slow

SAVING = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}


class AtStep(TrainerCallback):
    """Does something when a step begins."""

    def __init__(self, step, act):
        self.step, self.act = step, act

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.act()


def files(folder):
    return sorted(f.name for f in folder.iterdir())


def test_a_checkpoint_has_its_name_only_when_it_is_whole(
    ppo_roles, tokenizer, tmp_path, monkeypatch
):
    """While anything is being written, no folder called checkpoint-… lacks a file."""
    seen = []
    save = torch.save

    def watched(*args, **kwargs):
        seen.append([f.name for f in (tmp_path / "run").glob("checkpoint-*")])
        return save(*args, **kwargs)

    monkeypatch.setattr(torch, "save", watched)
    make(ppo_roles, tokenizer, prompts(), tmp_path / "run", **SAVING).train()
    assert seen[0] == []
    assert set(map(len, seen)) == {0, 1}
    assert not (tmp_path / "run" / INCOMING).exists()
    names = [f.name for f in (tmp_path / "run").glob("checkpoint-*")]
    assert names == ["checkpoint-8"]  # the others were removed after it was there
    expected = {
        "base.json",
        "experience.safetensors",
        "optimizer.pt",
        "trainer_state.json",
        CONTENTS,
        "value",
    }
    assert expected <= set(files(tmp_path / "run" / "checkpoint-8"))


def test_a_full_disk_is_a_clear_error_and_the_last_checkpoint_stays(
    ppo_roles, tokenizer, tmp_path, monkeypatch
):
    run, save, room = tmp_path / "run", torch.save, [6]

    def full(*args, **kwargs):
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return save(*args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match=r"checkpoint-\d.*No space left.*resume_from"):
        make(ppo_roles, tokenizer, prompts(), run, **SAVING).train()
    assert last_checkpoint(run, True) is not None
    assert not (run / INCOMING).exists()


def test_a_disk_that_is_full_at_the_end_is_a_clear_error_and_the_run_can_be_finished(
    make_ppo_roles, tokenizer, tmp_path, monkeypatch
):
    trainer = make(make_ppo_roles(), tokenizer, prompts(), tmp_path, **SAVING)
    trainer.train()

    def full(*args, **kwargs):
        raise SafetensorError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(adapters, "save_file", full)
        with pytest.raises(
            CheckpointError, match=r"cannot be written .*No space left.*resume_from"
        ):
            trainer.save_model()
    again = make(make_ppo_roles(), tokenizer, prompts(), tmp_path, **SAVING)
    again.train(resume_from_checkpoint=True)
    again.save_model()
    saved = (tmp_path / "adapter_model.safetensors").read_bytes()
    assert saved == (tmp_path / "checkpoint-8" / "adapter_model.safetensors").read_bytes()


def test_a_log_whose_package_is_missing_is_a_clear_error(ppo_roles, tokenizer, tmp_path):
    with pytest.raises(ConfigError, match=r"PPOTrainer rejects its options: .* to be installed"):
        make(ppo_roles, tokenizer, prompts(), tmp_path, report_to="swanlab")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_run_resumes_to_the_same_policy(
    make_ppo_roles, tokenizer, tmp_path, number
):
    whole = make_ppo_roles()
    make(whole, tokenizer, prompts(), tmp_path / "whole").train()
    stopped = make_ppo_roles()
    trainer = make(stopped, tokenizer, prompts(), tmp_path / "run")
    trainer.add_callback(AtStep(3, lambda: os.kill(os.getpid(), number)))
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="at step 4"), interruptible(trainer):
        trainer.train()
    assert signal.getsignal(number) is before
    resumed = make_ppo_roles()
    trainer = make(resumed, tokenizer, prompts(), tmp_path / "run")
    trainer.train(resume_from_checkpoint=last_checkpoint(tmp_path / "run", True))
    expected = dict(whole.model.named_parameters())
    for name, parameter in resumed.model.named_parameters():
        assert torch.equal(parameter, expected[name]), name


class InEvaluation(TrainerCallback):
    """Sends a signal from the evaluation of a step."""

    def __init__(self, step):
        self.step = step

    def on_evaluate(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_does_not_cost_the_newest_checkpoint_where_only_the_best_is_kept(
    ppo_roles, tokenizer, tmp_path
):
    """The library removes all but the best at the end of a run whose limit is one."""
    options = SAVING | {"eval_strategy": "steps", "eval_steps": 2, "greater_is_better": False}
    trainer = make(
        ppo_roles,
        tokenizer,
        prompts(),
        tmp_path,
        held_out=prompts().select(range(2)),
        metric_for_best_model="step_number",
        eval_metrics=lambda **_: {"step_number": float(trainer.state.global_step)},
        **options,
    )
    trainer.add_callback(AtStep(5, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    with pytest.raises(Interrupted, match="checkpoint-6 is complete"), interruptible(trainer):
        trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-2")
    assert last_checkpoint(tmp_path, True).endswith("checkpoint-6")
    assert trainer.args.save_total_limit == 1


def test_a_signal_keeps_a_checkpoint_where_only_better_ones_are_saved(
    ppo_roles, tokenizer, tmp_path
):
    """At step 6 there is an evaluation, and it is not the best."""
    trainer = make(
        ppo_roles,
        tokenizer,
        prompts(),
        tmp_path,
        held_out=prompts().select(range(2)),
        metric_for_best_model="step_number",
        eval_metrics=lambda **_: {"step_number": float(trainer.state.global_step)},
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="best",
        greater_is_better=False,
    )
    trainer.add_callback(AtStep(5, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    with pytest.raises(Interrupted, match="checkpoint-6 is complete"), interruptible(trainer):
        trainer.train()
    assert trainer.state.best_metric == 2.0


def test_a_policy_that_is_not_finite_is_not_saved_and_no_good_checkpoint_goes(
    ppo_roles, tokenizer, tmp_path
):
    trainer = make(ppo_roles, tokenizer, prompts(), tmp_path, **(SAVING | {"save_steps": 1}))
    policy = next(p for n, p in ppo_roles.model.named_parameters() if ".default." in n)

    def diverge(step):
        with torch.no_grad():
            policy.fill_(float("nan"))

    trainer.add_callback(AtStep(5, lambda: diverge(5)))
    with pytest.raises(DivergedError, match=r"the loss of step 6 is nan.*learning_rate"):
        trainer.train()
    assert last_checkpoint(tmp_path, True).endswith("checkpoint-5")

    class AfterStep(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            diverge(state.global_step)

    trainer = make(ppo_roles, tokenizer, prompts(), tmp_path, **(SAVING | {"save_steps": 1}))
    trainer.add_callback(AfterStep())
    with pytest.raises(DivergedError, match="training diverged by step 6: 1 of its weights"):
        trainer.train(resume_from_checkpoint=True)
    assert last_checkpoint(tmp_path, True).endswith("checkpoint-5")


@pytest.mark.parametrize("save", ["steps", "no"])
def test_a_signal_during_an_evaluation_ends_the_run_at_that_step(
    ppo_roles, tokenizer, tmp_path, save
):
    trainer = make(
        ppo_roles,
        tokenizer,
        prompts(),
        tmp_path,
        held_out=prompts().select(range(2)),
        eval_strategy="steps",
        eval_steps=2,
        save_strategy=save,
        save_steps=4,
    )
    trainer.add_callback(InEvaluation(2))
    with pytest.raises(Interrupted, match=r"at step 2; .*checkpoint-2"), interruptible(trainer):
        trainer.train()
    assert trainer.state.global_step == 2


def test_a_signal_in_the_last_evaluation_is_no_interruption(ppo_roles, tokenizer, tmp_path):
    trainer = make(
        ppo_roles,
        tokenizer,
        prompts(),
        tmp_path,
        held_out=prompts().select(range(2)),
        eval_strategy="steps",
        eval_steps=8,
    )
    trainer.add_callback(InEvaluation(8))
    with interruptible(trainer):
        trainer.train()
    assert trainer.state.global_step == 8


def test_in_another_thread_signals_are_left_alone(ppo_roles, tokenizer, tmp_path):
    trainer = make(ppo_roles, tokenizer, prompts(), tmp_path)
    seen = []

    def work():
        with interruptible(trainer):
            seen.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_checkpoints_of_another_training_are_not_mixed_with(make_ppo_roles, tokenizer, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2}
    make(make_ppo_roles(), tokenizer, prompts(), tmp_path, **options).train()
    for nothing in (None, False, "false"):
        with pytest.raises(CheckpointError, match="checkpoint-8 of another training: resume it"):
            make(make_ppo_roles(), tokenizer, prompts(), tmp_path, seed=1, **options).train(nothing)
    # going on from an older one, the newer ones are of a future that is not this run's
    trainer = make(make_ppo_roles(), tokenizer, prompts(), tmp_path, **options)
    trainer.add_callback(AtStep(5, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    with pytest.raises(Interrupted), interruptible(trainer):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    left = sorted(f.name for f in tmp_path.glob("checkpoint-*"))
    assert left == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"per_device_train_batch_size": 8, "num_mini_batches": 1}, "per_device_train_batch_size"),
        ({"kl_coef": 0.2}, "was written with `kl_coef` 0.05, this run has 0.2"),
        ({"value_role": "head"}, "was written with `value_role` adapter, this run has head"),
        ({"max_steps": 3}, "it was saved at step 8, but this training ends at step 3"),
        ({"max_steps": 8}, None),  # nothing is left to do
    ],
)
def test_a_run_does_not_go_on_with_other_settings(
    make_ppo_roles, tokenizer, tmp_path, changes, message
):
    make(make_ppo_roles(), tokenizer, prompts(), tmp_path, **SAVING).train()
    trainer = make(make_ppo_roles(), tokenizer, prompts(), tmp_path, **(SAVING | changes))
    refused = nullcontext() if message is None else pytest.raises(CheckpointError, match=message)
    with refused:
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert (tmp_path / "checkpoint-8").is_dir()
    assert trainer.state.global_step == (8 if message is None else 0)


def test_a_run_that_was_moved_knows_its_best_checkpoint(make_ppo_roles, tokenizer, tmp_path):
    options = SAVING | {
        "held_out": prompts().select(range(2)),
        "eval_strategy": "steps",
        "eval_steps": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "objective/length",
        "learning_rate": 0.0,  # every evaluation is the first one's: that stays the best
    }
    run, moved = tmp_path / "run", tmp_path / "moved"
    make(make_ppo_roles(), tokenizer, prompts(), run, total_episodes=8, **options).train()
    assert (run / "checkpoint-2").is_dir()
    run.rename(moved)
    trainer = make(make_ppo_roles(), tokenizer, prompts(), moved, total_episodes=16, **options)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.best_model_checkpoint == str(moved / "checkpoint-2")
    assert (moved / "checkpoint-2").is_dir()


def test_a_run_does_not_go_on_with_other_prompts(make_ppo_roles, tokenizer, tmp_path):
    """And what is refused costs no checkpoint."""
    options = {"save_strategy": "steps", "save_steps": 4}
    make(make_ppo_roles(), tokenizer, prompts(), tmp_path, **options).train()
    for others in (prompts().select(range(12)), prompts().select(range(15, -1, -1))):
        trainer = make(make_ppo_roles(), tokenizer, others, tmp_path, **options)
        with pytest.raises(
            CheckpointError, match=r"written with `prompts` 16 \(\w+\), this run has 1"
        ):
            trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
        assert (tmp_path / "checkpoint-8").is_dir()


@pytest.mark.parametrize(
    ("spoilt", "options", "message"),
    [
        ("adapter_model.safetensors", {}, "damaged adapter"),
        ("experience.safetensors", {}, "experience.safetensors: cannot be read"),
        ("value/adapter_config.json", {}, "value: damaged adapter"),
        (None, {"ema_decay": 0.9}, "ema.safetensors: cannot be read"),
    ],
)
def test_an_earlier_checkpoint_that_cannot_be_loaded_costs_no_later_one(
    make_ppo_roles, tokenizer, tmp_path, spoilt, options, message
):
    saving = {"save_strategy": "steps", "save_steps": 4}
    make(make_ppo_roles(), tokenizer, prompts(), tmp_path, **saving).train()
    if spoilt is not None:
        file = tmp_path / "checkpoint-4" / spoilt
        file.write_bytes(b"{" * file.stat().st_size)
    trainer = make(make_ppo_roles(), tokenizer, prompts(), tmp_path, **saving, **options)
    with pytest.raises(CheckpointError, match=message):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert (tmp_path / "checkpoint-8").is_dir()


def test_a_full_disk_leaves_the_reason_to_be_read(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    run = Run.start(tmp_path, recipe="ppo")
    monkeypatch.setattr("toolkit.runs.run.write_json", full)
    with pytest.raises(CheckpointError, match="the reason"), run:
        raise CheckpointError("the reason")


def test_a_trainer_can_train_twice(make_ppo_roles, tokenizer, tmp_path):
    trainer = make(make_ppo_roles(), tokenizer, prompts(), tmp_path)
    trainer.train()
    trainer.train()
    assert trainer.rollout_number == 2


def test_what_is_saved_elsewhere_is_a_finished_run(make_ppo_roles, tokenizer, tmp_path):
    trainer = make(make_ppo_roles(), tokenizer, prompts(), tmp_path / "run", ema_decay=0.5)
    trainer.train()
    trainer.save_model(str(tmp_path / "run"))
    trainer.save_model(str(tmp_path / "elsewhere"))
    here, there = (files(tmp_path / name) for name in ("run", "elsewhere"))
    assert set(there) <= set(here)
    assert {"adapter_model.safetensors", "last", "value"} <= set(there)
