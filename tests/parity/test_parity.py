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
from toolkit.ppo import experience, rollout
from toolkit.ppo.config import PPOConfig
from toolkit.ppo.trainer import PPOTrainer
from toolkit.sampling.decoding import Decoded

pytestmark = pytest.mark.slow

FILE = Path(__file__).with_name("trl-1.12.0.safetensors")
RECORDING = load_file(FILE)
OURS = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
OURS |= {"num_ppo_epochs": 1, "max_grad_norm": 0.0}
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
    """Our trainer on the recorded prompts, with the recorded completions instead of samples."""

    def __init__(self, case, folder, monkeypatch, *, head_only=False, stop=2, **changes):
        self.recorded = part(f"{case}.")
        width = self.recorded["query_responses"].shape[1] - self.recorded["responses"].shape[1]
        queries = self.recorded["query_responses"][:, :width].tolist()
        prompts = [[t for t in row if t != 0] for row in queries]
        completions = [[t for t in row if t != 0] for row in self.recorded["responses"].tolist()]
        order = {tuple(p): c for p, c in zip(prompts, completions, strict=True)}
        monkeypatch.setattr(
            rollout,
            "sample",
            lambda model, row_prompts, **_: Decoded([order[tuple(p)] for p in row_prompts]),
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
            + ([self.roles.heads[VALUE].weight] if head_only else []),  # TRL's head has no bias
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
        """One rollout and one update. Returns the experience, with rows in the recording's order."""
        self.trainer.train()
        experience, rows = self.trainer.experience, self.rows()
        return {
            n: getattr(experience, n)[rows]
            for n in ("mask", "logprobs", "ref_logprobs", "values", "advantages", "returns")
        }

    def rows(self):
        """The rollout's row number of each recorded prompt."""
        return [self.trainer.experience.prompts.index(p) for p in self.prompts]

    def updates(self):
        """Weight changes of the policy's adapter, the value's adapter, and its head."""
        policy = get_peft_model_state_dict(self.roles.model, adapter_name=POLICY)
        value = get_peft_model_state_dict(self.roles.model, adapter_name=VALUE)
        changes = {f"update.{k}": v - self.before[k] for k, v in policy.items()}
        changes |= {f"value_update.{k}": v - self.value[k] for k, v in value.items()}
        head = self.roles.heads[VALUE].weight.detach() - self.head
        return changes | {"update.value_head": head}

    def logged(self, key, epoch=0):
        return [row[key] for row in self.trainer.state.log_history if key in row][epoch]


@pytest.fixture
def full(tmp_path, monkeypatch):
    """Completions of full length."""
    return Replay("full", tmp_path, monkeypatch)


def test_parity_of_logprobs_values_advantages_and_returns(full):
    experience = full.train()
    for name in ("logprobs", "ref_logprobs", "values", "advantages", "returns"):
        torch.testing.assert_close(experience[name], full.recorded[name], **CLOSE)


def rewards_of_gae(monkeypatch):
    """A list to which the rewards of each later rollout are added."""
    rewards = []

    plain = experience.gae

    def gae(token_rewards, *args, **kwargs):
        rewards.append(token_rewards.clone())
        return plain(token_rewards, *args, **kwargs)

    monkeypatch.setattr(experience, "gae", gae)
    return rewards


def test_parity_of_scores_and_rewards(full, monkeypatch):
    rewards = rewards_of_gae(monkeypatch)
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
    updates = replay.updates()
    assert len(recorded) > len(replay.before)
    for name, update in recorded.items():
        torch.testing.assert_close(updates[name], update, **CLOSE)
        assert update.abs().max() > 1e-4, name
    assert recorded["update.value_head"].abs().max() > 1e-3


def test_parity_of_update(full):
    full.train()
    assert_same_update(full)


def test_parity_of_update_with_adapter_critic(tmp_path, monkeypatch):
    """TRL 1.12 trains the whole critic; the recording has a critic with an adapter, as ours."""
    replay = Replay("critic", tmp_path, monkeypatch)
    replay.train()
    theirs = {k for k in replay.recorded if k.startswith("value_update.")}
    assert theirs == {k for k in replay.updates() if k.startswith("value_update.")}
    assert_same_update(replay)


def test_parity_of_second_epoch(tmp_path, monkeypatch):
    """With whitened rewards, a penalty for a missing end, and clipping of ratios and values."""
    replay = Replay("epochs", tmp_path, monkeypatch, head_only=True, **EPOCHS)
    experience = replay.train()
    for name in ("logprobs", "values", "advantages", "returns"):
        torch.testing.assert_close(experience[name], replay.recorded[name], **CLOSE)
    for ours, theirs in STATISTICS.items():
        expected = replay.recorded[theirs][1].item()
        assert replay.logged(ours, epoch=1) == pytest.approx(expected, abs=1e-5), ours
    statistics = {name: replay.recorded[name][1].item() for name in STATISTICS.values()}
    assert statistics["approxkl_stats"] > 1e-3
    assert abs(statistics["ratio_stats"] - 1) > 1e-4
    assert statistics["pg_clipfrac_stats"] > 0
    assert statistics["vf_clipfrac_stats"] > 0
    assert_same_update(replay)


def test_difference_score_is_on_last_token(tmp_path, monkeypatch):
    """TRL 1.12 puts the score one position later, on the first pad, and trains a value for that pad."""
    replay = Replay("ended", tmp_path, monkeypatch)
    experience, recorded = replay.train(), replay.recorded
    for name in ("logprobs", "ref_logprobs"):  # equal except for padding
        torch.testing.assert_close(
            experience[name][experience["mask"]], recorded[name][experience["mask"]], **CLOSE
        )
    torch.testing.assert_close(
        experience["values"][experience["mask"]], recorded["values"][experience["mask"]], **CLOSE
    )
    for row, length in enumerate(experience["mask"].sum(1).tolist()):
        theirs = recorded["rewards"][row].clone()
        if length < theirs.shape[0]:
            assert theirs[length].abs() > 0  # their score, after the end
            theirs[length - 1] += theirs[length]
            theirs[length:] = 0
        # our rewards by hand: −β·kl, plus the score at the last token
        kl = recorded["logprobs"][row] - recorded["ref_logprobs"][row]
        kl = torch.where(experience["mask"][row], kl, torch.zeros(()))
        ours = -SETTINGS["kl_coef"] * kl
        ours[length - 1] += recorded["scores"][row]
        torch.testing.assert_close(ours, theirs, **CLOSE)
    ends = experience["mask"].sum(1) < experience["mask"].shape[1]
    assert ends.any()
    assert not torch.allclose(experience["returns"][ends], recorded["returns"][ends], atol=1e-3)


def test_difference_no_value_loss_on_padding(tmp_path, monkeypatch):
    """TRL 1.12's value loss is a mean over real tokens and the first pad of each row."""
    replay = Replay("ended", tmp_path, monkeypatch)
    experience, recorded = replay.train(), replay.recorded
    theirs = 0.5 * (recorded["values"] - recorded["returns"]) ** 2
    counted = ~recorded["padding_mask_p1"]
    assert torch.equal(counted.sum(1), (experience["mask"].sum(1) + 1).clamp_max(7))
    assert recorded["vf_loss_stats"].item() == pytest.approx(
        theirs[counted].mean().item(), abs=1e-5
    )
    ours = 0.5 * (experience["values"] - experience["returns"]) ** 2
    ours = ours[experience["mask"]].mean().item()
    assert replay.logged("loss/value_avg") == pytest.approx(ours, abs=1e-5)
    assert abs(ours - recorded["vf_loss_stats"].item()) > 1e-3
    assert not experience["values"][~experience["mask"]].any()
    assert recorded["values"][counted & ~experience["mask"]].all()


def test_difference_rewards_are_whitened_over_real_tokens(tmp_path, monkeypatch):
    """TRL 1.12 counts also the first pad of each row, where it has put the score."""
    replay = Replay("whitened", tmp_path, monkeypatch, whiten_rewards=True)
    rewards = rewards_of_gae(monkeypatch)
    experience, recorded = replay.train(), replay.recorded
    counted = ~recorded["padding_mask_p1"]
    assert recorded["rewards"][counted].std().item() == pytest.approx(1.0, abs=1e-4)
    ours = rewards[0][replay.rows()]
    assert ours[experience["mask"]].std().item() == pytest.approx(1.0, abs=1e-4)
    assert not ours[~experience["mask"]].any()
    assert abs(recorded["rewards"][experience["mask"]].std().item() - 1) > 0.01


def test_difference_eos_ends_completion_by_default(tmp_path, monkeypatch):
    """TRL 1.12 without `stop_token` scores and trains on tokens after EOS."""
    recorded = part("unstopped.")
    ends = (recorded["responses"] == 2).float()
    assert ends.any(1).sum() == 6 and ends.argmax(1).tolist() != [6] * 8
    assert not recorded["padding_mask"].any()
    replay = Replay("unstopped", tmp_path, monkeypatch)
    # tests/sampling/test_decoding.py tests where sampling stops
    assert replay.trainer.rollouts.stop == [2]
    experience = Replay("ended", tmp_path, monkeypatch).train()
    assert sorted(experience["mask"].sum(1).tolist()) == [1, 2, 3, 4, 5, 6, 7, 7]


def test_difference_custom_stop_token_is_not_penalised(tmp_path, monkeypatch):
    """TRL 1.12 penalises every completion without EOS, also after a stop token."""
    replay = Replay("stopped", tmp_path, monkeypatch, stop=STOP, missing_eos_penalty=1.0)
    replay.train()
    recorded = replay.recorded
    stopped = (recorded["responses"] == STOP).any(1)
    assert stopped.sum() == 6
    score = replay.logged("objective/scores")
    assert recorded["scores"].mean().item() == pytest.approx(score - 1.0, abs=1e-5)
    penalised = replay.logged("objective/rlhf_reward") - replay.logged("objective/non_score_reward")
    assert penalised == pytest.approx(score - 2 / 8, abs=1e-5)


PIECES = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}


