"""The reward model's adapter: how it starts, what it reads, and its export as adapter and head."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft import set_peft_model_state_dict as set_state
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from toolkit.data.ranking import ranking_id
from toolkit.errors import CheckpointError, ConfigError
from toolkit.models.adapters import read_adapter, write_adapter
from toolkit.models.base import check_fingerprint, save_fingerprint
from toolkit.models.heads import ScalarHead
from toolkit.models.passes import by_tokens, collate, scores
from toolkit.models.peft_methods import NEEDS_LORA, build_peft_config
from toolkit.reward.ranking import score_layer
from toolkit.sampling.generation import Prompt, encode_completion, encode_prompt

if TYPE_CHECKING:
    from trl import ModelConfig


def scalar_adapter(
    base: PreTrainedModel,
    base_fingerprint: dict[str, str],
    *,
    parent: str | None,
    model: "ModelConfig",
) -> PeftModel:
    """An adapter for a reward model, started from the parent's (the SFT adapter) where there is one.

    The linear head starts with weights of std 1/√(d+1), as in Ziegler et al. 2019, and is float32
    on any base.

    Raises: CheckpointError if the parent is of another base or not LoRA; ConfigError without both
        a parent and `use_peft`.
    """
    weights: dict[str, torch.Tensor] = {}
    if parent is not None:
        check_fingerprint(Path(parent), base_fingerprint)
        config, weights = read_adapter(Path(parent))
    else:
        config = build_peft_config(model, base)
        if config is None:
            raise ConfigError("without a parent a new adapter is trained: set `use_peft: true`")
    if not isinstance(config, LoraConfig) or isinstance(config, AdaLoraConfig):
        raise CheckpointError(
            f"{parent or 'peft_method'}: a reward model cannot be {config.peft_type.value}, since "
            f"{NEEDS_LORA}"
        )
    config.task_type, config.modules_to_save, config.inference_mode = "SEQ_CLS", ["score"], False
    adapted = get_peft_model(base, config)
    if weights:
        own = get_peft_model_state_dict(adapted)
        extra = sorted(set(weights) - set(own))
        if extra:
            raise CheckpointError(
                f"{parent}: a reward model starts from LoRA weights alone, got {extra[0]}"
            )
        set_state(adapted, {k: v for k, v in own.items() if k not in weights} | weights)
    head = score_layer(adapted).float()  # PEFT copies it in the base's precision
    nn.init.normal_(head.weight, std=(head.weight.shape[1] + 1) ** -0.5)
    return adapted


def tokenize_pairs(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, *, max_length: int | None, place: str
) -> Dataset:
    """`chosen_ids` and `rejected_ids` as PPO will see them: prompt, completion, and EOS the last.

    `number` says which of the rows it is. TRL's own tokenization keeps what a template writes after
    EOS, so that the reward would be read at a token that no sampled completion has. Pairs longer
    than `max_length` tokens are left out, and how many is said. A ranking is of one prompt: pairs of
    several that share a `group_id` (all of a document, say) are several rankings, which is said too.
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
    _say_shared(rows, encoded, place=place)
    if max_length is None:
        return encoded
    short = encoded.filter(
        lambda row: max(len(row["chosen_ids"]), len(row["rejected_ids"])) <= max_length
    )
    if len(short) < len(encoded):
        left_out = len(encoded) - len(short)
        print(f"{place}: {left_out} of {len(encoded)} pairs are longer than {max_length} tokens")
    if len(short) == 0:
        raise ConfigError(f"{place}: no pair has at most {max_length} tokens; raise `max_length`")
    return short


def _say_shared(rows: Dataset, encoded: Dataset, *, place: str) -> None:
    if "group_id" not in rows.column_names:
        return
    given, made = (len(set(table["group_id"]) - {None}) for table in (rows, encoded))
    if made > given:
        print(
            f"{place}: {given} values of `group_id` stand at {made} prompts: each prompt is a ranking of "
            "its own"
        )


