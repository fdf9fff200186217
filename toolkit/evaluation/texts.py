"""Held-out pretraining text, whose loss shows what alignment cost."""

import itertools
import json
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from toolkit.errors import ConfigError
from toolkit.world.corpus import documents

HELD_OUT_STREAM = 10_000  # a seed of the corpus that pretraining never reads


def held_out_texts(
    source: str | None, tokenizer: PreTrainedTokenizerBase, *, count: int = 200
) -> list[str]:
    """Documents that no training saw.

    Args:
        source: `world:corpus`, a JSONL file with `text` per line, or nothing.

    Raises: ConfigError where the file cannot be read so.
    """
    if source is None:
        return []
    if source == "world:corpus":
        drawn = itertools.islice(documents(HELD_OUT_STREAM), count)
        return [
            d if isinstance(d, str) else str(tokenizer.apply_chat_template(d, tokenize=False))
            for d in drawn
        ]
    try:
        lines = Path(source).read_text(encoding="utf-8").splitlines()[:count]
        return [json.loads(line)["text"] for line in lines]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"evaluate: `texts` {source} must be JSONL with `text` ({error!r})"
        ) from error
