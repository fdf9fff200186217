"""One PPO minibatch against a recording of TRL 1.12's PPOTrainer (made by record.py)."""

import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from tests.parity.tokens import (
    EPOCHS,
    EPOCHS_LEARNING_RATE,
    LEARNING_RATE,
    SETTINGS,
    SHAPE,
    STOP,
    TARGETS,
    tokenizer,
)
from toolkit.models.heads import ScalarHead
from toolkit.models.roles import POLICY, REFERENCE, REWARD, VALUE, Roles
from toolkit.ppo import advantages, experience, rollout
from toolkit.ppo.config import PPOConfig
from toolkit.ppo.trainer import PPOTrainer
from toolkit.sampling.decoding import Decoded

FILE = Path(__file__).with_name("trl-1.12.0.safetensors")
RECORDING = load_file(FILE)
OURS = {"per_device_train_batch_size": 8, "num_ppo_epochs": 1, "max_grad_norm": 0.0}
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

    def __init__(self, case, folder, monkeypatch, *, head_only=False, stop=2, **changes):
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
        self.roles.base.generation_config.eos_token_id = [2, stop]
        texts = [" ".join(f"w{t - 3}" if t > 2 else "<s>" for t in p) for p in prompts]
        args = PPOConfig(
            output_dir=str(folder),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
            total_episodes=8,
            response_length=7,
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
            **(OURS | SETTINGS | changes),
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
        self.value = get_peft_model_state_dict(self.roles.model, adapter_name=VALUE)
        self.value = {k: v.clone() for k, v in self.value.items()}
        self.head = self.roles.heads[VALUE].weight.detach().clone()

    def train(self):
        """One rollout and one update; the experience in the recording's order of rows."""
        self.trainer.train()
        found, rows = self.trainer.experience, self.rows()
        return {
            n: getattr(found, n)[rows]
            for n in ("mask", "logprobs", "ref_logprobs", "values", "advantages", "returns")
        }

    def rows(self):
        """The rollout's row of each recorded one."""
        return [self.trainer.experience.prompts.index(p) for p in self.prompts]

    def updates(self):
        """What training moved: the policy's adapter, the value's, and its head."""
        policy = get_peft_model_state_dict(self.roles.model, adapter_name=POLICY)
        value = get_peft_model_state_dict(self.roles.model, adapter_name=VALUE)
        moved = {f"update.{k}": v - self.before[k] for k, v in policy.items()}
        moved |= {f"value_update.{k}": v - self.value[k] for k, v in value.items()}
        head = self.roles.heads[VALUE].weight.detach() - self.head
        return moved | {"update.value_head": head}

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


def seen_by_gae(monkeypatch):
    """The rewards of rollouts to come."""
    rewards = []

    def gae(given, *args, **kwargs):
        rewards.append(given.clone())
        return advantages.gae(given, *args, **kwargs)

    monkeypatch.setattr(experience, "gae", gae)
    return rewards


def test_parity_of_scores_and_rewards(full, monkeypatch):
    rewards = seen_by_gae(monkeypatch)
    full.train()
    torch.testing.assert_close(rewards[0][full.rows()], full.recorded["rewards"], **CLOSE)
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


def assert_same_update(replay):
    recorded = {k: v for k, v in replay.recorded.items() if "update." in k}
    moved = replay.updates()
    assert len(recorded) > len(replay.before)
    for name, update in recorded.items():
        torch.testing.assert_close(moved[name], update, **CLOSE)
        assert update.abs().max() > 1e-4, name
    assert recorded["update.value_head"].abs().max() > 1e-3


def test_parity_of_the_update(full):
    full.train()
    assert_same_update(full)


def test_parity_of_the_update_where_the_critic_is_an_adapter(tmp_path, monkeypatch):
    """TRL 1.12 would train all of the critic; it was handed one with an adapter as ours is."""
    replay = Replay("critic", tmp_path, monkeypatch)
    replay.train()
    theirs = {k for k in replay.recorded if k.startswith("value_update.")}
    assert theirs == {k for k in replay.updates() if k.startswith("value_update.")}
    assert_same_update(replay)


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
    assert_same_update(replay)


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


def test_the_difference_on_purpose_no_value_is_learnt_for_padding(tmp_path, monkeypatch):
    """TRL 1.12's value loss is a mean over real tokens and the first pad of each row."""
    replay = Replay("ended", tmp_path, monkeypatch)
    found, recorded = replay.train(), replay.recorded
    theirs = 0.5 * (recorded["values"] - recorded["returns"]) ** 2
    learnt = ~recorded["padding_mask_p1"]
    assert torch.equal(learnt.sum(1), (found["mask"].sum(1) + 1).clamp_max(7))
    assert recorded["vf_loss_stats"].item() == pytest.approx(theirs[learnt].mean().item(), abs=1e-5)
    ours = 0.5 * (found["values"] - found["returns"]) ** 2
    ours = ours[found["mask"]].mean().item()
    assert replay.logged("loss/value_avg") == pytest.approx(ours, abs=1e-5)
    assert abs(ours - recorded["vf_loss_stats"].item()) > 1e-3
    assert not found["values"][~found["mask"]].any()
    assert recorded["values"][learnt & ~found["mask"]].all()


def test_the_difference_on_purpose_rewards_are_whitened_over_real_tokens(tmp_path, monkeypatch):
    """TRL 1.12 counts the first pad of each row, where it has put the score."""
    replay = Replay("whitened", tmp_path, monkeypatch, whiten_rewards=True)
    rewards = seen_by_gae(monkeypatch)
    found, recorded = replay.train(), replay.recorded
    counted = ~recorded["padding_mask_p1"]
    assert recorded["rewards"][counted].std().item() == pytest.approx(1.0, abs=1e-4)
    ours = rewards[0][replay.rows()]
    assert ours[found["mask"]].std().item() == pytest.approx(1.0, abs=1e-4)
    assert not ours[~found["mask"]].any()
    assert abs(recorded["rewards"][found["mask"]].std().item() - 1) > 0.01


def test_the_difference_on_purpose_an_end_is_an_end_by_default(tmp_path, monkeypatch):
    """TRL 1.12 with `stop_token` left out scores, and learns from, what follows the end token."""
    recorded = part("unstopped.")
    ends = (recorded["responses"] == 2).float()
    assert ends.any(1).sum() == 6 and ends.argmax(1).tolist() != [6] * 8
    assert not recorded["padding_mask"].any()
    replay = Replay("unstopped", tmp_path, monkeypatch)
    assert replay.trainer.maker.stop == [2]  # where sampling stops: tests/sampling/test_decoding.py
    found = Replay("ended", tmp_path, monkeypatch).train()
    assert sorted(found["mask"].sum(1).tolist()) == [1, 2, 3, 4, 5, 6, 7, 7]


def test_the_difference_on_purpose_a_stop_token_of_ones_own_is_no_missing_end(
    tmp_path, monkeypatch
):
    """TRL 1.12 takes the penalty from every completion without EOS, stopped or not."""
    replay = Replay("stopped", tmp_path, monkeypatch, stop=STOP, missing_eos_penalty=1.0)
    replay.train()
    recorded = replay.recorded
    stopped = (recorded["responses"] == STOP).any(1)
    assert stopped.sum() == 6
    score = replay.logged("objective/scores")
    assert recorded["scores"].mean().item() == pytest.approx(score - 1.0, abs=1e-5)
    paid = replay.logged("objective/rlhf_reward") - replay.logged("objective/non_score_reward")
    assert paid == pytest.approx(score - 2 / 8, abs=1e-5)


PIECES = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}


