"""Sample completions of the active role, in batches of prompts of similar length."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from toolkit.data.encoding import Prompt, encode_prompt
from toolkit.errors import ConfigError
from toolkit.models.heads import ScalarHead
from toolkit.sampling.compatibility import check_supported
from toolkit.sampling.decoding import Decoded, decode
from toolkit.sampling.settings import Sampling


@dataclass(frozen=True)
class Completion:
    """Token ids, including a sampled stop token, and the text without special tokens."""

    ids: list[int]
    text: str
    ended: bool


def require_room(
    lengths: Sequence[int], base: PreTrainedModel, tokens: int, *, option: str, fix: str
) -> None:
    """Check that prompts leave room for a completion in the base's context.

    Args:
        lengths: tokens of each prompt.
        base: the model.
        tokens: length limit of a completion.
        option: name of the option that sets `tokens`.
        fix: last sentence of the message, with the user's next step.

    Raises: ConfigError that describes the first prompt that is too long.
    """
    # ALiBi has no position embeddings and no limit
    context = getattr(base.config.get_text_config(), "max_position_embeddings", None)
    if context is None:
        return
    room = context - tokens
    long = [row for row, length in enumerate(lengths) if length > room]
    if long:
        raise ConfigError(
            f"{len(long)} of {len(lengths)} prompts leave no room for `{option}` {tokens} in the base's "
            f"context: row {long[0]} has {lengths[long[0]]} tokens, at most {max(room, 0)} fit. {fix}"
        )


def check_sampling(base: PreTrainedModel, lengths: Sequence[int], tokens: int, *, fix: str) -> None:
    """Check that answers of `tokens` tokens fit, and that the base computes rows of such lengths alike.

    Args:
        lengths, fix: see `require_room`.

    Raises: the errors of `require_room` and `check_supported`.
    """
    require_room(lengths, base, tokens, option="max_new_tokens", fix=fix)
    check_supported(
        base,
        shortest=min(lengths) + 1,
        longest=max(lengths) + tokens,
        shorten="`max_new_tokens`",
    )


def sample(
    model: nn.Module,
    prompts: Sequence[list[int]],
    *,
    sampling: Sampling,
    stop: Sequence[int],
    pad_id: int,
    batch_size: int = 128,
    value_head: ScalarHead | None = None,
    seeds: Sequence[int] | None = None,
) -> Decoded:
    """A completion for each prompt's ids, in order, up to and including the first stop token.

    Prompts of similar length share a batch. See `decode`.

    Args:
        seeds: the seed of each completion; default: torch's global generator.
    """
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), prompts[i]))
    completions: list[list[int]] = [[] for _ in prompts]
    device = next(model.parameters()).device
    shape = (len(prompts), sampling.max_new_tokens)
    logprobs, values = torch.zeros(shape, device=device), torch.zeros(shape, device=device)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        decoded = decode(
            model,
            [prompts[i] for i in rows],
            max_new_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            stop=list(stop),
            pad_id=pad_id,
            value_head=value_head,
            numbers=None
            if seeds is None
            else random_numbers([seeds[i] for i in rows], sampling.max_new_tokens),
        )
        for i, ids in zip(rows, decoded.completions, strict=True):
            completions[i] = ids
        for whole, part in ((logprobs, decoded.logprobs), (values, decoded.values)):
            if part is not None:
                whole[rows, : part.shape[1]] = part
    width = max([1, *map(len, completions)])
    return Decoded(
        completions,
        logprobs[:, :width] if sampling.temperature > 0 else None,
        values[:, :width] if value_head is not None else None,
    )


def random_numbers(seeds: Sequence[int], count: int) -> Tensor:
    """`count` random numbers below 1 for each seed, `(len(seeds), count)`, float64."""
    generators = (torch.Generator().manual_seed(seed) for seed in seeds)
    return torch.stack([torch.rand(count, generator=g, dtype=torch.float64) for g in generators])


def cut_at_stop(ids: list[int], stop: Sequence[int]) -> list[int]:
    """`ids` up to and including the first stop token; all of them if there is no stop token."""
    for i, token in enumerate(ids):
        if token in stop:
            return ids[: i + 1]
    return ids


def complete(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    sampling: Sampling,
    stop: Sequence[int],
    batch_size: int = 128,
    seeds: Sequence[int] | None = None,
) -> list[Completion]:
    """Sample a completion for each prompt, in order. See `sample`."""
    assert tokenizer.pad_token_id is not None
    decoded = sample(
        model,
        [encode_prompt(tokenizer, p) for p in prompts],
        sampling=sampling,
        stop=stop,
        pad_id=tokenizer.pad_token_id,
        batch_size=batch_size,
        seeds=seeds,
    )
    return [
        Completion(
            ids, tokenizer.decode(ids, skip_special_tokens=True), bool(ids) and ids[-1] in stop
        )
        for ids in decoded.completions
    ]
