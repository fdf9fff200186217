"""Pretraining text: held out, to measure what alignment costs, and to train on, to pay less."""

import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.errors import ConfigError
from toolkit.world.corpus import documents

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# seeds of the embedded world's corpus that its base was not pretrained on
HELD_OUT_STREAM, PTX_STREAM = 10_000, 10_001


def held_out_texts(
    source: str | None, tokenizer: "PreTrainedTokenizerBase", *, count: int = 200
) -> list[str]:
    """Documents that no training saw. See `pretraining_texts` for arguments and errors."""
    return _texts(source, tokenizer, count=count, stream=HELD_OUT_STREAM)


def pretraining_texts(
    source: str | None, tokenizer: "PreTrainedTokenizerBase", *, count: int = 20_000
) -> list[str]:
    """Documents to mix into PPO's updates.

    Args:
        source: `world:corpus`, a JSONL file with `text` per line, or nothing.
        count: take at most so many.

    Raises: ConfigError where the file cannot be read so.
    """
    return _texts(source, tokenizer, count=count, stream=PTX_STREAM)


def _texts(
    source: str | None, tokenizer: "PreTrainedTokenizerBase", *, count: int, stream: int
) -> list[str]:
    if source is None:
        return []
    if source == "world:corpus":
        drawn = itertools.islice(documents(stream), count)
        return [
            d if isinstance(d, str) else str(tokenizer.apply_chat_template(d, tokenize=False))
            for d in drawn
        ]
    try:
        with Path(source).open(encoding="utf-8") as file:
            # not splitlines(), which breaks at U+2028 too, which JSON may hold
            lines = itertools.islice(filter(str.strip, file), count)
            return [str(json.loads(line)["text"]) for line in lines]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{source}: must be JSONL with `text` ({error!r})") from error
