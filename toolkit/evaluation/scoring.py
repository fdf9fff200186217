"""Scores and log-probabilities of many (prompt, completion) ids, batched by length, no gradient."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from toolkit.errors import CheckpointError
from toolkit.models import independence
from toolkit.models.heads import ScalarHead
from toolkit.models.passes import Batch, by_length, collate, completion_logprobs, scores
from toolkit.models.roles import REWARD, Roles

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