def test_the_difference_on_purpose_a_token_counts_the_same_in_every_micro_batch(
    tmp_path, monkeypatch
):
    """TRL 1.12 averages the means of its micro-batches: eight ragged rows in four are another update."""
    whole, pieces = part("whole."), part("pieces.")
    assert torch.equal(whole["query_responses"], pieces["query_responses"])
    torch.testing.assert_close(whole["advantages"], pieces["advantages"])
    ours = []
    for name, sizes in (("whole", {}), ("pieces", PIECES)):
        replay = Replay(name, tmp_path / name, monkeypatch, **sizes)
        replay.train()
        ours.append(replay.updates())
    far = 0.0
    for name in ours[0]:
        torch.testing.assert_close(ours[1][name], ours[0][name], **CLOSE)
        if name in whole:
            far = max(far, (whole[name] - pieces[name]).abs().max().item())
    assert far > 0.1


def test_the_difference_on_purpose_gradients_are_clipped_together(tmp_path, monkeypatch):
    """TRL 1.12 has `max_grad_norm`, 1 by default, and does not use it. Ours is of all that is trained."""
    theirs = norm({k: v for k, v in part("critic.").items() if "update." in k})
    free = Replay("critic", tmp_path / "free", monkeypatch)
    free.train()
    clipped = Replay("critic", tmp_path / "clipped", monkeypatch, max_grad_norm=1.0)
    clipped.train()
    before, after = free.updates(), clipped.updates()
    bias = 0.0 - clipped.roles.heads[VALUE].bias.detach()  # of the head, which theirs lacks
    assert theirs > 1.5 and norm(before) == pytest.approx(theirs, abs=1e-4)
    assert norm(after | {"bias": bias}) == pytest.approx(1.0, abs=1e-4)
    scale = norm(after) / norm(before)
    for name, update in before.items():  # one factor for policy and value
        torch.testing.assert_close(after[name], scale * update, **CLOSE)


