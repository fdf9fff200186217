"""From prompts to what PPO learns from: sample, score, penalise, and estimate advantages."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TrainerState

from toolkit.errors import RewardError
from toolkit.models.roles import Roles
from toolkit.models.tokenizer import stop_ids
from toolkit.ppo.advantages import gae, kl_estimate, kl_rewards, masked_mean, whiten
from toolkit.ppo.config import PPOConfig
from toolkit.ppo.kl_control import KLController
from toolkit.ppo.rollout import Experience, Seen, roll_out
from toolkit.reward.rewards import (
    Answers,
    Aside,
    RewardFunction,
    aggregate,
    function_rewards,
    penalise,
    refuse_unjudged,
)
from toolkit.sampling.settings import Sampling

Notes = dict[str, float]  # what a rollout says for the log


class ExperienceMaker:
    """Makes rollouts; steers β by what their KL was.

    Args:
        roles: `default` and, as far as there are, `ref`, `value` and rewards.
        args: settings.
        tokenizer: the base's.
        reward_functions: Python functions whose weighted sum is added to the adapters' score.
        trainer_state: asked for the trainer's state, for functions that want it.
    """

    def __init__(
        self,
        roles: Roles,
        args: PPOConfig,
        *,
        tokenizer: PreTrainedTokenizerBase,
        reward_functions: Sequence[RewardFunction] = (),
        trainer_state: Callable[[], TrainerState | None] = lambda: None,
    ) -> None:
        self.roles, self.args, self.tokenizer = roles, args, tokenizer
        self.functions, self.trainer_state = list(reward_functions), trainer_state
        self.weights = list(args.reward_weights or [1.0] * len(self.functions))
        self.sampling = Sampling(args.response_length, args.temperature)
        self.stop = stop_ids(roles.base, tokenizer)
        quantized = getattr(roles.base, "quantization_method", None) is not None
        # sampled in lower precision, or scored in it later: the first ratio would not be 1
        low = roles.base.dtype != torch.float32 or args.bf16 or args.fp16
        self.rescore = quantized or low
        self.control = KLController(args.kl_coef, args.kl_target, args.kl_horizon)
        assert isinstance(tokenizer.pad_token_id, int)
        self.pad_id: int = tokenizer.pad_token_id

    def make(self, rows: Sequence[dict[str, Any]]) -> tuple[Experience, Notes]:
        """A rollout of the rows' prompts, `num_generations` completions each.

        Returns: experience with advantages (whitened over the rollout) and returns; and its notes.
        Raises: RewardError for a reward that cannot be trained on, showing the sample.
        """
        args = self.args
        rows = [row for row in rows for _ in range(args.num_generations)]
        experience, seen = self._roll_out(rows)
        raw, notes, _ = self._scores(rows, experience, seen)
        lengths = experience.mask.sum(1)
        score = self._penalised(raw, lengths, seen)
        kl = kl_estimate(experience.logprobs, experience.ref_logprobs, estimator=args.kl_estimator)
        beta = self.control.coef
        rewards = kl_rewards(score, kl, experience.mask, kl_coef=beta)
        if args.whiten_rewards:
            rewards = whiten(rewards, experience.mask, shift_mean=False)
        advantages, experience.returns = gae(
            rewards, experience.values, experience.mask, gamma=args.gamma, lam=args.lam
        )
        # over the whole rollout and never per micro-batch
        experience.advantages = whiten(advantages, experience.mask)
        summed = kl.masked_fill(~experience.mask, 0.0).sum(1)
        penalty = -beta * summed.mean()
        notes |= _numbers(
            {
                "objective/kl": summed.mean(),
                "objective/kl_coef": torch.tensor(beta),
                "objective/entropy": (-experience.logprobs).sum(1).mean(),
                "objective/non_score_reward": penalty,
                "objective/scores": raw.mean(),
                "objective/scores_std": raw.std(unbiased=False),
                "objective/rlhf_reward": penalty + score.mean(),
                "objective/length": lengths.float().mean(),
                "objective/ended": seen.ended.float().mean(),
                "val/num_eos_tokens": seen.ended.sum(),
                "val/explained_variance": _explained(experience),
            }
        )
        notes |= {f"time/{name}": took for name, took in seen.seconds.items()}
        self.control.update(summed.mean().item(), len(rows))
        return experience, notes

    def look(self, rows: Sequence[dict[str, Any]]) -> tuple[Notes, list[dict[str, Any]]]:
        """One completion of each row's prompt, measured and not learnt from.

        Returns: means over the rows; and each prompt and completion with its score, and what reward
            functions noted of it.
        """
        experience, seen = self._roll_out(rows)
        raw, _, columns = self._scores(rows, experience, seen)
        lengths = experience.mask.sum(1)
        score = self._penalised(raw, lengths, seen)
        kl = kl_estimate(
            experience.logprobs, experience.ref_logprobs, estimator=self.args.kl_estimator
        )
        kl = kl.masked_fill(~experience.mask, 0.0).sum(1)
        notes = _numbers(
            {
                "objective/scores": raw.mean(),
                "objective/kl": kl.mean(),
                "objective/rlhf_reward": (score - self.control.coef * kl).mean(),
                "objective/length": lengths.float().mean(),
                "objective/ended": seen.ended.float().mean(),
            }
        )
        answers = self._answers(rows, experience)
        samples = [
            {name: values[row] for name, values in columns.items()}
            | {"prompt": prompt, "completion": said, "score": round(score, 4)}
            for row, (prompt, said, score) in enumerate(
                zip(answers.prompts, answers.completions, raw.tolist(), strict=True)
            )
        ]
        return notes, samples

    def _roll_out(self, rows: Sequence[dict[str, Any]]) -> tuple[Experience, Seen]:
        """One completion per row, read by every role."""
        size = self.args.local_rollout_forward_batch_size
        return roll_out(
            self.roles,
            [row["prompt_ids"] for row in rows],
            sampling=self.sampling,
            stop=self.stop,
            pad_id=self.pad_id,
            batch_size=size,
            generation_batch_size=self.args.generation_batch_size or size,
            rescore=self.rescore,
        )

    def _penalised(self, raw: Tensor, lengths: Tensor, seen: Seen) -> Tensor:
        """Scores as PPO uses them, `(B,)`."""
        return penalise(
            raw,
            lengths,
            seen.ended,
            clip=self.args.reward_clip,
            missing_eos=self.args.missing_eos_penalty,
            per_token=self.args.length_penalty,
        )

    def _scores(
        self, rows: Sequence[dict[str, Any]], experience: Experience, seen: Seen
    ) -> tuple[Tensor, Notes, dict[str, list[Any]]]:
        """The score of each completion before penalties, `(B,)`, from all sources.

        Returns: it, notes for the log, and columns of a value per completion from reward functions.
        """
        total = torch.zeros(len(rows), device=experience.mask.device)
        notes: Notes = {}
        aside = Aside(self.trainer_state() if self.functions else None)
        if len(seen.scores):
            args = self.args
            total = aggregate(
                seen.scores, how=args.reward_aggregation, std_coef=args.reward_std_coef
            )
            if len(seen.scores) > 1:
                spread = seen.scores.std(0, unbiased=False).mean()
                notes["objective/ensemble_std"] = spread.item()
        if self.functions:
            answers = self._answers(rows, experience)
            added, each = function_rewards(self.functions, self.weights, answers, aside)
            if not len(seen.scores):
                refuse_unjudged(each, answers)
            total = total + added.to(total.device)
            notes |= _numbers({f"rewards/{n}/mean": x.nanmean() for n, x in each.items()})
            notes |= {name: sum(xs) / len(xs) for name, xs in aside.metrics.items()}
        bad = (~torch.isfinite(total)).nonzero().flatten().tolist()
        if bad:
            ids = experience.prompts[bad[0]] + experience.completions[bad[0]]
            raise RewardError(
                f"the reward of {len(bad)} of {len(total)} completions is not finite: "
                f"{total[bad[0]].item()} for the first, {self.tokenizer.decode(ids)!r}"
            )
        return total, notes, aside.columns

    def _answers(self, rows: Sequence[dict[str, Any]], experience: Experience) -> Answers:
        """A rollout as reward functions see it: completions are messages where prompts are."""
        texts = [self.tokenizer.decode(c, skip_special_tokens=True) for c in experience.completions]
        said = [
            text if isinstance(row["prompt"], str) else [{"role": "assistant", "content": text}]
            for row, text in zip(rows, texts, strict=True)
        ]
        others = [name for name in rows[0] if name not in ("prompt", "prompt_ids")]
        columns = {name: [row[name] for row in rows] for name in others}
        prompts = [row["prompt"] for row in rows]
        return Answers(prompts, said, experience.completions, columns)


def _explained(experience: Experience) -> Tensor:
    """Share of the returns' variance that the values explain; 1 is perfect, 0 a constant guess."""
    returns, mask = experience.returns, experience.mask
    variance = masked_mean((returns - masked_mean(returns, mask)) ** 2, mask)
    return 1 - masked_mean((returns - experience.values) ** 2, mask) / variance.clamp_min(1e-8)


def _numbers(tensors: dict[str, Tensor]) -> Notes:
    return {name: float(value) for name, value in tensors.items()}
