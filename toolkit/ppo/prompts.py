"""The prompts: tokenize them once, check that they fit the context, draw those of each rollout."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import PreTrainedTokenizerBase

from toolkit.data.encoding import encode_prompt
from toolkit.errors import ConfigError
from toolkit.models.roles import Roles
from toolkit.ppo.config import PPOConfig
from toolkit.sampling.generation import require_room


class PromptSampler(Sampler[int]):
    """Row numbers of each rollout's prompts, repeated once per micro-batch of the rollout.

    The order of each pass over the prompts is drawn from `seed` and the pass's number, so that a
    resumed run draws the same prompts.
    """

    def __init__(self, size: int, *, rollouts: int, batch: int, repeat: int, seed: int) -> None:
        self.size, self.rollouts, self.batch = size, rollouts, batch
        self.repeat, self.seed = repeat, seed

    def __len__(self) -> int:
        return self.rollouts * self.batch * self.repeat

    def __iter__(self) -> Iterator[int]:
        rows: list[int] = []
        passes = 0
        for _ in range(self.rollouts):
            while len(rows) < self.batch:
                generator = torch.Generator().manual_seed(self.seed * 1_000_003 + passes)
                rows += torch.randperm(self.size, generator=generator).tolist()
                passes += 1
            yield from rows[: self.batch] * self.repeat
            rows = rows[self.batch :]


def require_prompts(rows: Dataset) -> None:
    """Raise ConfigError unless `rows` is a dataset with a column `prompt`."""
    if not isinstance(rows, Dataset):
        raise ConfigError(
            f"training needs a datasets.Dataset of prompts, got {type(rows).__name__}"
        )
    if "prompt" not in rows.column_names:
        raise ConfigError(
            f"training needs a column `prompt` of texts or messages, got {', '.join(rows.column_names)}; "
            "rename the column. Tokenized prompts are not supported: reward functions and logs need text"
        )


def encode_prompts(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    roles: Roles,
    args: Any,
    *,
    option: str = "response_length",
) -> Dataset:
    """Add the column `prompt_ids`, and drop prompts longer than `max_prompt_length`.

    `option` is the name of the option that sets the length of an answer.

    Raises: ConfigError for rows without prompts, empty prompts, and prompts that leave no room for a
        completion in the base's context.
    """
    require_prompts(rows)
    encoded = rows.map(
        lambda row, number: {"prompt_ids": _encode(tokenizer, row["prompt"], number)},
        with_indices=True,
        desc="Tokenizing",
    )
    limit = args.max_prompt_length
    if limit is not None:
        short = encoded.filter(lambda row: len(row["prompt_ids"]) <= limit)
        if len(short) < len(encoded):
            dropped = len(encoded) - len(short)
            print(f"{dropped} of {len(encoded)} prompts were dropped: more than {limit} tokens")
        if len(short) == 0:
            raise ConfigError(f"no prompt has at most {limit} tokens; raise `max_prompt_length`")
        encoded = short
    lengths = list(map(len, encoded["prompt_ids"]))
    if 0 in lengths:
        raise ConfigError(f"prompt {lengths.index(0)} of {len(lengths)} is empty; remove this row")
    require_room(
        lengths,
        roles.base,
        args.response_length,
        option=option,
        fix=f"Drop them with `max_prompt_length`, or lower `{option}`",
    )
    return encoded


def _encode(tokenizer: PreTrainedTokenizerBase, prompt: Any, number: int) -> list[int]:
    messages = isinstance(prompt, list) and prompt and all(isinstance(m, dict) for m in prompt)
    if not isinstance(prompt, str) and not messages:
        raise ConfigError(f"prompt {number} must be text or messages, got {prompt!r}")
    if messages and tokenizer.chat_template is None:
        raise ConfigError(
            "prompts are messages, but there is no chat template; set `chat_template`"
        )
    return encode_prompt(tokenizer, prompt)


def encode_texts(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, args: PPOConfig
) -> list[list[int]]:
    """Token ids of pretraining texts, truncated to `ptx_max_length`; one-token texts are left out.

    Raises: ConfigError if no text has two tokens, because the first token is not predicted.
    """
    encoded = [encode_prompt(tokenizer, text)[: args.ptx_max_length] for text in texts]
    encoded = [ids for ids in encoded if len(ids) > 1]
    if texts and not encoded:
        raise ConfigError(
            f"none of {len(texts)} pretraining texts has two tokens; use longer texts"
        )
    return encoded
