"""One PPO minibatch against a recording of TRL 1.12's PPOTrainer (made by record.py)."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from tests.parity.tokens import (
    EPOCHS,
    EPOCHS_LEARNING_RATE,
    LEARNING_RATE,
    SETTINGS,
    SHAPE,
    TARGETS,
    tokenizer,
)
from toolkit.models.decoding import Decoded
from toolkit.models.heads import ScalarHead
from toolkit.models.roles import POLICY, REFERENCE, REWARD, VALUE, Roles
from toolkit.rl import advantages, rollout
from toolkit.trainers import experience
from toolkit.trainers.ppo import PPOTrainer
from toolkit.trainers.ppo_config import PPOConfig

RECORDING = load_file(Path(__file__).with_name("trl-1.12.0.safetensors"))
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def part(prefix):
    """The recorded tensors below a prefix."""
    return {k[len(prefix) :]: v for k, v in RECORDING.items() if k.startswith(prefix)}


def recorded_roles():
    """The recording's models as four adapters and two heads on one base."""
    base = LlamaForCausalLM(LlamaConfig(**SHAPE))
    base.load_state_dict(part("base."))
    base.requires_grad_(False)
    roles = Roles(base, {"id": "recorded"})
    for name, stored in (
        (POLICY, "policy."),
        (REFERENCE, "ref."),
        (VALUE, "value."),
        (REWARD, "reward."),
    ):
        roles.create(name, LoraConfig(r=3, lora_alpha=6, target_modules=TARGETS))
        set_peft_model_state_dict(roles.model, part(stored), adapter_name=name)
    for name in (VALUE, REWARD):
        head = ScalarHead(16, zero=True)
        with torch.no_grad():
            head.weight.copy_(RECORDING[f"{name}_head"])
        roles.heads[name] = head
    for name in (REFERENCE, REWARD):
        for key, parameter in roles.model.named_parameters():
            if f".{name}." in f".{key}.":
                parameter.requires_grad_(False)
    return roles


