"""Experience: per-token rewards, advantages and returns of a rollout, `(B, T)`, right-padded."""

import itertools
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from toolkit.models.passes import Batch, collate
from toolkit.models.weight_files import save_tensors
from toolkit.ppo.config import PPOConfig
from toolkit.ppo.rollout import Metrics, Rollout, RolloutScores


@dataclass
class Experience(Rollout):
    """A rollout with its advantages and returns, `(B, T)`, zero where `mask` is False."""

    advantages: Tensor
    returns: Tensor

    def __len__(self) -> int:
        return len(self.prompts)

    def rows(self, index: list[int], pad_id: int) -> tuple[Batch, dict[str, Tensor]]:
        """Select rows, and cut the columns that are padding in all of them.

        Returns: tokens, and `logprobs`, `values`, `advantages`, `returns` of the same width.
        """
        prompts = [self.prompts[i] for i in index]
        completions = [self.completions[i] for i in index]
        batch = collate(prompts, completions, pad_id, self.mask.device)
        width = batch.mask.shape[1]
        names = ("logprobs", "values", "advantages", "returns")
        return batch, {name: getattr(self, name)[index, :width] for name in names}

    def save(self, file: Path) -> None:
        """Write everything to one safetensors file, so that training resumes inside a rollout."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self)[2:]}
        for name in ("prompts", "completions"):
            rows = getattr(self, name)
            tensors[name] = torch.tensor([token for row in rows for token in row])
            tensors[name + "_lengths"] = torch.tensor([len(row) for row in rows])
        save_tensors(tensors, file)

    @classmethod
    def load(cls, file: Path, device: torch.device) -> "Experience":
        """Read a file that `save` wrote."""
        tensors = load_file(file)

        def rows(name: str) -> list[list[int]]:
            tokens = iter(tensors.pop(name).tolist())
            lengths = tensors.pop(name + "_lengths").tolist()
            return [list(itertools.islice(tokens, length)) for length in lengths]

        prompts, completions = rows("prompts"), rows("completions")
        return cls(prompts, completions, **{n: t.to(device) for n, t in tensors.items()})


def make_experience(
    rollout: Rollout, scores: RolloutScores, args: PPOConfig, *, kl_coef: float
) -> tuple[Experience, Metrics]:
    """Compute rewards, advantages (whitened over the rollout) and returns.

    Returns: the experience, and means over the rollout for the log. `kl_coef` is β, reward units per nat.
    """
    mask = rollout.mask
    kl = kl_estimate(rollout.logprobs, rollout.ref_logprobs, estimator=args.kl_estimator)
    rewards = kl_rewards(scores.penalised, kl, mask, kl_coef=kl_coef)
    if args.whiten_rewards:
        rewards = whiten(rewards, mask, shift_mean=False)
    advantages, returns = gae(rewards, rollout.values, mask, gamma=args.gamma, lam=args.lam)
    advantages = whiten(advantages, mask)  # over the whole rollout, never per micro-batch
    experience = Experience(**vars(rollout), advantages=advantages, returns=returns)
    completion_kl = kl.masked_fill(~mask, 0.0).sum(1).mean()
    variance = masked_mean((returns - masked_mean(returns, mask)) ** 2, mask)
    error = masked_mean((returns - rollout.values) ** 2, mask)
    metrics = {
        "objective/kl": completion_kl,
        "objective/entropy": (-rollout.logprobs).sum(1).mean(),
        "objective/non_score_reward": -kl_coef * completion_kl,
        "objective/scores": scores.raw.mean(),
        "objective/scores_std": scores.raw.std(unbiased=False),
        "objective/penalised_scores": scores.penalised.mean(),
        "objective/penalties_std": scores.penalties.std(unbiased=False),
        "objective/rlhf_reward": -kl_coef * completion_kl + scores.penalised.mean(),
        "objective/length": mask.sum(1).float().mean(),
        "objective/ended": scores.ended.float().mean(),
        "val/num_eos_tokens": scores.ended.sum(),
        # 1 if the values predict the returns exactly, 0 if they predict no better than a constant
        "val/explained_variance": 1 - error / variance.clamp_min(1e-8),
    }
    numbers = {name: float(value) for name, value in metrics.items()}
    return experience, numbers | {"objective/kl_coef": kl_coef}


@dataclass
class KLController:
    """Holds β, in reward units per nat; if there is a target, adapts β after every rollout.

    Args:
        coef: β at the start.
        target: the KL of policy and reference to reach, in nats per completion; None keeps β fixed.
        horizon: episodes over which β may change by a factor of about 1.2 at most.

    Source: Ziegler et al. 2019, arXiv:1909.08593, section 2.2.
    """

    coef: float
    target: float | None = None
    horizon: int = 10_000

    def update(self, kl: float, episodes: int) -> None:
        """Adapt β after a rollout of `episodes` completions with mean `kl`, in nats per completion."""
        if self.target is None:
            return
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.coef *= 1 + error * episodes / self.horizon


def kl_rewards(scores: Tensor, kl: Tensor, mask: Tensor, *, kl_coef: float) -> Tensor:
    """Per-token rewards: −β·kl at every token, plus the score at the last real token.

    Args:
        scores: `(B,)`, reward-model units.
        kl: `(B, T)`, per-token estimates in nats.
        mask: `(B, T)` bool, True on completion tokens.
        kl_coef: β, reward units per nat.

    Returns: `(B, T)`, zero on padding. A row without any real token gets no score.
    Raises: ValueError if shapes differ or a mask row has a gap.
    Source: Ziegler et al. 2019, arXiv:1909.08593, eq. 2.
    """
    check_mask(mask, kl)
    rewards = (-kl_coef * kl).masked_fill(~mask, 0.0)
    lengths = mask.sum(-1)
    rows = torch.arange(len(mask), device=mask.device)[lengths > 0]
    rewards[rows, lengths[rows] - 1] += scores[rows]
    return rewards


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, *, estimator: str) -> Tensor:
    """Per-token estimate of KL(policy ‖ reference) from samples of the policy, in nats.

    `k1` is unbiased and may be negative; `k3` is unbiased, never negative, of lower variance.
    Source: Schulman 2020, http://joschu.net/blog/kl-approx.html.
    """
    log_ratio = logprobs - ref_logprobs
    if estimator == "k1":
        return log_ratio
    if estimator == "k3":
        return torch.expm1(-log_ratio) + log_ratio
    raise ValueError(f"kl estimator must be k1 or k3, got {estimator!r}")


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimates over right-padded completions.

    Args:
        rewards: `(B, T)`, reward-model score units per token.
        values: `(B, T)`, V(s_t) before the update, same units.
        mask: `(B, T)` bool, True on completion tokens.
        gamma: per-token discount in [0, 1].
        lam: 1 is Monte Carlo, 0 is one-step TD.

    Returns: advantages and returns, `(B, T)`, zero on padding, not whitened.
    Raises: ValueError if shapes differ or a mask row has a gap.
    Source: Schulman et al. 2016, arXiv:1506.02438, eq. 16.
    """
    check_mask(mask, rewards, values)
    rewards, values = rewards.masked_fill(~mask, 0.0), values.masked_fill(~mask, 0.0)
    running = torch.zeros_like(rewards[:, 0])
    columns = []
    for t in reversed(range(rewards.shape[1])):
        following = values[:, t + 1] if t + 1 < rewards.shape[1] else torch.zeros_like(running)
        delta = rewards[:, t] + gamma * following - values[:, t]
        running = (delta + gamma * lam * running) * mask[:, t]
        columns.append(running)
    advantages = torch.stack(columns[::-1], dim=1)
    return advantages, advantages + values


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the True positions of a mask; 0 if there are none."""
    return (x * mask).sum() / mask.sum().clamp_min(1)


def whiten(x: Tensor, mask: Tensor, *, shift_mean: bool = True) -> Tensor:
    """Normalize to variance 1 (unbiased) and mean 0 over all True positions together.

    Args:
        shift_mean: False keeps the mean, which is usual for rewards.

    Returns: same shape as `x`, zero on padding.
    """
    mean = masked_mean(x, mask)
    count = mask.sum()
    variance = masked_mean((x - mean) ** 2, mask) * count / (count - 1).clamp_min(1)
    whitened = (x - mean) * torch.rsqrt(variance + 1e-8)
    if not shift_mean:
        whitened = whitened + mean
    return whitened.masked_fill(~mask, 0.0)


def check_mask(mask: Tensor, *others: Tensor) -> None:
    """Raise ValueError unless all shapes agree and no mask row has a gap."""
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool, got {mask.dtype}")
    for other in others:
        if other.shape != mask.shape:
            raise ValueError(
                f"expected shape {tuple(mask.shape)} like mask, got {tuple(other.shape)}"
            )
    if bool((mask[:, 1:] & ~mask[:, :-1]).any()):
        raise ValueError("a mask row has a gap: completions must be padded on the right only")
