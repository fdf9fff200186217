"""A base tried on a few tokens before anything is learnt or said with it.

Models differ in what they do to their logits and in what they keep between two tokens. What is wrong
there either ends a run in its first rollout or, worse, lets it learn from other numbers than the model's.
"""

from typing import Any

import torch
from torch import Tensor

from toolkit.errors import ConfigError
from toolkit.kernels.chunked_logprobs import VocabularyHead
from toolkit.sampling.decoding import growing_cache, keep_rows, pad_left, read

MOST = 1e-2  # nats that two ways of a model may be apart in float32,
MOST_ROUNDED = 0.25  # and where states, or what they are multiplied with, are rounded to less
LONG, SHORT, NEXT = [1, 2, 3], [4, 5], [6, 7]  # rows of tokens, and what follows each


@torch.no_grad()
def check_supported(causal: Any) -> None:
    """Try a causal language model's head and its sampling on a few tokens.

    Raises: ConfigError naming the model, and which of both it does in a way of its own or not at all.
    """
    modes = {module: module.training for module in causal.modules()}
    causal.eval()
    try:
        _try_head(causal)
        _try_sampling(causal)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200] or "no reason given"
        raise ConfigError(
            f"{_name(causal)} fails where answers are read or sampled token by token "
            f"({type(error).__name__}: {reason}); take another base"
        ) from error
    finally:
        for module, training in modes.items():
            module.training = training


def _try_head(causal: Any) -> None:
    """The head, as it is known here, must say what the model itself says."""
    ids = _ids(causal, [LONG])
    states = causal.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
    theirs = causal(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
    ours = VocabularyHead.of(causal).logits(states).log_softmax(-1)
    apart = float((ours - theirs).abs().max())
    if not apart <= _most(causal, states):
        raise ConfigError(
            f"{_name(causal)} makes its logits in a way that is not known here: log-probabilities are "
            f"off by {apart:.2g} nats; take another base, or teach "
            "toolkit.kernels.chunked_logprobs.VocabularyHead its way"
        )


def _try_sampling(causal: Any) -> None:
    """Rows of unequal length, one that has left and one token more: as each row read by itself."""
    head = VocabularyHead.of(causal)
    wanted = [
        causal.base_model(input_ids=_ids(causal, [[*row, token]]), use_cache=False)
        for row, token in zip((LONG, SHORT), NEXT, strict=True)
    ]
    alone = torch.cat([said.last_hidden_state[:, -1] for said in wanted])
    theirs, ours = (head.logits(h).log_softmax(-1) for h in (alone, _sampled(causal)))
    # by what is likely: in half precision the tail of a large vocabulary is far apart in any two passes
    apart = float((theirs.exp() * (ours - theirs).abs()).sum(-1).max())
    if not apart <= _most(causal, alone):
        raise ConfigError(
            f"{_name(causal)} says something else when it is sampled from token by token, in rows of "
            f"unequal length: log-probabilities are off by {apart:.2g} nats; take another base"
        )


def _sampled(causal: Any) -> Tensor:
    """The last states, `(2, d)`, of both rows as `decode` would come to them."""
    cache = growing_cache(causal)
    tokens, seen = pad_left([LONG, SHORT, LONG], 0)
    ids = _ids(causal, tokens)
    seen = seen.to(ids.device)
    read(causal, ids, seen, cache)
    stay = torch.tensor([0, 1], device=ids.device)
    keep_rows(cache, stay)
    seen = torch.cat([seen[stay], seen.new_ones(2, 1)], dim=1)
    return read(causal, _ids(causal, [[token] for token in NEXT]), seen, cache)


def _ids(causal: Any, rows: list[list[int]] | Tensor) -> Tensor:
    weight = causal.get_input_embeddings().weight
    ids: Tensor = torch.as_tensor(rows, device=weight.device)
    return ids % int(weight.shape[0])  # a toy's vocabulary, too


def _most(causal: Any, states: Tensor) -> float:
    rounded = states.dtype != torch.float32 or getattr(causal, "is_quantized", False)
    return MOST_ROUNDED if rounded else MOST


def _name(causal: Any) -> str:
    return f"{causal.config.name_or_path or 'the base'}: {type(causal).__name__}"
