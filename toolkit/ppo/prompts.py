"""PPO's prompts: encoded once and checked for room, and drawn a rollout at a time."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import PreTrainedTokenizerBase

from toolkit.errors import ConfigError
from toolkit.models.roles import Roles
from toolkit.ppo.config import PPOConfig
from toolkit.sampling.generation import encode_prompt, require_room


class RolloutSampler(Sampler[int]):
    """Prompt indices, a rollout at a time, each rollout repeated once per micro-batch made of it.

    Every pass over the prompts has an order of its own, drawn from `seed` and the pass's number,
    so that a resumed run draws the same prompts.
    """

    def __init__(self, size: int, *, rollouts: int, batch: int, repeat: int, seed: int) -> None:
        self.size, self.rollouts, self.batch, self.repeat = size, rollouts, batch, repeat
        self.seed = seed

    def __len__(self) -> int:
        return self.rollouts * self.batch * self.repeat

    def __iter__(self) -> Iterator[int]:
        drawn = self._endless()
        for _ in range(self.rollouts):
            rows = [next(drawn) for _ in range(self.batch)]
            for _ in range(self.repeat):
                yield from rows

    def _endless(self) -> Iterator[int]:
        number = 0
        while True:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
            yield from torch.randperm(self.size, generator=generator).tolist()
            number += 1


def require_prompts(rows: Dataset) -> None:
    """Raises: ConfigError for what is no dataset, or has no column of prompts."""
    if not isinstance(rows, Dataset):
        raise ConfigError(f"PPO needs a datasets.Dataset of prompts, got {type(rows).__name__}")
    if "prompt" not in rows.column_names:
        raise ConfigError(
            f"PPO needs a column `prompt`, text or messages, got {', '.join(rows.column_names)}; "
            "tokenized prompts are not taken, since reward functions and logs need the text"
        )


def encode_prompts(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, roles: Roles, args: PPOConfig
) -> Dataset:
    """The rows with `prompt_ids`; a prompt that leaves no room for a completion is refused.

    Raises: ConfigError for rows without prompts, or prompts of no or of too many tokens.
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
            left_out = len(encoded) - len(short)
            print(f"{left_out} of {len(encoded)} prompts have more than {limit} tokens: left out")
        if len(short) == 0:
            raise ConfigError(f"no prompt has at most `max_prompt_length` {limit} tokens")
        encoded = short
    lengths = list(map(len, encoded["prompt_ids"]))
    if 0 in lengths:
        raise ConfigError(f"prompt {lengths.index(0)} of {len(lengths)} has no token: it is empty")
    require_room(
        lengths,
        roles.base,
        args.response_length,
        option="response_length",
        fix="Leave them out with `max_prompt_length`, or lower `response_length`",
    )
    return encoded


def _encode(tokenizer: PreTrainedTokenizerBase, prompt: Any, number: int) -> list[int]:
    said = isinstance(prompt, list) and all(isinstance(message, dict) for message in prompt)
    if not isinstance(prompt, str) and not (said and prompt):
        raise ConfigError(f"prompt {number} must be text or messages, got {prompt!r}")
    if said and tokenizer.chat_template is None:
        raise ConfigError("prompts are messages, but the tokenizer has no chat template")
    return encode_prompt(tokenizer, prompt)


def encode_texts(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, args: PPOConfig
) -> list[list[int]]:
    """Token ids of pretraining texts, cut at `ptx_max_length`; texts of one token teach nothing.

    Raises: ConfigError where there are texts but none of two tokens.
    """
    encoded = [tokenizer(text)["input_ids"][: args.ptx_max_length] for text in texts]
    long_enough = [ids for ids in encoded if len(ids) > 1]
    if texts and not long_enough:
        raise ConfigError(f"none of the {len(texts)} pretraining texts has two tokens or more")
    return long_enough