def short_enough(
    rows: list[tuple[Prompt, Prompt]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None,
    place: str,
) -> list[tuple[Prompt, Prompt]]:
    """The (prompt, completion) rows of at most `max_length` tokens; how many are longer is said."""
    if max_length is None or not rows:
        return rows
    short = []
    for prompt, said in rows:
        ids = encode_prompt(tokenizer, prompt) + encode_completion(tokenizer, prompt, said)
        short += [(prompt, said)] if len(ids) <= max_length else []
    if len(short) < len(rows):
        left_out = len(rows) - len(short)
        print(f"{place}: {left_out} of {len(rows)} rows are longer than {max_length} tokens")
    if not short:
        raise ConfigError(f"{place}: no row has at most {max_length} tokens; raise `max_length`")
    return short


def score_texts(
    adapted: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[tuple[Prompt, Prompt]],
    *,
    most_tokens: int,
) -> torch.Tensor:
    """Raw scores `(N,)` of (prompt, completion) rows, read at each completion's last token."""
    encoded = [
        (encode_prompt(tokenizer, prompt), encode_completion(tokenizer, prompt, said))
        for prompt, said in rows
    ]
    return score_pairs(adapted, tokenizer, encoded, most_tokens=most_tokens)


@torch.no_grad()
def score_pairs(
    adapted: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: list[tuple[list[int], list[int]]],
    *,
    most_tokens: int,
) -> torch.Tensor:
    """Raw scores `(N,)` of token ids of prompts and completions, so many tokens at a time."""
    prompts, completions = [p for p, _ in pairs], [c for _, c in pairs]
    head = _head(adapted)
    found = torch.zeros(len(pairs), device=head.weight.device)
    adapted.eval()
    assert isinstance(tokenizer.pad_token_id, int)
    for index in by_tokens(prompts, completions, most_tokens):
        batch = collate(
            [prompts[i] for i in index],
            [completions[i] for i in index],
            tokenizer.pad_token_id,
            head.weight.device,
        )
        found[index] = scores(adapted, head, batch)
    return found


def export(
    adapted: PeftModel,
    folder: Path,
    base_fingerprint: dict[str, str],
) -> None:
    """Write the adapter without its head as plain PEFT for the causal base, and the head beside it."""
    weights = {k: v for k, v in get_peft_model_state_dict(adapted).items() if ".score." not in k}
    config: Any = adapted.peft_config["default"]
    config.task_type, config.modules_to_save = "CAUSAL_LM", None
    write_adapter(folder, config, weights)
    save_fingerprint(folder, base_fingerprint)
    save_head(adapted, folder, bias=0.0)


def save_head(adapted: PeftModel, folder: Path, *, bias: float, scale: float = 1.0) -> None:
    """Write the score layer as a role's head.

    Args:
        bias: added to every score; minus the demonstrations' mean makes them average 0.
        scale: that scores are multiplied with before.
    """
    _head(adapted, bias=bias, scale=scale).save(folder)


def restore(
    base: PreTrainedModel, folder: Path, base_fingerprint: dict[str, str], *, model: "ModelConfig"
) -> PeftModel:
    """An exported reward model on the base with a scalar head; scores are without its bias."""
    adapted = scalar_adapter(base, base_fingerprint, parent=str(folder), model=model)
    weight = ScalarHead.load(folder).weight
    with torch.no_grad():
        score_layer(adapted).weight.copy_(weight)
    return adapted


def widen(adapted: PeftModel) -> None:
    """Make what was trained float32, as a role has it: on a 4-bit base TRL trains it in bfloat16."""
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def detach(adapted: PeftModel) -> PreTrainedModel:
    """The base as it was before `scalar_adapter`, frozen; its own head was never read."""
    base: PreTrainedModel = adapted.unload()
    base.requires_grad_(False)
    return base


def _head(adapted: PeftModel, *, bias: float = 0.0, scale: float = 1.0) -> ScalarHead:
    """The score layer as a role's head."""
    weight = scale * score_layer(adapted).weight.detach().float()  # (1, d)
    head = ScalarHead(weight.shape[1]).to(weight.device)
    head.load_state_dict({"weight": weight, "bias": torch.tensor([bias])})
    return head
