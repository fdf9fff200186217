"""Rollouts: sample completions from the policy, run every role on them, and score them."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TrainerState

from toolkit.errors import RewardError
from toolkit.models.heads import ScalarHead
from toolkit.models.passes import (
    Batch,
    by_length,
    collate,
    policy_pass,
    scores,
    spread,
    state_values,
)
from toolkit.models.roles import POLICY, REFERENCE, VALUE, Roles
from toolkit.models.tokenizer import stop_ids
from toolkit.reward.functions import (
    RewardContext,
    RewardFunction,
    Samples,
    call_reward_functions,
    require_rewards,
    weighted_sum,
)
from toolkit.sampling.decoding import Decoded
from toolkit.sampling.generation import sample
from toolkit.sampling.settings import Sampling

Metrics = dict[str, float]  # numbers for the log, by name


@dataclass
class Rollout:
    """Sampled completions with each role's per-token outputs. T is the longest completion's length.

    `prompts` and `completions` are token ids per row. The tensors are `(B, T)`; `mask` is True on
    completion tokens; all other tensors are zero elsewhere. Log-probabilities are in nats.
    """

    prompts: list[list[int]]
    completions: list[list[int]]
    mask: Tensor
    logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor


@dataclass
class RolloutScores:
    """The scores of a rollout's completions, in reward units."""

    raw: Tensor  # (B,), reward models and functions together
    penalties: Tensor  # (B,), for length and for a missing end
    penalised: Tensor  # (B,), clipped and minus penalties: PPO's objective
    ended: Tensor  # (B,) bool, whether the completion ends with a stop token
    samples: Samples
    metrics: Metrics
    columns: dict[str, list[Any]]  # values per completion that reward functions stored
    sources: dict[
        str, Tensor
    ]  # (B,) of the reward models together, and of each function; NaN for None


@torch.no_grad()
def read_by_roles(
    roles: Roles,
    prompts: list[list[int]],
    decoded: Decoded,
    *,
    temperature: float,
    pad_id: int,
    batch_size: int,
    rescore: bool = True,
) -> tuple[Rollout, Tensor]:
    """Run reference, value, policy and reward models once each, in batches of similar length.

    Without a `ref` adapter the reference is the base with adapters disabled. A value that is only a
    head reads the policy's states and needs no pass; without a value, values are 0. Dropout must be off.

    Args:
        decoded: completions, with the log-probabilities and values computed during sampling.
        temperature: the temperature that `decoded` was sampled at.
        rescore: compute the policy's log-probabilities in an extra pass instead of using those of
            sampling. In float32 both agree within 1e-5; in lower precision, their difference would
            make the first policy ratios noisy.

    Returns: the rollout, and the reward models' scores `(M, B)`.
    """
    assert roles.model is not None
    has_value = VALUE in roles.heads
    value_head: Any = roles.heads[VALUE] if has_value else None
    value_adapter = VALUE in roles.model.peft_config
    reference = REFERENCE if REFERENCE in roles.model.peft_config else None
    completions, device = decoded.completions, next(roles.model.parameters()).device
    lengths = torch.tensor([len(c) for c in completions], device=device)
    shape = (len(prompts), max(1, *map(len, completions)))
    mask = torch.arange(shape[1], device=device) < lengths.unsqueeze(1)
    logprobs, values = (
        torch.zeros(shape, device=device) if sampled is None else sampled
        for sampled in (decoded.logprobs, decoded.values)
    )
    ref_logprobs = torch.zeros(shape, device=device)
    model_scores = torch.zeros((len(roles.rewards), len(prompts)), device=device)
    for rows in by_length(prompts, completions, batch_size):
        batch = collate([prompts[i] for i in rows], [completions[i] for i in rows], pad_id, device)
        width = batch.mask.shape[1]
        with roles.using(reference) as model:
            reference_pass = policy_pass(model, batch, temperature=temperature)
        ref_logprobs[rows, :width] = reference_pass.logprobs
        if value_adapter:
            with roles.using(VALUE) as model:
                values[rows, :width] = state_values(model, value_head, batch)
        if rescore or decoded.logprobs is None:
            with roles.using(POLICY) as model:
                own_pass = policy_pass(model, batch, temperature=temperature)
            logprobs[rows, :width] = own_pass.logprobs
            if has_value and not value_adapter:
                values[rows, :width] = spread(batch.mask, value_head(own_pass.states))
        model_scores[:, rows] = _read_rewards(roles, batch)
    return Rollout(prompts, completions, mask, logprobs, ref_logprobs, values), model_scores


