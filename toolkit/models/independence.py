"""Tests that a model's output for one row does not depend on the other rows of the batch.

They run the model on rows as long as the run's, since some models compute long rows differently:
rotary embeddings of the types `dynamic` and `longrope` depend on the longest row of a batch.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.errors import ConfigError

LIMIT = 1e-3  # largest relative difference of states or logits, in float32
LIMIT_LOW_PRECISION = 0.05
COMPARED = 8  # tokens; their median ignores a token that a router of experts assigns otherwise


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients inside the block; afterwards each module has its earlier mode."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def example(causal: Any, length: int, number: int = 0) -> list[int]:
    """Token ids of an example row; each `number` gives another row."""
    vocabulary = int(causal.get_input_embeddings().weight.shape[0])
    return [(1 + number + i * i * (2 * number + 3)) % 61 % vocabulary for i in range(length)]


def as_ids(causal: Any, rows: list[list[int]] | Tensor) -> Tensor:
    """Rows of one length as a tensor on the model's device."""
    return torch.as_tensor(rows, device=causal.get_input_embeddings().weight.device)


def has_low_precision(causal: Any, states: Tensor) -> bool:
    """Whether the model computes these states in less than float32's precision."""
    autocast = torch.is_autocast_enabled(states.device.type)
    return autocast or states.dtype != torch.float32 or getattr(causal, "is_quantized", False)


def name_of(causal: Any) -> str:
    """The model's name and class, for messages."""
    return f"{causal.config.name_or_path or 'the base'}: {type(causal).__name__}"


def independent_length(config: Any) -> int | None:
    """The length up to which rotary embeddings ignore the longest row; None without a limit."""
    rope = getattr(config, "rope_parameters", None) or {}
    limits = []
    for parameters in (rope, *rope.values()):  # of all layers, or by the type of layer
        kind = parameters.get("rope_type") if isinstance(parameters, dict) else None
        if kind == "longrope":
            limits.append(parameters["original_max_position_embeddings"])
        elif kind == "dynamic":
            limits.append(config.max_position_embeddings)
    return min(limits, default=None)


def context_of(config: Any) -> int | None:
    """Length in tokens of the longest row that can share a batch; None without a limit (ALiBi)."""
    limits = (getattr(config, "max_position_embeddings", None), independent_length(config))
    return min((n for n in limits if n is not None), default=None)


def check_padded_rows(
    causal: Any, shortest: int, longest: int, *, shorten: str, one_per_batch: bool = False
) -> None:
    """Compare a short row computed alone with the same row after, or in a batch with, a long row.

    Args:
        causal: a causal language model, or a classifier on the trunk of one.
        shortest, longest: lengths of the run's rows in tokens.
        shorten: the options that limit the length of rows, for the message.
        one_per_batch: the run never puts two rows into one batch.

    Raises: ConfigError if the states of the short row differ, also from those of its first half, or
        are not finite.
    """
    most = independent_length(causal.config.get_text_config())
    length = min(shortest, most or shortest)
    half = -(-length // 2)
    trunk, rows = causal.base_model, [example(causal, n, n) for n in (longest, shortest)]
    batch, attention = torch.zeros(2, longest, dtype=torch.long), torch.zeros(2, longest).long()
    for number, row in enumerate(rows):
        batch[number, : len(row)] = torch.tensor(row)
        attention[number, : len(row)] = 1

    def states(ids: Tensor, attended: Tensor) -> Tensor:
        ids, attended = as_ids(causal, ids), as_ids(causal, attended)
        out = trunk(input_ids=ids, attention_mask=attended, use_cache=False)
        last: Tensor = out.last_hidden_state[-1, :shortest]
        return last

    with evaluating(causal):
        states(batch[1:, :1], attention[1:, :1])  # reverts the changes of an earlier long row
        whole, prefix = (states(batch[1:, :n], attention[1:, :n]) for n in (length, half))
        alone = states(batch[1:, :shortest], attention[1:, :shortest])
        before = {name: buffer.clone() for name, buffer in causal.named_buffers()}
        if one_per_batch:
            states(batch[:1], attention[:1])
            together = states(batch[1:, :shortest], attention[1:, :shortest])
        else:
            together = states(batch, attention)
        changed = [
            name
            for name, buffer in causal.named_buffers()
            if name in before and buffer.shape == before[name].shape
            if not torch.equal(buffer, before[name])
        ]
    if not bool(torch.isfinite(alone).all()):
        raise ConfigError(
            f"{name_of(causal)} computes values that are not finite for a row of {shortest} tokens; "
            "load it with another `dtype`, or download it again"
        )
    if not _close(causal, prefix[-COMPARED:], whole[:half][-COMPARED:]):
        raise ConfigError(
            f"{name_of(causal)}: the model's output for a token depends on later tokens, so it cannot "
            "learn to write text token by token; use a causal language model"
        )
    if changed or not _close(causal, together[-COMPARED:], alone[-COMPARED:]):
        limit = "" if most is None else f" to at most {most} tokens"
        raise ConfigError(
            f"{name_of(causal)}: a row of {longest} tokens changes the model's output for shorter "
            f"rows{f' (its {changed[0]})' if changed else ''}, so the numbers of a row would depend on "
            f"the rows beside it; limit the length of rows with {shorten}{limit}, or use another base"
        )


def check_packed_rows(
    causal: Any, collate: Callable[[list[dict[str, Any]]], dict[str, Any]], first: int, second: int
) -> None:
    """Compare the logits of a row computed alone and after another row in one packed row.

    Args:
        causal: the model, with the attention that the run uses.
        collate: TRL's collator, which makes positions and boundaries of packed rows.
        first, second: lengths of the two rows in tokens.

    Raises: ConfigError if the logits differ, or the model fails.
    """
    rows = [example(causal, n, n) for n in (first, second)]
    batch = collate([{"input_ids": rows[0] + rows[1], "seq_lengths": [first, second]}])
    device = as_ids(causal, [[0]]).device
    batch = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
    batch.pop("labels")
    fix = "set `packing: false` and `padding_free: false`, or try another `attn_implementation`"
    with evaluating(causal):
        alone = causal(input_ids=as_ids(causal, rows[1:]), use_cache=False).logits[0, :COMPARED]
        try:
            packed = causal(**batch, use_cache=False).logits[0, first : first + COMPARED]
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"{name_of(causal)} cannot train on packed rows ({type(error).__name__}: {reason}); {fix}"
            ) from error
    if not _close(causal, packed, alone):
        raise ConfigError(
            f"{name_of(causal)} with attn_implementation {causal.config._attn_implementation} does not "
            f"keep packed rows apart: a row's tokens would depend on the row before it; {fix}"
        )


def _close(causal: Any, states: Tensor, expected: Tensor) -> bool:
    """Whether two tensors of states or logits, `(n, d)`, are equal except for rounding."""
    limit = LIMIT_LOW_PRECISION if has_low_precision(causal, expected) else LIMIT
    states, expected = states.float(), expected.float()
    difference = (states - expected).norm(dim=-1) / expected.norm(dim=-1)
    return bool(difference.median() <= limit)