def norm(updates):
    """Of the gradient that plain descent made these of."""
    total = sum((u.double() ** 2).sum().item() for u in updates.values())
    return total**0.5 / LEARNING_RATE


def test_the_difference_on_purpose_statistics_are_means_over_what_there_is(tmp_path, monkeypatch):
    """TRL 1.12 divides by slots that no minibatch fills: a ratio that is 1 reads 0.25."""
    theirs = part("slots.")["ratio_stats"]
    assert theirs.shape == (1, 4, 4) and (theirs != 0).sum() == 4
    assert theirs.mean().item() == pytest.approx(0.25, abs=1e-5)
    sizes = {"per_device_train_batch_size": 2, "num_mini_batches": 4}
    replay = Replay("slots", tmp_path, monkeypatch, **sizes)
    replay.train()
    assert replay.logged("val/ratio") == pytest.approx(1.0, abs=1e-5)


def test_the_difference_on_purpose_the_critic_is_saved_and_training_resumes(tmp_path, monkeypatch):
    """TRL 1.12's `train` takes nothing, and `save_model` writes the policy alone."""
    with safe_open(FILE, "pt") as file:
        about = file.metadata()
    assert about["trl"] == "1.12.0"
    assert json.loads(about["train"]) == ["self"]
    saved = json.loads(about["saved"])
    assert "adapter_model.safetensors" in saved
    assert not [name for name in saved if "value" in name or "head" in name or "score" in name]
    Replay("full", tmp_path, monkeypatch).trainer.save_model()
    assert {f.name for f in (tmp_path / "value").iterdir()} >= {
        "adapter_model.safetensors",
        "head.safetensors",
    }


def test_the_difference_on_purpose_statistics_leave_padding_out(tmp_path, monkeypatch):
    """TRL 1.12 averages approx_kl, entropy and ratio over padding too."""
    replay = Replay("ended", tmp_path, monkeypatch)
    found = replay.train()
    mask = found["mask"]
    assert mask.sum() < mask.numel()
    entropy = replay.recorded["entropy_stats"].item()
    assert replay.logged("policy/entropy_avg") != pytest.approx(entropy, abs=1e-3)
    expected = _entropy_over_real_tokens(replay)
    assert replay.logged("policy/entropy_avg") == pytest.approx(expected, abs=1e-5)
    assert (replay.recorded["logprobs"][~mask] == 1.0).all()  # their sentinel, a chance of e
    assert not found["logprobs"][~mask].any()


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