@torch.no_grad()
def read_rewards(
    roles: Roles,
    prompts: list[list[int]],
    completions: list[list[int]],
    *,
    pad_id: int,
    batch_size: int,
) -> Tensor:
    """The reward models' scores `(M, B)`, in batches of similar length. Dropout must be off."""
    device = roles.base.get_input_embeddings().weight.device
    model_scores = torch.zeros((len(roles.rewards), len(prompts)), device=device)
    for rows in by_length(prompts, completions, batch_size) if roles.rewards else ():
        batch = collate([prompts[i] for i in rows], [completions[i] for i in rows], pad_id, device)
        model_scores[:, rows] = _read_rewards(roles, batch)
    return model_scores


def _read_rewards(roles: Roles, batch: Batch) -> Tensor:
    """The reward models' scores of a batch, `(M, B)`."""
    rows = []
    for name in roles.rewards:
        head = roles.heads[name]
        assert isinstance(head, ScalarHead)
        with roles.using(name) as model:
            rows.append(scores(model, head, batch))
    return torch.stack(rows) if rows else torch.zeros((0, len(batch.mask)))


def aggregate(model_scores: Tensor, *, how: str, std_coef: float) -> Tensor:
    """One score per completion, `(B,)`, from an ensemble.

    Args:
        model_scores: `(M, B)`, one row per reward adapter, reward units.
        how: "mean", "min", or "mean_minus_std".
        std_coef: λ of mean − λ·std (population standard deviation).

    Source: Coste et al. 2024, arXiv:2310.02743 (worst case and uncertainty-weighted optimization).
    """
    if how == "mean":
        return model_scores.mean(0)
    if how == "min":
        return model_scores.amin(0)
    if how == "mean_minus_std":
        return model_scores.mean(0) - std_coef * model_scores.std(0, unbiased=False)
    raise ValueError(f"how must be mean, min or mean_minus_std, got {how!r}")


def penalties(
    lengths: Tensor, ended: Tensor, *, missing_eos: float | None, per_token: float
) -> Tensor:
    """The penalties for length and for a missing end, in reward units. All `(B,)`.

    Args:
        lengths: tokens.
        ended: bool.
        missing_eos: penalty of a completion that did not end; None is 0.
        per_token: penalty of each token.
    """
    return per_token * lengths + (missing_eos or 0.0) * (~ended).float()


