"""Scores and log-probabilities of many (prompt, completion) ids, batched by length, no gradient."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from toolkit.data.encoding import Prompt, encode_prompt
from toolkit.errors import CheckpointError, RewardError
from toolkit.models import independence
from toolkit.models.heads import ScalarHead
from toolkit.models.passes import Batch, by_length, collate, completion_logprobs, scores
from toolkit.models.roles import REWARD, Roles
from toolkit.reward.functions import (
    RewardContext,
    RewardFunction,
    Samples,
    call_reward_functions,
    require_rewards,
    weighted_sum,
)

Pair = tuple[list[int], list[int]]  # token ids of a prompt and of its completion


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The tokenizer's pad token, which `load_tokenizer` sets."""
    assert isinstance(tokenizer.pad_token_id, int)
    return tokenizer.pad_token_id


def evaluating(roles: Roles) -> AbstractContextManager[None]:
    """Disable gradients and dropout inside the block; afterwards restore all modules' modes."""
    return independence.evaluating(roles.model or roles.base)


def score_ids(
    roles: Roles, pairs: Sequence[Pair], *, reward: str = REWARD, pad_id: int, batch_size: int
) -> list[float]:
    """The reward role's score of each pair, in order.

    Raises: CheckpointError if the role has no adapter or no head.
    """
    if reward not in roles.heads:
        raise CheckpointError(
            f"role {reward!r} has no head to score with; attach it with `head=True`"
        )
    head = roles.heads[reward]
    assert isinstance(head, ScalarHead)
    return _over_pairs(
        roles, reward, pairs, lambda model, batch: scores(model, head, batch), pad_id, batch_size
    )


def score_answers(
    roles: Roles,
    pairs: Sequence[Pair],
    prompts: Sequence[Prompt],
    texts: Sequence[str],
    *,
    rewards: Sequence[str],
    functions: Sequence[RewardFunction] = (),
    columns: Mapping[str, Sequence[Any]] | None = None,
    pad_id: int,
    batch_size: int,
) -> list[float]:
    """The score of each answer: the mean of the reward roles' scores, plus the functions' sum, as in PPO.

    Args:
        pairs: the token ids of each prompt and answer.
        prompts, texts: the same prompts and answers, for the functions.
        rewards: the reward roles; may be empty if there are functions.
        columns: further columns of the prompts' rows, for the functions.

    Raises: RewardError for a score that is no finite number.
    """
    total = [0.0] * len(pairs)
    if rewards:
        batching = {"pad_id": pad_id, "batch_size": batch_size}
        each = [score_ids(roles, pairs, reward=reward, **batching) for reward in rewards]
        total = [sum(scores) / len(each) for scores in zip(*each, strict=True)]
    if functions:
        samples = Samples.of(
            list(prompts),
            texts,
            [ids for _, ids in pairs],
            {name: list(values) for name, values in (columns or {}).items()},
        )
        results = call_reward_functions(functions, samples, RewardContext())
        if not rewards:
            require_rewards(results, samples)
        total = [a + b for a, b in zip(total, weighted_sum(results), strict=True)]
    for score, text in zip(total, texts, strict=True):
        if not math.isfinite(score):
            raise RewardError(f"the score of the answer {text!r} is {score}, not a finite number")
    return total


def summed_logprobs(
    roles: Roles,
    pairs: Sequence[Pair],
    *,
    role: str | None,
    temperature: float,
    pad_id: int,
    batch_size: int,
) -> list[float]:
    """log π(completion | prompt) in nats for each pair, in order; role None is the base."""

    def one_batch(model: nn.Module, batch: Batch) -> Tensor:
        logprobs, _ = completion_logprobs(model, batch, temperature=temperature)
        return logprobs.sum(-1)  # (B,)

    return _over_pairs(roles, role, pairs, one_batch, pad_id, batch_size)


def lm_loss(
    roles: Roles,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    role: str | None,
    batch_size: int = 32,
    max_tokens: int = 1024,
) -> float | None:
    """Mean −log p per token of documents, in nats; None if no document has two tokens.

    A document starts with the BOS token if the tokenizer has one, and is truncated to `max_tokens`.
    """
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    documents = [encode_prompt(tokenizer, text) for text in texts]
    documents = [ids if ids[: len(bos)] == bos else bos + ids for ids in documents]
    pairs = [(ids[:1], ids[1:max_tokens]) for ids in documents if len(ids) > 1]
    if not pairs:
        return None
    sums = summed_logprobs(
        roles, pairs, role=role, temperature=1.0, pad_id=pad_id(tokenizer), batch_size=batch_size
    )
    return -sum(sums) / sum(len(rest) for _, rest in pairs)


def _over_pairs(
    roles: Roles,
    role: str | None,
    pairs: Sequence[Pair],
    one_batch: Callable[[nn.Module, Batch], Tensor],
    pad_id: int,
    batch_size: int,
) -> list[float]:
    """One number per pair, from batches of similar length."""
    prompts, completions = [p for p, _ in pairs], [c for _, c in pairs]
    values = [0.0] * len(pairs)
    with evaluating(roles), roles.using(role) as model:
        device = next(model.parameters()).device
        for index in by_length(prompts, completions, batch_size):
            batch = collate(
                [prompts[i] for i in index], [completions[i] for i in index], pad_id, device
            )
            for i, value in zip(index, one_batch(model, batch).tolist(), strict=True):
                values[i] = value
    return values
