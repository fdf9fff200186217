"""The generated corpus as rows of equal length, for pretraining."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerBase

from toolkit.world.corpus import Messages, documents


class PackedCorpus(IterableDataset[dict[str, Tensor]]):
    """`rows` rows of `width` tokens: documents one after another, each after a start token.

    The tokenizer is trained on the corpus of `seed`, so the model is trained on that of `seed + 1`.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, seed: int, rows: int, width: int
    ) -> None:
        self.tokenizer, self.seed, self.rows, self.width = tokenizer, seed, rows, width

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        tokens: list[int] = []
        count = 0
        for document in documents(self.seed + 1):
            tokens += encode_document(self.tokenizer, document)
            while len(tokens) >= self.width:
                row = torch.tensor(tokens[: self.width])
                tokens = tokens[self.width :]
                yield {"input_ids": row, "labels": row}
                count += 1
                if count == self.rows:
                    return


def encode_document(tokenizer: PreTrainedTokenizerBase, document: str | Messages) -> list[int]:
    """Token ids of one document after a start token."""
    if not isinstance(document, str):
        document = str(tokenizer.apply_chat_template(document, tokenize=False))
    return list(
        tokenizer(f"{tokenizer.bos_token}{document}", add_special_tokens=False)["input_ids"]
    )
