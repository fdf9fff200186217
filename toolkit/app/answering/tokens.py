"""Text to tokens and back, by one thread at a time: a fast tokenizer cannot be shared while in use."""

import threading
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from toolkit.app.answering.request import Message
from toolkit.errors import ConfigError
from toolkit.sampling.generation import encode_completion, encode_prompt


class Tokens:
    """A tokenizer with a lock around it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._lock = threading.Lock()

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """A conversation's ids up to where the assistant speaks; without a template, its texts' ids.

        Raises: ConfigError where the chat template refuses, as some do a system message.
        """
        with self._lock:
            try:
                return encode_prompt(self.tokenizer, self._rendered(messages))
            except Exception as error:  # a template is a program and raises what it likes
                raise ConfigError(f"the chat template cannot write this: {error}") from error

    def completion(self, messages: Sequence[Message], text: str) -> list[int]:
        """A given answer's ids, ended by EOS."""
        with self._lock:
            if self.tokenizer.chat_template is None:
                return encode_completion(self.tokenizer, "", text)
            said = [{"role": "assistant", "content": text}]
            return encode_completion(self.tokenizer, list(messages), said)

    def text(self, ids: Sequence[int], *, whole: bool = True) -> str:
        """An answer's text without special tokens; half a character at its end is left out."""
        with self._lock:
            found = str(self.tokenizer.decode(list(ids), skip_special_tokens=True))
        return found if whole else found.rstrip("\N{REPLACEMENT CHARACTER}")

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Each token's own text, special tokens too."""
        with self._lock:
            return [str(self.tokenizer.decode([i])) for i in ids]

    def _rendered(self, messages: Sequence[Message]) -> str | list[Message]:
        if self.tokenizer.chat_template is None:
            return "\n\n".join(m["content"] for m in messages)
        return list(messages)
