"""Converts text to token ids and back, in one thread at a time: a fast tokenizer is not thread-safe."""

import threading
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from toolkit.app.answering.request import Message
from toolkit.data.encoding import encode_completion, encode_prompt
from toolkit.errors import ConfigError


class LockedTokenizer:
    """A tokenizer behind a lock."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._lock = threading.Lock()

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The ids of a conversation and generation prompt, or of the joined texts without a chat template.

        Raises: ConfigError if the chat template rejects the messages, such as a system message.
        """
        with self._lock:
            plain = self.tokenizer.chat_template is None
            try:
                text = "\n\n".join(m["content"] for m in messages) if plain else list(messages)
                return encode_prompt(self.tokenizer, text)
            except Exception as error:  # a template is a program and may raise anything
                raise ConfigError(
                    f"the chat template cannot render this conversation: {error}"
                ) from error

    def completion(self, messages: Sequence[Message], text: str) -> list[int]:
        """The ids of an answer, with EOS at the end."""
        with self._lock:
            if self.tokenizer.chat_template is None:
                return encode_completion(self.tokenizer, "", text)
            answer = [{"role": "assistant", "content": text}]
            return encode_completion(self.tokenizer, list(messages), answer)

    def text(self, ids: Sequence[int], *, partial: bool = False) -> str:
        """An answer's text without special tokens; if `partial`, without an incomplete last character."""
        with self._lock:
            text = str(self.tokenizer.decode(list(ids), skip_special_tokens=True))
        return text.rstrip("\N{REPLACEMENT CHARACTER}") if partial else text

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each token, special tokens included."""
        with self._lock:
            return [str(self.tokenizer.decode([i])) for i in ids]
