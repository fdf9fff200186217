"""Rows as the trainer reads them, decoded, with the tokens marked that carry the loss."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

OPEN, CLOSE = "⟦", "⟧"
MOST = 1200  # characters of a sample that are shown
IGNORED = -100


def shown_sample(
    recipe: str, row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, collator: Any
) -> list[tuple[str, str]]:
    """What a row is called and its text, tokens with a loss between ⟦ and ⟧.

    Args:
        recipe: sft, reward, dpo, kto or ppo.
        row: of the trainer's dataset.
        tokenizer: the base's.
        collator: SFT's, DPO's or KTO's own, which decides what carries a loss; the others need none.
    """
    if recipe == "ppo":
        ids = row["prompt_ids"]
        return [
            ("prompt, after which the policy speaks", _marked(ids, [False] * len(ids), tokenizer))
        ]
    if recipe == "reward":
        texts = []
        for rank, ids in enumerate(row["ids"]):
            at_end = [False] * (len(ids) - 1) + [True]  # where the score is read
            name = f"answer {rank + 1} of {len(row['ids'])}"
            texts.append((name, _marked(ids, at_end, tokenizer)))
        return texts
    batch = collator([row])
    if recipe == "sft":
        return [
            (
                "row",
                _marked(*_lists(batch["input_ids"][0], batch["labels"][0] != IGNORED), tokenizer),
            )
        ]
    names = ["chosen", "rejected"]
    if recipe == "kto":
        names = ["a good answer" if row["label"] else "a bad answer"]
    return [
        (name, _marked(*_real(batch, i, batch["completion_mask"][i] == 1), tokenizer))
        for i, name in enumerate(names)
    ]


def _real(batch: Any, row: int, mask: Any) -> tuple[list[int], list[bool]]:
    kept = batch["attention_mask"][row] == 1
    return _lists(batch["input_ids"][row][kept], mask[kept])


def _lists(ids: Any, mask: Any) -> tuple[list[int], list[bool]]:
    return ids.tolist(), mask.tolist()


def _marked(ids: Sequence[int], mask: Sequence[bool], tokenizer: PreTrainedTokenizerBase) -> str:
    """Decoded in runs of tokens with and without a loss, so that marks stand between whole tokens."""
    parts: list[str] = []
    start = 0
    for at in range(1, len(ids) + 1):
        if at == len(ids) or mask[at] != mask[start]:
            text = str(tokenizer.decode(list(ids[start:at])))
            parts.append(f"{OPEN}{text}{CLOSE}" if mask[start] else text)
            start = at
    whole = "".join(parts)
    if len(whole) <= MOST:
        return whole
    return f"{whole[: MOST // 2]} … {whole[-MOST // 2 :]}"
