"""A short test of a base's head and sampling, before anything is trained or sampled with it.

Models differ in what they do with their logits and in what they cache between two tokens. An unsupported
model would fail in its first rollout or, worse, train on wrong numbers.
"""

from typing import Any

import torch
from torch import Tensor

from toolkit.errors import ConfigError
from toolkit.kernels.chunked_logprobs import VocabularyHead
from toolkit.sampling.decoding import growing_cache, keep_rows, pad_left, read

LIMIT = 1e-2  # largest difference of log-probabilities in nats, in float32
LIMIT_LOW_PRECISION = 0.25  # with half-precision states or a quantized base
LONG, SHORT, NEXT = [1, 2, 3], [4, 5], [6, 7]  # two rows of tokens, and the next token of each


@torch.no_grad()
def check_supported(causal: Any) -> None:
    """Test a causal language model's head and its sampling on a few tokens.

    Raises: ConfigError that names the model, and whether its head or its sampling is not supported.
    """
    modes = {module: module.training for module in causal.modules()}
    causal.eval()
    try:
        _check_head(causal)
        _check_sampling(causal)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200] or "no reason given"
        raise ConfigError(
            f"{_name(causal)} fails when completions are scored or sampled token by token "
            f"({type(error).__name__}: {reason}); use another base"
        ) from error
    finally:
        for module, training in modes.items():
            module.training = training


def _check_head(causal: Any) -> None:
    """Compare `VocabularyHead` with the model's own logits."""
    ids = _ids(causal, [LONG])
    states = causal.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
    expected = causal(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
    logprobs = VocabularyHead.of(causal).logits(states).log_softmax(-1)
    difference = float((logprobs - expected).abs().max())
    if not difference <= _limit(causal, states):
        raise ConfigError(
            f"{_name(causal)} computes its logits in an unsupported way: log-probabilities differ by "
            f"{difference:.2g} nats; use another base, or add the computation to "
            "toolkit.kernels.chunked_logprobs.VocabularyHead"
        )


def _check_sampling(causal: Any) -> None:
    """Compare rows of unequal length, after one has left and one token was added, with each row alone."""
    head = VocabularyHead.of(causal)
    outputs = [
        causal.base_model(input_ids=_ids(causal, [[*row, token]]), use_cache=False)
        for row, token in zip((LONG, SHORT), NEXT, strict=True)
    ]
    alone = torch.cat([output.last_hidden_state[:, -1] for output in outputs])
    expected, logprobs = (head.logits(h).log_softmax(-1) for h in (alone, _sampled_states(causal)))
    # Weighted by probability: in half precision, two passes differ much in the tail of a large vocabulary.
    difference = float((expected.exp() * (logprobs - expected).abs()).sum(-1).max())
    if not difference <= _limit(causal, alone):
        raise ConfigError(
            f"{_name(causal)} gives other log-probabilities when rows of unequal length are sampled "
            f"token by token: they differ by {difference:.2g} nats; use another base"
        )


def _sampled_states(causal: Any) -> Tensor:
    """The last states of both rows, `(2, d)`, computed as `decode` does."""
    cache = growing_cache(causal)
    tokens, attention = pad_left([LONG, SHORT, LONG], 0)
    ids = _ids(causal, tokens)
    attention = attention.to(ids.device)
    read(causal, ids, attention, cache)
    kept = torch.tensor([0, 1], device=ids.device)
    keep_rows(cache, kept)
    attention = torch.cat([attention[kept], attention.new_ones(2, 1)], dim=1)
    return read(causal, _ids(causal, [[token] for token in NEXT]), attention, cache)


def _ids(causal: Any, rows: list[list[int]] | Tensor) -> Tensor:
    weight = causal.get_input_embeddings().weight
    ids: Tensor = torch.as_tensor(rows, device=weight.device)
    return ids % int(weight.shape[0])  # for very small vocabularies


def _limit(causal: Any, states: Tensor) -> float:
    low = states.dtype != torch.float32 or getattr(causal, "is_quantized", False)
    return LIMIT_LOW_PRECISION if low else LIMIT


def _name(causal: Any) -> str:
    return f"{causal.config.name_or_path or 'the base'}: {type(causal).__name__}"
