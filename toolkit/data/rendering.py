"""Checks that the model reads a row's texts unchanged: template marks, rendered messages."""

import re
import unicodedata
from collections.abc import Iterator
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from toolkit.data.encoding import (
    TEMPLATE_CHECK,
    changed_text,
    check_embeddings,
    completion_text,
    render,
    render_prompt,
    special_tokens,
    thinking_hint,
    token_ids,
)
from toolkit.data.messages import END_OF_THOUGHT, THOUGHT, Message, Row, assistant, user
from toolkit.data.row_errors import RowError, describe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COMPLETIONS = ("completion", "chosen", "rejected")
NEVER = r"(?!)"  # a pattern that matches nothing
SHORTEST_MARK = 4  # a blank line or "A:" is part of many texts
# of the common chat templates
CHAT_MARK = re.compile(r"<\|\w+\|>|<(?:start|end)_of_turn>|\[/?INST\]")


class RowCheck:
    """The check of a converted row against the tokenizer and its chat template."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self.tokenizer = tokenizer
        self.marks = template_marks(tokenizer)

    def __call__(self, row: Row) -> None:
        """Check a row of any kind.

        Raises: RowError for messages that contain a mark of the template; for messages that the
            template cannot render, moves or changes; for EOS or BOS inside a plain completion; for a
            token without embedding in a plain text; and for a pair of completions that are different
            in the row but equal for the model.
        """
        prompt = row.get("prompt")
        if isinstance(prompt, list):
            self._check_marks(row)
            texts = self._check_rendering(prompt, row)
        else:
            texts = self._check_ends(row)
        if "rejected" in texts and texts["chosen"] == texts["rejected"]:
            problem = '"chosen" and "rejected" are the same text for the model'
            raise RowError(TEMPLATE_CHECK, f"{problem}: {describe(texts['chosen'])}")

    def _check_marks(self, row: Row) -> None:
        """Reject special tokens in messages: they would end the turn or start another one."""
        for name, text in texts_of(row):
            mark = self.marks.search(text)
            if mark is not None:
                problem = f"{name} must not contain the chat template's {describe(mark.group())}"
                raise RowError("special token", f"{problem}, got {describe(_around(mark))}")

    def _check_rendering(self, prompt: list[Message], row: Row) -> dict[str, str]:
        """Render prompt and completions; check that no message changes; return the completions."""
        start = render_prompt(self.tokenizer, prompt)
        texts = {}
        for name in COMPLETIONS:
            if name in row:
                text = texts[name] = completion_text(
                    self.tokenizer, prompt, row[name], rendered_prompt=start
                )
                answer = row[name][-1]["content"]
                if not _contains(text, answer, prompt=start.rstrip()):
                    raise changed_text(
                        f'"{name}"', answer, text, thinking_hint(self.tokenizer, answer)
                    )
        return texts

    def _check_ends(self, row: Row) -> dict[str, str]:
        """The plain completions without their end tokens; any other EOS or BOS raises RowError."""
        for name, text in texts_of(row):
            check_embeddings(self.tokenizer, text, name)
        tokens = {"end": self.tokenizer.eos_token, "start": self.tokenizer.bos_token}
        texts = {}
        for name in COMPLETIONS:
            if name in row:
                text = texts[name] = completion_text(self.tokenizer, "", row[name])
                if not text.strip():
                    problem = f'"{name}" must contain more than special tokens'
                    raise RowError("empty text", problem, row[name])
                for kind, token in tokens.items():
                    mark = re.search(re.escape(token), text) if token else None
                    if mark is not None:
                        problem = f'"{name}" must not contain the {kind} token {describe(token)}'
                        problem += " before its end" if kind == "end" else ""
                        raise RowError(f"{kind} token", f"{problem}, got {describe(_around(mark))}")
        return texts


def template_marks(tokenizer: "PreTrainedTokenizerBase") -> re.Pattern[str]:
    """A pattern of the special tokens and of the words that the template writes between turns."""
    # some tokenizers have the tags of thoughts as special tokens
    marks = (special_tokens(tokenizer) | _turn_marks(tokenizer)) - {THOUGHT, END_OF_THOUGHT}
    longest_first = sorted(marks, key=lambda mark: (-len(mark), mark))
    return re.compile("|".join(map(re.escape, longest_first)) or NEVER)


def foreign_marks(tokenizer: "PreTrainedTokenizerBase") -> re.Pattern[str]:
    """A pattern of the marks of chats that neither the tokenizer nor its chat template has."""
    own = {token for token in tokenizer.get_vocab() if CHAT_MARK.fullmatch(token)}
    own |= set(CHAT_MARK.findall(str(tokenizer.chat_template)))
    return re.compile(f"(?!{'|'.join(map(re.escape, own)) or NEVER})(?:{CHAT_MARK.pattern})")


def _turn_marks(tokenizer: "PreTrainedTokenizerBase") -> set[str]:
    """The texts that the template writes between two turns."""
    if tokenizer.chat_template is None:
        return set()
    texts = ["first question", "first answer", "second question", "second answer"]
    turns = [(assistant if i % 2 else user)(text) for i, text in enumerate(texts)]
    try:
        rendered = render(tokenizer, turns)
    except RowError:  # a template for a single turn
        return set()
    between = re.fullmatch(".*" + "(.*)".join(map(re.escape, texts)) + ".*", rendered, re.DOTALL)
    if between is None:
        return set()
    return {mark for mark in between.groups() if len("".join(mark.split())) >= SHORTEST_MARK}


def texts_of(row: Row) -> Iterator[tuple[str, str]]:
    """The texts of a row that the model reads, as (name for error messages, text)."""
    for name in ("prompt", "text", *COMPLETIONS):
        value: Any = row.get(name)
        if isinstance(value, str):
            yield f'"{name}"', value
        elif value is not None:
            for i, message in enumerate(value, start=1):
                yield f'"{name}" message {i}', message["content"]


def misread(tokenizer: "PreTrainedTokenizerBase", row: Row) -> tuple[str, str] | None:
    """A part of a row's text, and its decoded tokens, if the tokenizer changes the text.

    Unicode's compatible forms and whitespace at the ends are not compared.
    """
    for _, text in texts_of(row):
        ids = token_ids(tokenizer, text)
        back = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        text, back = (unicodedata.normalize("NFKC", t).strip() for t in (text, str(back)))
        if text != back:
            pairs = zip_longest(text, back)
            start = max(0, next(i for i, (a, b) in enumerate(pairs) if a != b) - 10)
            return text[start : start + 20], back[start : start + 20]
    return None


def _contains(text: str, answer: str, *, prompt: str) -> bool:
    """Whether the text after a prompt contains an answer, and no thoughts except the answer's.

    The prompt may end with the opening tag of the answer's thought. If the prompt ends with an empty
    thought, or the template writes one before the answer, the answer's thought would be the second.
    """
    *thoughts, reply = answer.split(END_OF_THOUGHT)
    if thoughts:
        if prompt.endswith(END_OF_THOUGHT) or text.count(END_OF_THOUGHT) != len(thoughts):
            return False
        if prompt.endswith(THOUGHT):
            text = THOUGHT + text
    parts = [part for thought in thoughts for part in (*thought.partition(THOUGHT), END_OF_THOUGHT)]
    pattern = r"\s*".join(re.escape(part.strip()) for part in (*parts, reply))
    return re.search(pattern, text) is not None


def _around(mark: re.Match[str]) -> str:
    return mark.string[max(0, mark.start() - 20) : mark.end() + 20]