class Replay:
    """Our trainer on the recorded prompts, with the recorded completions in the place of samples."""

    def __init__(self, case, folder, monkeypatch, *, head_only=False, **changes):
        self.recorded = part(f"{case}.")
        width = self.recorded["query_responses"].shape[1] - self.recorded["responses"].shape[1]
        queries = self.recorded["query_responses"][:, :width].tolist()
        prompts = [[t for t in row if t != 0] for row in queries]
        said = [[t for t in row if t != 0] for row in self.recorded["responses"].tolist()]
        order = {tuple(p): c for p, c in zip(prompts, said, strict=True)}
        monkeypatch.setattr(
            rollout, "sample", lambda model, asked, **_: Decoded([order[tuple(p)] for p in asked])
        )
        self.roles = recorded_roles()
        texts = [" ".join(f"w{t - 3}" if t > 2 else "<s>" for t in p) for p in prompts]
        args = PPOConfig(
            output_dir=str(folder),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
            per_device_train_batch_size=8,
            total_episodes=8,
            response_length=7,
            max_grad_norm=0.0,
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
            **({"num_ppo_epochs": 1} | SETTINGS | changes),
        )
        optimizer = torch.optim.SGD(
            [
                p
                for n, p in self.roles.model.named_parameters()
                if p.requires_grad and not (head_only and ".value." in n)
            ]
            + ([self.roles.heads[VALUE].weight] if head_only else []),  # the old head has no bias
            lr=EPOCHS_LEARNING_RATE if head_only else LEARNING_RATE,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
        self.trainer = PPOTrainer(
            self.roles,
            args,
            processing_class=tokenizer(),
            train_dataset=Dataset.from_dict({"prompt": texts}),
            optimizers=(optimizer, schedule),
        )
        self.prompts = prompts
        self.before = get_peft_model_state_dict(self.roles.model, adapter_name=POLICY)
        self.before = {k: v.clone() for k, v in self.before.items()}
        self.head = self.roles.heads[VALUE].weight.detach().clone()

    def train(self):
        """One rollout and one update; the experience in the recording's order of rows."""
        self.trainer.train()
        found = self.trainer.experience
        rows = [found.prompts.index(p) for p in self.prompts]
        return {
            n: getattr(found, n)[rows]
            for n in ("mask", "logprobs", "ref_logprobs", "values", "advantages", "returns")
        }

    def logged(self, key, epoch=0):
        return [row[key] for row in self.trainer.state.log_history if key in row][epoch]


@pytest.fixture
def full(tmp_path, monkeypatch):
    """Completions that fill the whole length."""
    return Replay("full", tmp_path, monkeypatch)


def test_parity_of_logprobs_values_advantages_and_returns(full):
    found = full.train()
    for name in ("logprobs", "ref_logprobs", "values", "advantages", "returns"):
        torch.testing.assert_close(found[name], full.recorded[name], **CLOSE)


def test_parity_of_scores_and_rewards(full, monkeypatch):
    rewards = []

    def gae(given, *args, **kwargs):
        rewards.append(given.clone())
        return advantages.gae(given, *args, **kwargs)

    monkeypatch.setattr(experience, "gae", gae)
    full.train()
    rows = [full.trainer.experience.prompts.index(p) for p in full.prompts]
    torch.testing.assert_close(rewards[0][rows], full.recorded["rewards"], **CLOSE)
    mean = full.recorded["scores"].mean().item()
    assert full.logged("objective/scores") == pytest.approx(mean, abs=1e-5)


STATISTICS = {
    "loss/policy_avg": "pg_loss_stats",
    "loss/value_avg": "vf_loss_stats",
    "policy/approxkl_avg": "approxkl_stats",
    "policy/entropy_avg": "entropy_stats",
    "val/ratio": "ratio_stats",
    "policy/clipfrac_avg": "pg_clipfrac_stats",
    "val/clipfrac_avg": "vf_clipfrac_stats",
}


def test_parity_of_losses_and_statistics(full):
    full.train()
    for ours, theirs in STATISTICS.items():
        expected = full.recorded[theirs].item()
        assert full.logged(ours) == pytest.approx(expected, abs=1e-5), ours


def assert_same_update(replay, case):
    after = get_peft_model_state_dict(replay.roles.model, adapter_name=POLICY)
    updates = part(f"{case}.update.")
    assert len(updates) == len(after) + 1
    for name, tensor in after.items():
        torch.testing.assert_close(tensor - replay.before[name], updates[name], **CLOSE)
    moved = replay.roles.heads[VALUE].weight.detach() - replay.head
    torch.testing.assert_close(moved, updates["value_head"], **CLOSE)
    assert moved.abs().max() > 1e-3


def test_parity_of_the_update(full):
    full.train()
    assert_same_update(full, "full")


def test_parity_of_a_second_epoch_where_ratios_and_values_have_moved(tmp_path, monkeypatch):
    """With whitened rewards and a penalty for a missing end; clipping is at work on both sides."""
    replay = Replay("epochs", tmp_path, monkeypatch, head_only=True, **EPOCHS)
    found = replay.train()
    for name in ("logprobs", "values", "advantages", "returns"):
        torch.testing.assert_close(found[name], replay.recorded[name], **CLOSE)
    for ours, theirs in STATISTICS.items():
        expected = replay.recorded[theirs][1].item()
        assert replay.logged(ours, epoch=1) == pytest.approx(expected, abs=1e-5), ours
    moved = {name: replay.recorded[name][1].item() for name in STATISTICS.values()}
    assert moved["approxkl_stats"] > 1e-3
    assert abs(moved["ratio_stats"] - 1) > 1e-4
    assert moved["pg_clipfrac_stats"] > 0
    assert moved["vf_clipfrac_stats"] > 0
    assert_same_update(replay, "epochs")


def test_the_difference_on_purpose_the_score_of_an_ended_completion_sits_on_its_last_token(
    tmp_path, monkeypatch
):
    """TRL 1.12 puts it one position further, on the first pad, and learns a value for that pad."""
    replay = Replay("ended", tmp_path, monkeypatch)
    found, recorded = replay.train(), replay.recorded
    for name in ("logprobs", "ref_logprobs"):  # the same up to their padding
        torch.testing.assert_close(
            found[name][found["mask"]], recorded[name][found["mask"]], **CLOSE
        )
    torch.testing.assert_close(
        found["values"][found["mask"]], recorded["values"][found["mask"]], **CLOSE
    )
    for row, length in enumerate(found["mask"].sum(1).tolist()):
        theirs = recorded["rewards"][row].clone()
        if length < theirs.shape[0]:
            assert theirs[length].abs() > 0  # their score, after the end
            theirs[length - 1] += theirs[length]
            theirs[length:] = 0
        # γ-discounted sum from the first token: the return at λ = 1, here by hand
        kl = recorded["logprobs"][row] - recorded["ref_logprobs"][row]
        kl = torch.where(found["mask"][row], kl, torch.zeros(()))
        ours = -SETTINGS["kl_coef"] * kl
        ours[length - 1] += recorded["scores"][row]
        torch.testing.assert_close(ours, theirs, **CLOSE)
    ends = found["mask"].sum(1) < found["mask"].shape[1]
    assert ends.any()
    assert not torch.allclose(found["returns"][ends], recorded["returns"][ends], atol=1e-3)


def test_the_difference_on_purpose_statistics_leave_padding_out(tmp_path, monkeypatch):
    """TRL 1.12 averages approx_kl, entropy and ratio over padding too."""
    replay = Replay("ended", tmp_path, monkeypatch)
    replay.train()
    mask = replay.trainer.experience.mask
    assert mask.sum() < mask.numel()
    entropy = replay.recorded["entropy_stats"].item()
    assert replay.logged("policy/entropy_avg") != pytest.approx(entropy, abs=1e-3)
    expected = _entropy_over_real_tokens(replay)
    assert replay.logged("policy/entropy_avg") == pytest.approx(expected, abs=1e-5)


def _entropy_over_real_tokens(replay):
    """Row by row from the recorded policy's logits, by a second copy of the models."""
    roles, total, tokens = recorded_roles(), 0.0, 0
    with roles.using(POLICY) as model, torch.no_grad():
        experience = replay.trainer.experience
        for prompt, said in zip(experience.prompts, experience.completions, strict=True):
            logits = model(input_ids=torch.tensor([prompt + said])).logits[0]
            p = (logits[len(prompt) - 1 : -1] / SETTINGS["temperature"]).softmax(-1)
            total += -(p * p.log()).sum().item()
            tokens += len(said)
    return total / tokens
