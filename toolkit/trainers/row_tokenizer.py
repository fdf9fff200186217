"""Tokenization inside TRL's trainers, with the same token ids as in all other recipes."""

from typing import Any

from transformers import PreTrainedTokenizerBase
from trl.data_utils import extract_prompt, get_dataset_column_names

from toolkit.data.encoding import Prompt, encode_completion, encode_prompt, encode_text
from toolkit.data.messages import Message, assistant, user
from toolkit.errors import ConfigError

Table = Any  # a Dataset or an IterableDataset
NOT_OURS = {"input_ids", "tools", "chat_template_kwargs"}  # columns that our encoders do not read
SIDES = ("completion", "chosen", "rejected")


class SharedEncoding:
    """Mixin for TRL's trainers on prompts with completions, or on texts.

    TRL tokenizes prompt and completion as one text, and keeps the text that a template writes after EOS.
    The mixin replaces only the tokenization; TRL truncates, packs and drops rows.
    """

    def _prepare_dataset(
        self, dataset: Table, processing_class: PreTrainedTokenizerBase, args: Any, *others: Any
    ) -> Table:
        columns = set(get_dataset_column_names(dataset))
        tokenizer: Any = processing_class
        if "chosen" in columns and "prompt" not in columns:
            dataset, columns = dataset.map(extract_prompt), columns | {"prompt"}
        texts = {"prompt", getattr(args, "dataset_text_field", "prompt")}
        if columns & texts and not columns & NOT_OURS:
            plain = isinstance(next(iter(dataset)).get("prompt"), str)
            dataset = dataset.map(_as_messages) if plain else dataset
            tokenizer = RowTokenizer(processing_class, plain=plain)
        prepared: Table = super()._prepare_dataset(dataset, tokenizer, args, *others)  # type: ignore[misc]
        return prepared


class RowTokenizer:
    """The tokenizer that TRL's `_prepare_dataset` calls for each row.

    Args:
        tokenizer: the base's tokenizer.
        plain: whether the messages are plain texts, wrapped only to mark where the completion starts.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, plain: bool) -> None:
        self.tokenizer, self.plain = tokenizer, plain

    def __call__(self, text: str) -> dict[str, list[int]]:
        """Tokenize a text without a prompt."""
        return {"input_ids": encode_text(self.tokenizer, text)}

    def apply_chat_template(
        self,
        messages: list[Message],
        *,
        add_generation_prompt: bool = False,
        return_assistant_tokens_mask: bool = False,
        chat_template: str | None = None,
        **_: Any,
    ) -> dict[str, list[int]]:
        """Tokenize a prompt (with `add_generation_prompt`), or a prompt and its completion (without)."""
        if add_generation_prompt:
            return {"input_ids": encode_prompt(self.tokenizer, self._text(messages))}
        prompt, completion = self._text(messages[:-1]), self._text(messages[-1:])
        start = encode_prompt(self.tokenizer, prompt)
        rest = encode_completion(self.tokenizer, prompt, completion)
        row = {"input_ids": start + rest}
        if return_assistant_tokens_mask:
            mask = self._assistant_mask(messages[:-1], start, chat_template)
            row["assistant_masks"] = mask + [1] * len(rest)
        return row

    def _text(self, messages: list[Message]) -> Prompt:
        return messages[0]["content"] if self.plain else messages

    def _assistant_mask(
        self, prompt: list[Message], ids: list[int], template: str | None
    ) -> list[int]:
        """A mask that is 1 at the tokens of earlier assistant messages, as marked by the template.

        Raises: ConfigError if TRL's variant of the template, which has the marks, gives other tokens.
        """
        if not any(message["role"] == "assistant" for message in prompt):
            return [0] * len(ids)
        marked: Any = self.tokenizer.apply_chat_template(
            prompt,
            chat_template=template,
            add_generation_prompt=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        if list(marked["input_ids"]) != ids:
            raise ConfigError(
                "assistant_only_loss: TRL's variant of the chat template writes other prompts than the "
                "template; use a template with {% generation %} around the assistant's messages"
            )
        return list(marked["assistant_masks"])


def _as_messages(row: dict[str, Any]) -> dict[str, list[Message]]:
    """A row's plain prompt and completions, each as one message."""
    wrapped = {name: [assistant(row[name])] for name in SIDES if name in row}
    return {"prompt": [user(row["prompt"])], **wrapped}
