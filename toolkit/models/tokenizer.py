"""The base's tokenizer as every recipe uses it, and the tokens that end an answer."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from toolkit.errors import CheckpointError
from toolkit.models.templates import after_assistant, set_template, special_tokens


def load_tokenizer(
    name: str,
    *,
    revision: str | None = None,
    chat_template: str | None = None,
    parent: str | Path | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedTokenizerBase:
    """The base's tokenizer, padding on the left, its EOS the token that ends a turn of its template.

    A base model's own EOS often ends documents, while its chat template ends turns with another
    token (Qwen3's `<|endoftext|>` and `<|im_end|>`): an answer would be taught to end with the one
    and be waited for to end with the other. A missing pad token becomes the EOS token; masks never
    come from `ids != pad`, so that is safe here. For the chat template see `set_template`.
    """
    tokenizer = AutoTokenizer.from_pretrained(
        name, revision=revision, padding_side="left", trust_remote_code=trust_remote_code
    )
    if tokenizer.eos_token is None:
        raise CheckpointError(f"{name}: the tokenizer has no EOS token, so no answer could end")
    set_template(tokenizer, asked=chat_template, parent=parent)
    end = _end_of_turn(tokenizer)
    pad_by_eos(tokenizer)
    if end is not None:
        tokenizer.eos_token = end
    return tokenizer


def pad_by_eos(tokenizer: PreTrainedTokenizerBase) -> None:
    """A missing pad token becomes the EOS token; masks never come from `ids != pad`."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token


def _end_of_turn(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The special token that the chat template writes right after an assistant's words."""
    if tokenizer.chat_template is None:
        return None
    rest = after_assistant(tokenizer).lstrip()
    starts = [t for t in special_tokens(tokenizer) if rest.startswith(t)]
    return max(starts, key=len, default=None)


def stop_ids(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends a completion: the tokenizer's EOS and what the model declares."""
    declared = getattr(base.generation_config, "eos_token_id", None)
    listed = declared if isinstance(declared, list) else [] if declared is None else [declared]
    return list(dict.fromkeys([tokenizer.eos_token_id, *listed]))
