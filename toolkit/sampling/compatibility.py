"""A short test of a base's head, sampling and scoring, before it is used.

Models differ in how they change their logits and in what they cache between two tokens. An unsupported
model would fail in its first rollout or, worse, train on wrong numbers.
"""

from typing import Any

import torch
from torch import Tensor

from toolkit.errors import ConfigError
from toolkit.kernels import kernels_enabled
from toolkit.kernels.chunked_logprobs import VocabularyHead
from toolkit.kernels.packing import supports_shared_rows
from toolkit.models.independence import (
    as_ids,
    check_padded_rows,
    evaluating,
    example,
    has_low_precision,
    name_of,
)
from toolkit.models.passes import collate, policy_pass
from toolkit.sampling.decoding import growing_cache, keep_rows, pad_left, read

LIMIT = 1e-2  # largest difference of log-probabilities in nats, in float32
LIMIT_LOW_PRECISION = 0.25  # with half-precision states or a quantized base
LEAST = 4  # tokens of the longest row of a test


def check_supported(
    causal: Any, *, shortest: int = 3, longest: int = LEAST, shorten: str = ""
) -> None:
    """Test a causal language model's head, its sampling and its scoring on a few rows.

    Args:
        shortest, longest: the lengths of a run's rows in tokens, prompt and completion together.
        shorten: the options that limit the length of rows, for the message.

    Raises: ConfigError that names the model and the unsupported part.
    """
    longest = max(longest, LEAST)
    lengths = [longest, max(2, min(shortest, longest - 1))]
    with evaluating(causal):
        try:
            check_padded_rows(causal, lengths[1], longest, shorten=shorten)
            _check_head(causal)
            rows = [example(causal, length, number) for number, length in enumerate(lengths)]
            alone = torch.stack([_last_states(causal, row) for row in rows])  # (2, 2, d)
            _check_sampling(causal, rows, alone[:, 1])
            _check_scoring(causal, rows, alone[:, 0])
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200] or "no reason given"
            raise ConfigError(
                f"{name_of(causal)} fails when completions are scored or sampled token by token "
                f"({type(error).__name__}: {reason}); use another base"
            ) from error


def _last_states(causal: Any, row: list[int]) -> Tensor:
    """The hidden states of a row's last two tokens, `(2, d)`, computed in a batch of one row."""
    ids = as_ids(causal, [row])
    states: Tensor = causal.base_model(input_ids=ids, use_cache=False).last_hidden_state
    return states[0, -2:]


def _check_head(causal: Any) -> None:
    """Compare `VocabularyHead` with the model's own logits."""
    ids = as_ids(causal, [example(causal, LEAST)])
    states = causal.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
    expected = causal(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
    logprobs = VocabularyHead.of(causal).logits(states).log_softmax(-1)
    difference = float((logprobs - expected).abs().max())
    if not difference <= _limit(causal, states):
        raise ConfigError(
            f"{name_of(causal)} computes its logits in an unsupported way: log-probabilities differ by "
            f"{difference:.2g} nats; use another base, or add the computation to "
            "toolkit.kernels.chunked_logprobs.VocabularyHead"
        )


def _check_sampling(causal: Any, rows: list[list[int]], alone: Tensor) -> None:
    """Compare rows alone with a batch of unequal rows that one row has left and one token extended."""
    difference = _difference(causal, _sampled_states(causal, rows), alone)
    if not difference <= _limit(causal, alone):
        raise ConfigError(
            f"{name_of(causal)} gives different log-probabilities when rows of unequal length are sampled "
            f"token by token: they differ by {difference:.2g} nats; use another base"
        )


def _sampled_states(causal: Any, rows: list[list[int]]) -> Tensor:
    """The last states of the rows, `(2, d)`, computed as `decode` does."""
    cache = growing_cache(causal)
    prompts = [row[:-1] for row in rows]
    tokens, attention = pad_left([*prompts, prompts[1]], 0)
    ids = as_ids(causal, tokens)
    attention = attention.to(ids.device)
    read(causal, ids, attention, cache)
    kept = torch.arange(len(rows), device=ids.device)
    keep_rows(cache, kept)
    attention = torch.cat([attention[kept], attention.new_ones(len(rows), 1)], dim=1)
    return read(causal, as_ids(causal, [row[-1:] for row in rows]), attention, cache)


def _check_scoring(causal: Any, rows: list[list[int]], alone: Tensor) -> None:
    """Check that a row has the same log-probabilities alone and in a batch, packed if kernels are on."""
    long, short = rows
    scored = [long, example(causal, len(short), 2), short]
    prompts, last = [row[:-1] for row in scored], [row[-1:] for row in scored]
    batch = collate(prompts, last, 0, alone.device)
    states = policy_pass(causal, batch, temperature=1.0).states[[0, 2]]  # before the last token
    difference = _difference(causal, states, alone)
    if not difference <= _limit(causal, alone):
        is_packed = kernels_enabled() and supports_shared_rows(causal)
        fix = "set `attn_implementation: eager`, which packs no rows" if is_packed else ""
        raise ConfigError(
            f"{name_of(causal)} gives a row different log-probabilities when it is scored together with "
            f"other rows: they differ by {difference:.2g} nats; {fix or 'use another base'}"
        )


def _difference(causal: Any, states: Tensor, alone: Tensor) -> float:
    """The largest mean difference of log-probabilities over the rows, in nats.

    Weighted by probability: half precision makes the tail of a large vocabulary differ much.
    """
    head = VocabularyHead.of(causal)
    logprobs, expected = (head.logits(h).log_softmax(-1) for h in (states, alone))
    return float((expected.exp() * (logprobs - expected).abs()).sum(-1).max())


def _limit(causal: Any, states: Tensor) -> float:
    return LIMIT_LOW_PRECISION if has_low_precision(causal, states) else LIMIT
