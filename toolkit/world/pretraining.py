"""The generated corpus as rows of equal width, for pretraining."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerBase

from toolkit.world.corpus import documents


class PackedCorpus(IterableDataset[dict[str, Tensor]]):
    """`rows` rows of `width` tokens, documents one after the other behind a start token each.

    The tokenizer's corpus and the training corpus come from different streams of the same seed.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, seed: int, rows: int, width: int
    ) -> None:
        self.tokenizer, self.seed, self.rows, self.width = tokenizer, seed, rows, width

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        left: list[int] = []
        made = 0
        for document in documents(self.seed + 1):
            left += encode_document(self.tokenizer, document)
            while len(left) >= self.width:
                row = torch.tensor(left[: self.width])
                left = left[self.width :]
                yield {"input_ids": row, "labels": row}
                made += 1
                if made == self.rows:
                    return


def encode_document(
    tokenizer: PreTrainedTokenizerBase, document: str | list[dict[str, str]]
) -> list[int]:
    """Token ids of one document, a start token first."""
    text = (
        document
        if isinstance(document, str)
        else str(tokenizer.apply_chat_template(document, tokenize=False))
    )
    return list(tokenizer(f"{tokenizer.bos_token}{text}", add_special_tokens=False)["input_ids"])
