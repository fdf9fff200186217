"""The reward model's adapter and head: initialization, tokenized pairs, scores and export."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from peft import (
    AdaLoraConfig,
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from toolkit.data.encoding import Prompt, encode_completion, encode_prompt
from toolkit.data.ranking import ranking_id
from toolkit.errors import CheckpointError, ConfigError
from toolkit.models.adapters import read_adapter, write_adapter
from toolkit.models.base import check_fingerprint, save_fingerprint
from toolkit.models.heads import ScalarHead
from toolkit.models.passes import by_tokens, collate, scores
from toolkit.models.peft_methods import NEEDS_LORA, build_peft_config
from toolkit.reward.ranking import score_layer

if TYPE_CHECKING:
    from trl import ModelConfig

Pair = tuple[list[int], list[int]]  # token ids of a prompt and of a completion


def scalar_adapter(
    base: PreTrainedModel,
    base_fingerprint: dict[str, str],
    *,
    parent: str | None,
    model: "ModelConfig",
) -> PeftModel:
    """Attach a reward model's trainable adapter and head; the adapter starts from any parent's.

    The head's weights start with std 1/√(d+1), as in Ziegler et al. 2019, in float32 on any base.

    Args:
        base: a base with a scalar head; see `load_base`.
        parent: an SFT run, or None.
        model: the options of a new adapter, used if there is no parent.

    Raises: CheckpointError if the parent belongs to another base or is not LoRA; ConfigError if there is
        neither a parent nor `use_peft`.
    """
    weights: dict[str, torch.Tensor] = {}
    if parent is not None:
        check_fingerprint(Path(parent), base_fingerprint)
        config, weights = read_adapter(Path(parent))
    else:
        config = build_peft_config(model, base)
        if config is None:
            raise ConfigError(
                "a reward model without a parent needs a new adapter: set use_peft: true"
            )
    if not isinstance(config, LoraConfig) or isinstance(config, AdaLoraConfig):
        raise CheckpointError(
            f"{parent or 'peft_method'}: a reward model cannot be {config.peft_type.value}; "
            f"{NEEDS_LORA}"
        )
    config.task_type, config.modules_to_save, config.inference_mode = "SEQ_CLS", ["score"], False
    adapted = get_peft_model(base, config)
    if weights:
        initial = get_peft_model_state_dict(adapted)
        extra = sorted(set(weights) - set(initial))
        if extra:
            raise CheckpointError(
                f"{parent}: a reward model can only start from LoRA weights, got {extra[0]}"
            )
        set_peft_model_state_dict(adapted, initial | weights)
    head = score_layer(adapted).float()  # PEFT copies it in the base's precision
    nn.init.normal_(head.weight, std=(head.weight.shape[1] + 1) ** -0.5)
    return adapted


def tokenize_pairs(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, *, max_length: int | None, place: str
) -> Dataset:
    """Tokenize preference rows like PPO's episodes: prompt, completion, and EOS at the end.

    TRL's own tokenization keeps the text that a template writes after EOS, so it would read the score at a
    token that sampled completions lack. Pairs of more than `max_length` tokens are left out. A `group_id`
    of several prompts becomes several rankings, because a ranking has one prompt. The numbers of both are
    printed.

    Args:
        place: the split's name, for messages.

    Returns: `chosen_ids`, `rejected_ids`, and `number`, the row's number in `rows`; also `margin` and
    `group_id` if `rows` have them.
    Raises: ConfigError if no pair is within `max_length`.
    """

    def encode(row: dict[str, Any], number: int) -> dict[str, Any]:
        prompt = encode_prompt(tokenizer, row["prompt"])
        ids: dict[str, Any] = {
            f"{side}_ids": prompt + encode_completion(tokenizer, row["prompt"], row[side])
            for side in ("chosen", "rejected")
        }
        if row.get("group_id") is not None:
            ids["group_id"] = ranking_id(row)
        return ids | {"number": number}

    keep = {"margin", "group_id"} & set(rows.column_names)
    dropped = [name for name in rows.column_names if name not in keep]
    encoded = rows.map(
        encode, with_indices=True, remove_columns=dropped, desc=f"Tokenizing {place}"
    )
    if "group_id" in rows.column_names:
        groups, rankings = (len(set(t["group_id"]) - {None}) for t in (rows, encoded))
        if rankings > groups:
            print(
                f"{place}: some of the {groups} values of `group_id` have several prompts; they become "
                f"{rankings} rankings, one per prompt"
            )
    if max_length is None:
        return encoded
    short = encoded.filter(
        lambda row: max(len(row["chosen_ids"]), len(row["rejected_ids"])) <= max_length
    )
    _report_long(len(encoded), len(short), "pair", max_length=max_length, place=place)
    return short


def short_enough(
    rows: list[tuple[Prompt, Prompt]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None,
    place: str,
) -> list[tuple[Prompt, Prompt]]:
    """The (prompt, completion) rows of at most `max_length` tokens; prints how many are left out.

    Raises: ConfigError if no row is within `max_length`.
    """
    if max_length is None or not rows:
        return rows
    encoded = zip(rows, encode_pairs(tokenizer, rows), strict=True)
    short = [row for row, (prompt, rest) in encoded if len(prompt) + len(rest) <= max_length]
    _report_long(len(rows), len(short), "row", max_length=max_length, place=place)
    return short


def _report_long(total: int, kept: int, unit: str, *, max_length: int, place: str) -> None:
    if kept < total:
        print(f"{place}: {total - kept} of {total} {unit}s are longer than {max_length} tokens")
    if kept == 0:
        raise ConfigError(f"{place}: no {unit} has at most {max_length} tokens; raise `max_length`")


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[tuple[Prompt, Prompt]]
) -> list[Pair]:
    """Token ids of (prompt, completion) rows."""
    return [
        (encode_prompt(tokenizer, prompt), encode_completion(tokenizer, prompt, completion))
        for prompt, completion in rows
    ]


@torch.no_grad()
def score_pairs(
    adapted: PeftModel, head: ScalarHead, pairs: list[Pair], *, pad_id: int, most_tokens: int
) -> torch.Tensor:
    """Scores `(N,)` of pairs of prompt ids and completion ids, `most_tokens` tokens per pass."""
    prompts, completions = [p for p, _ in pairs], [c for _, c in pairs]
    device = head.weight.device
    result = torch.zeros(len(pairs), device=device)
    adapted.eval()
    for rows in by_tokens(prompts, completions, most_tokens):
        batch = collate([prompts[i] for i in rows], [completions[i] for i in rows], pad_id, device)
        result[rows] = scores(adapted, head, batch)
    return result


def export(adapted: PeftModel, folder: Path, base_fingerprint: dict[str, str]) -> ScalarHead:
    """Write the adapter as plain PEFT files for the causal base, and the head as a separate file.

    Returns: the head, with bias 0.
    """
    weights = {k: v for k, v in get_peft_model_state_dict(adapted).items() if ".score." not in k}
    config: Any = adapted.peft_config["default"]
    config.task_type, config.modules_to_save = "CAUSAL_LM", None
    write_adapter(folder, config, weights)
    save_fingerprint(folder, base_fingerprint)
    weight = score_layer(adapted).weight.detach().float()  # (1, d)
    head = ScalarHead(weight.shape[1]).to(weight.device)
    head.load_state_dict({"weight": weight, "bias": torch.zeros(1)})
    head.save(folder)
    return head.requires_grad_(False)