@dataclass
class RolloutMaker:
    """Makes rollouts from dataset rows, and scores them.

    The weighted sum of the reward `functions` is added to the reward models' score. `trainer_state`
    returns the trainer's state, for functions with that parameter.
    """

    roles: Roles
    args: Any  # a PPOConfig, or a config with its options of sampling and scoring
    tokenizer: PreTrainedTokenizerBase
    functions: Sequence[RewardFunction]
    trainer_state: Callable[[], TrainerState | None]

    def __post_init__(self) -> None:
        args, base = self.args, self.roles.base
        self.stop = stop_ids(base, self.tokenizer)
        quantized = getattr(base, "quantization_method", None) is not None
        # sampled in low precision, or in another precision than updates: ratios would not start at 1
        pad_id = self.tokenizer.pad_token_id
        assert isinstance(pad_id, int)
        self.pad_id, self.weights = pad_id, args.reward_weights
        self.rescore = quantized or base.dtype != torch.float32 or bool(args.bf16 or args.fp16)

    def make(self, rows: Sequence[dict[str, Any]]) -> tuple[Rollout, RolloutScores]:
        """Sample one completion per row, run every role on it once, and score it.

        Raises: RewardError, with the sample, for a reward that is not finite.
        """
        args, prompts = self.args, [row["prompt_ids"] for row in rows]
        start = time.perf_counter()
        decoded = self.sample(prompts)
        sampled = time.perf_counter()
        rollout, model_scores = read_by_roles(
            self.roles,
            prompts,
            decoded,
            temperature=args.temperature,
            pad_id=self.pad_id,
            batch_size=args.local_rollout_forward_batch_size,
            rescore=self.rescore,
        )
        seconds = {"time/generate": sampled - start, "time/score": time.perf_counter() - sampled}
        scores = self.score(rows, decoded.completions, model_scores)
        scores.metrics |= seconds
        return rollout, scores

    def sample(self, prompts: list[list[int]]) -> Decoded:
        """A completion of the policy for each prompt."""
        args, roles = self.args, self.roles
        assert roles.model is not None
        is_adapter = VALUE in roles.model.peft_config or VALUE not in roles.heads
        trunk_head: Any = None if is_adapter else roles.heads[VALUE]
        with roles.merged(POLICY) as policy:
            return sample(
                policy,
                prompts,
                sampling=Sampling(args.response_length, args.temperature),
                stop=self.stop,
                pad_id=self.pad_id,
                batch_size=args.generation_batch_size or args.local_rollout_forward_batch_size,
                value_head=trunk_head,
            )

    def score(
        self,
        rows: Sequence[dict[str, Any]],
        completions: list[list[int]],
        model_scores: Tensor,
    ) -> RolloutScores:
        """The summed scores of reward models and functions, checked, minus penalties.

        Args:
            rows: dataset rows with `prompt_ids`.
            completions: token ids, one completion per row.
            model_scores: `(M, B)`.

        Raises: RewardError, with the sample, for a reward that is not finite.
        """
        args, metrics, context = self.args, Metrics(), RewardContext()
        samples = self._samples(rows, completions)
        raw, sources = torch.zeros(len(rows), device=model_scores.device), {}
        if len(model_scores):
            raw = sources["reward_model"] = aggregate(
                model_scores, how=args.reward_aggregation, std_coef=args.reward_std_coef
            )
        if len(model_scores) > 1:
            metrics["objective/ensemble_std"] = float(model_scores.std(0, unbiased=False).mean())
        if self.functions:
            context.trainer_state = self.trainer_state()
            rewards = call_reward_functions(self.functions, samples, context)
            if not len(model_scores):
                require_rewards(rewards, samples)
            weights = self.weights or [1.0] * len(rewards)
            raw = raw + torch.tensor(weighted_sum(rewards, weights), device=raw.device)
            sources |= {name: torch.tensor(xs, device=raw.device) for name, xs in rewards.items()}
            for name in rewards:
                metrics[f"rewards/{name}/mean"] = float(sources[name].nanmean())
            metrics |= {name: sum(xs) / len(xs) for name, xs in context.metrics.items()}
        not_finite = (~torch.isfinite(raw)).nonzero().flatten().tolist()
        if not_finite:
            first = not_finite[0]
            text = self.tokenizer.decode(rows[first]["prompt_ids"] + completions[first])
            raise RewardError(
                f"the reward of {len(not_finite)} of {len(raw)} completions is not finite: "
                f"{raw[first].item()} for the first, {text!r}"
            )
        ends = [bool(ids) and ids[-1] in self.stop for ids in completions]
        ended = torch.tensor(ends, device=raw.device)
        subtracted = penalties(
            torch.tensor(list(map(len, completions)), device=raw.device),
            ended,
            missing_eos=args.missing_eos_penalty,
            per_token=args.length_penalty,
        )
        clip = args.reward_clip
        penalised = (raw if clip is None else raw.clamp(-clip, clip)) - subtracted
        return RolloutScores(
            raw, subtracted, penalised, ended, samples, metrics, context.columns, sources
        )

    def _samples(self, rows: Sequence[dict[str, Any]], completions: list[list[int]]) -> Samples:
        """The completions as text."""
        decode = self.tokenizer.decode
        texts = [decode(ids, skip_special_tokens=True) for ids in completions]
        others = [name for name in rows[0] if name not in ("prompt", "prompt_ids")]
        columns = {name: [row[name] for row in rows] for name in others}
        return Samples.of([row["prompt"] for row in rows], texts, completions, columns)
