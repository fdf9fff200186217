"""Checkpoints are complete or absent; a signal ends a run without loss."""

import errno
import json
import os
import shutil
import signal
import threading
from contextlib import nullcontext

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import TrainerCallback

from tests.ppo.setup import make, prompts
from toolkit.errors import CheckpointError, ConfigError, DivergedError, Interrupted
from toolkit.runs.resuming import CONTENTS, last_checkpoint, list_contents
from toolkit.runs.run import Run
from toolkit.trainers.callbacks import interruptible
from toolkit.trainers.checkpoints import INCOMING

pytestmark = pytest.mark.slow

SAVING = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}


@pytest.fixture
def run(finished_run, tmp_path):
    """A copy of the finished training."""
    return shutil.copytree(finished_run, tmp_path / "run")


class AtStep(TrainerCallback):
    """Calls a function when a step begins."""

    def __init__(self, step, act):
        self.step, self.act = step, act

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.act()


def files(folder):
    return sorted(f.name for f in folder.iterdir())


def test_checkpoint_is_named_only_when_complete(ppo_roles, tokenizer, tmp_path, monkeypatch):
    """While files are being written, no folder `checkpoint-…` lacks a file."""
    names = []
    save = torch.save

    def recorded(*args, **kwargs):
        names.append([f.name for f in (tmp_path / "run").glob("checkpoint-*")])
        return save(*args, **kwargs)

    monkeypatch.setattr(torch, "save", recorded)
    make(ppo_roles, tokenizer, prompts(), tmp_path / "run", **SAVING).train()
    assert names[0] == []
    assert set(map(len, names)) == {0, 1}
    assert not (tmp_path / "run" / INCOMING).exists()
    left = [f.name for f in (tmp_path / "run").glob("checkpoint-*")]
    assert left == ["checkpoint-8"]  # older ones are removed after it is complete
    expected = {
        "base.json",
        "experience.safetensors",
        "optimizer.pt",
        "trainer_state.json",
        CONTENTS,
        "value",
    }
    assert expected <= set(files(tmp_path / "run" / "checkpoint-8"))


def test_full_disk_keeps_last_checkpoint(ppo_roles, tokenizer, tmp_path, monkeypatch):
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


def test_run_resumes_after_full_disk_at_end(make_ppo_roles, tokenizer, tmp_path, monkeypatch):
    trainer = make(make_ppo_roles(), tokenizer, prompts(), tmp_path, **SAVING)
    trainer.train()

    def full(*args, **kwargs):
        raise SafetensorError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("safetensors.torch.save_file", full)
        with pytest.raises(
            CheckpointError, match=r"cannot be written .*No space left.*resume_from"
        ):
            trainer.save_model()
    again = make(make_ppo_roles(), tokenizer, prompts(), tmp_path, **SAVING)
    again.train(resume_from_checkpoint=True)
    again.save_model()
    saved = (tmp_path / "adapter_model.safetensors").read_bytes()
    assert saved == (tmp_path / "checkpoint-8" / "adapter_model.safetensors").read_bytes()


def test_missing_report_to_package_is_rejected(ppo_roles, tokenizer, tmp_path):
    with pytest.raises(
        ConfigError, match=r"PPOTrainer: the library rejects the options: .* to be installed"
    ):
        make(ppo_roles, tokenizer, prompts(), tmp_path, report_to="swanlab")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_interrupted_run_resumes_to_same_policy(make_ppo_roles, tokenizer, tmp_path, number):
    whole = make_ppo_roles()
    make(whole, tokenizer, prompts(), tmp_path / "whole").train()
    stopped = make_ppo_roles()
    trainer = make(stopped, tokenizer, prompts(), tmp_path / "run")
    trainer.add_callback(AtStep(3, lambda: os.kill(os.getpid(), number)))
    handler = signal.getsignal(number)
    with pytest.raises(Interrupted, match="at step 4"), interruptible(trainer):
        trainer.train()
    assert signal.getsignal(number) is handler
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