def test_difference_tokens_weigh_equally_in_micro_batches(tmp_path, monkeypatch):
    """TRL 1.12 averages micro-batch means: splitting eight rows of different length changes the update."""
    whole, pieces = part("whole."), part("pieces.")
    assert torch.equal(whole["query_responses"], pieces["query_responses"])
    torch.testing.assert_close(whole["advantages"], pieces["advantages"])
    ours = []
    for name, sizes in (("whole", {}), ("pieces", PIECES)):
        replay = Replay(name, tmp_path / name, monkeypatch, **sizes)
        replay.train()
        ours.append(replay.updates())
    difference = 0.0
    for name in ours[0]:
        torch.testing.assert_close(ours[1][name], ours[0][name], **CLOSE)
        if name in whole:
            difference = max(difference, (whole[name] - pieces[name]).abs().max().item())
    assert difference > 0.1


def test_difference_gradients_are_clipped_together(tmp_path, monkeypatch):
    """TRL 1.12 ignores `max_grad_norm`. Ours clips the gradients of policy and value together."""
    theirs = norm({k: v for k, v in part("critic.").items() if "update." in k})
    free = Replay("critic", tmp_path / "free", monkeypatch)
    free.train()
    clipped = Replay("critic", tmp_path / "clipped", monkeypatch, max_grad_norm=1.0)
    clipped.train()
    before, after = free.updates(), clipped.updates()
    bias = 0.0 - clipped.roles.heads[VALUE].bias.detach()  # of our head; theirs has none
    assert theirs > 1.5 and norm(before) == pytest.approx(theirs, abs=1e-4)
    assert norm(after | {"bias": bias}) == pytest.approx(1.0, abs=1e-4)
    scale = norm(after) / norm(before)
    for name, update in before.items():  # policy and value have the same factor
        torch.testing.assert_close(after[name], scale * update, **CLOSE)


def norm(updates):
    """Norm of the gradient behind these updates of plain gradient descent."""
    total = sum((u.double() ** 2).sum().item() for u in updates.values())
    return total**0.5 / LEARNING_RATE


def test_difference_statistics_ignore_empty_slots(tmp_path, monkeypatch):
    """TRL 1.12 divides by unused slots: a ratio of 1 is logged as 0.25."""
    theirs = part("slots.")["ratio_stats"]
    assert theirs.shape == (1, 4, 4) and (theirs != 0).sum() == 4
    assert theirs.mean().item() == pytest.approx(0.25, abs=1e-5)
    sizes = {"per_device_train_batch_size": 2, "num_mini_batches": 4}
    replay = Replay("slots", tmp_path, monkeypatch, **sizes)
    replay.train()
    assert replay.logged("val/ratio") == pytest.approx(1.0, abs=1e-5)


def test_difference_critic_is_saved_and_training_resumes(tmp_path, monkeypatch):
    """TRL 1.12's `train` has no argument, and `save_model` writes only the policy."""
    with safe_open(FILE, "pt") as file:
        metadata = file.metadata()
    assert metadata["trl"] == "1.12.0"
    assert json.loads(metadata["train"]) == ["self"]
    saved = json.loads(metadata["saved"])
    assert "adapter_model.safetensors" in saved
    assert not [name for name in saved if "value" in name or "head" in name or "score" in name]
    Replay("full", tmp_path, monkeypatch).trainer.save_model()
    assert {f.name for f in (tmp_path / "value").iterdir()} >= {
        "adapter_model.safetensors",
        "head.safetensors",
    }


def test_difference_statistics_ignore_padding(tmp_path, monkeypatch):
    """TRL 1.12 averages approx_kl, entropy and ratio over padding too."""
    replay = Replay("ended", tmp_path, monkeypatch)
    experience = replay.train()
    mask = experience["mask"]
    assert mask.sum() < mask.numel()
    entropy = replay.recorded["entropy_stats"].item()
    assert replay.logged("policy/entropy_avg") != pytest.approx(entropy, abs=1e-3)
    expected = _entropy_over_real_tokens(replay)
    assert replay.logged("policy/entropy_avg") == pytest.approx(expected, abs=1e-5)
    # their value at padding, which is not a log-probability
    assert (replay.recorded["logprobs"][~mask] == 1.0).all()
    assert not experience["logprobs"][~mask].any()


def _entropy_over_real_tokens(replay):
    """Computed row by row from a second copy of the recorded policy."""
    roles, total, tokens = recorded_roles(), 0.0, 0
    with roles.using(POLICY) as model, torch.no_grad():
        experience = replay.trainer.experience
        for prompt, completion in zip(experience.prompts, experience.completions, strict=True):
            logits = model(input_ids=torch.tensor([prompt + completion])).logits[0]
            p = (logits[len(prompt) - 1 : -1] / SETTINGS["temperature"]).softmax(-1)
            total += -(p * p.log()).sum().item()
            tokens += len(completion)
    return total / tokens