def test_interruption_without_optimizer_names_no_checkpoint(ppo_roles, tokenizer, tmp_path):
    trainer = make(ppo_roles, tokenizer, prompts(), tmp_path, **SAVING, save_only_model=True)
    trainer.add_callback(AtStep(3, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    message = "SIGTERM at step 4; there is no checkpoint to resume from"
    with pytest.raises(Interrupted, match=message), interruptible(trainer):
        trainer.train()
    with pytest.raises(CheckpointError, match=r"optimizer\.pt is missing; .*`save_only_model`"):
        last_checkpoint(tmp_path, True)


def test_interruption_keeps_newest_beside_best_checkpoint(ppo_roles, tokenizer, tmp_path):
    """With a limit of one the library removes all but the best at the end of a run."""
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


def test_interruption_saves_though_not_best(ppo_roles, tokenizer, tmp_path):
    """With `save_strategy: best`; the evaluation at step 6 is not the best."""
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


def test_diverged_policy_is_not_saved(ppo_roles, tokenizer, tmp_path):
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
def test_signal_during_evaluation_stops_at_that_step(ppo_roles, tokenizer, tmp_path, save):
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


def test_signal_in_last_evaluation_finishes_the_run(ppo_roles, tokenizer, tmp_path):
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


def test_other_threads_keep_their_signal_handlers(ppo_roles, tokenizer, tmp_path):
    trainer = make(ppo_roles, tokenizer, prompts(), tmp_path)
    handlers = []

    def work():
        with interruptible(trainer):
            handlers.append(signal.getsignal(signal.SIGTERM))

    handler = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [handler]


def test_data_workers_ignore_stop_signals(ppo_roles, tokenizer, tmp_path, monkeypatch):
    """Also workers that are not forked."""
    calls = []
    monkeypatch.setattr("toolkit.trainers.checkpoints.ignore_signals", lambda: calls.append(1))
    trainer = make(ppo_roles, tokenizer, prompts(), tmp_path, held_out=prompts())
    for loader in (trainer.get_train_dataloader(), trainer.get_eval_dataloader()):
        loader.worker_init_fn(0)
    assert calls == [1, 1]


def test_checkpoints_of_another_training_are_rejected(run, make_ppo_roles, tokenizer):
    options = {"save_strategy": "steps", "save_steps": 2}
    for nothing in (None, False, "false"):
        with pytest.raises(CheckpointError, match="checkpoint-8 of another training: resume it"):
            make(make_ppo_roles(), tokenizer, prompts(), run, seed=1, **options).train(nothing)
    # resuming from an older checkpoint removes the newer ones
    trainer = make(make_ppo_roles(), tokenizer, prompts(), run, **options)
    trainer.add_callback(AtStep(5, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    with pytest.raises(Interrupted), interruptible(trainer):
        trainer.train(resume_from_checkpoint=str(run / "checkpoint-4"))
    assert sorted(f.name for f in run.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"per_device_train_batch_size": 8, "num_mini_batches": 1}, "per_device_train_batch_size"),
        ({"kl_coef": 0.2}, "written with `kl_coef` 0.05, but this run has 0.2"),
        ({"value_role": "head"}, "written with `value_role` adapter, but this run has head"),
        ({"max_steps": 3}, "written with `max_steps` 8, but this run has 3"),
        ({"max_steps": 9}, "can only become longer, and only with a learning rate that does not"),
        ({"max_steps": 8}, None),  # already finished
    ],
)
def test_resume_rejects_changed_settings(run, make_ppo_roles, tokenizer, changes, message):
    trainer = make(make_ppo_roles(), tokenizer, prompts(), run, **(SAVING | changes))
    error = nullcontext() if message is None else pytest.raises(CheckpointError, match=message)
    with error:
        trainer.train(resume_from_checkpoint=str(run / "checkpoint-8"))
    assert (run / "checkpoint-8").is_dir()
    assert trainer.state.global_step == (8 if message is None else 0)


def test_moved_run_finds_its_best_checkpoint(make_ppo_roles, tokenizer, tmp_path):
    options = SAVING | {
        "held_out": prompts().select(range(2)),
        "eval_strategy": "steps",
        "eval_steps": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "objective/length",
        "lr_scheduler_type": "constant",
        "learning_rate": 0.0,  # all evaluations are equal, so the first stays the best
    }
    run, moved = tmp_path / "run", tmp_path / "moved"
    make(make_ppo_roles(), tokenizer, prompts(), run, total_episodes=8, **options).train()
    assert (run / "checkpoint-2").is_dir()
    run.rename(moved)
    trainer = make(make_ppo_roles(), tokenizer, prompts(), moved, total_episodes=16, **options)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.best_model_checkpoint == str(moved / "checkpoint-2")
    assert (moved / "checkpoint-2").is_dir()


def test_resume_rejects_changed_prompts(run, make_ppo_roles, tokenizer):
    """The rejected run keeps its checkpoints."""
    for others in (prompts().select(range(12)), prompts().select(range(15, -1, -1))):
        trainer = make(make_ppo_roles(), tokenizer, others, run)
        with pytest.raises(
            CheckpointError, match=r"written with `prompts` 16 \(\w+\), but this run has 1"
        ):
            trainer.train(resume_from_checkpoint=str(run / "checkpoint-4"))
        assert (run / "checkpoint-8").is_dir()


@pytest.mark.parametrize(
    ("damaged", "options", "message"),
    [
        ("adapter_model.safetensors", {}, "damaged adapter"),
        ("experience.safetensors", {}, "experience.safetensors: cannot be read"),
        ("value/adapter_config.json", {}, "value: damaged adapter"),
        (None, {"ema_decay": 0.9}, "written with `ema_decay` None, but this run has 0.9"),
    ],
)
def test_failed_resume_keeps_later_checkpoints(
    run, make_ppo_roles, tokenizer, damaged, options, message
):
    if damaged is not None:
        file = run / "checkpoint-4" / damaged
        file.write_bytes(b"{" * file.stat().st_size)
        list_contents(run / "checkpoint-4")  # as if it had been written so
    trainer = make(make_ppo_roles(), tokenizer, prompts(), run, **options)
    with pytest.raises(CheckpointError, match=message):
        trainer.train(resume_from_checkpoint=str(run / "checkpoint-4"))
    assert (run / "checkpoint-8").is_dir()


@pytest.mark.parametrize("name", ["value/adapter_model.safetensors", "rng_state.pth"])
def test_damaged_checkpoint_falls_back_to_older_one(run, make_ppo_roles, tokenizer, capsys, name):
    roles, file = make_ppo_roles(), run / "checkpoint-8" / name
    expected = load_file(run / "checkpoint-8" / "adapter_model.safetensors")
    file.write_bytes(b"\0" * file.stat().st_size)
    saving = {"save_strategy": "steps", "save_steps": 4}
    make(roles, tokenizer, prompts(), run, **saving).train(resume_from_checkpoint=True)
    output = capsys.readouterr().out
    assert f"checkpoint-8: cannot resume from it ({name} was changed" in output
    assert "checkpoint-8: removed, because training resumes from step 4" in output
    resumed = load_file(run / "checkpoint-8" / "adapter_model.safetensors")
    assert all(torch.equal(resumed[key], expected[key]) for key in expected)


def test_damaged_best_checkpoint_is_not_loaded(make_ppo_roles, tokenizer, tmp_path, capsys):
    options = SAVING | {
        "save_total_limit": 3,
        "held_out": prompts().select(range(2)),
        "eval_strategy": "steps",
        "eval_steps": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "objective/length",
        "learning_rate": 0.0,  # all evaluations are equal, so the first stays the best
        "lr_scheduler_type": "constant",  # the resumed run is longer
    }
    make(make_ppo_roles(), tokenizer, prompts(), tmp_path, total_episodes=8, **options).train()
    file = tmp_path / "checkpoint-2" / "adapter_model.safetensors"
    file.write_bytes(b"\0" * file.stat().st_size)
    trainer = make(make_ppo_roles(), tokenizer, prompts(), tmp_path, total_episodes=16, **options)
    trainer.train(resume_from_checkpoint=True)
    assert "checkpoint-2: the best checkpoint so far cannot be used" in capsys.readouterr().out
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-6")


def test_full_disk_does_not_hide_the_error(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    run = Run.start(tmp_path, recipe="ppo")
    monkeypatch.setattr("toolkit.runs.run.write_json", full)
    with pytest.raises(CheckpointError, match="the reason"), run:
        raise CheckpointError("the reason")


def test_trainer_can_train_twice(make_ppo_roles, tokenizer, tmp_path):
    trainer = make(make_ppo_roles(), tokenizer, prompts(), tmp_path)
    trainer.train()
    trainer.train()
    assert trainer.rollout_number == 2


def test_save_model_elsewhere_writes_finished_run(make_ppo_roles, tokenizer, tmp_path):
    trainer = make(make_ppo_roles(), tokenizer, prompts(), tmp_path / "run", ema_decay=0.5)
    trainer.train()
    trainer.save_model(str(tmp_path / "run"))
    trainer.save_model(str(tmp_path / "elsewhere"))
    run, elsewhere = (files(tmp_path / name) for name in ("run", "elsewhere"))
    assert set(elsewhere) <= set(run)
    assert {"adapter_model.safetensors", "last", "value"} <= set(elsewhere)


@pytest.mark.parametrize("file", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_unreadable_pickle_raises_one_line(run, ppo_roles, tokenizer, tmp_path, file):
    """A pickle that would run code, as another program may have written it."""
    checkpoint, proof = run / "checkpoint-4", tmp_path / "code-ran"
    torch.save({"state": Payload(proof)}, checkpoint / file)
    list_contents(checkpoint)
    trainer = make(ppo_roles, tokenizer, prompts(), run, save_strategy="no")
    with pytest.raises(CheckpointError, match=f"checkpoint-4: .*{file}.* is damaged"):
        trainer.train(resume_from_checkpoint=str(checkpoint))
    assert not proof.exists()


class Payload:
    """Unpickling it makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_checkpoint_lists_layers_in_order(run):
    config = json.loads((run / "checkpoint-8" / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(config["target_modules"])
