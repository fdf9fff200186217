"""The questions to a judge: the text of a request, and the only replies that count.

Prompts and answers are data. They stand in the request as JSON strings, so no answer can end its own
string; `<` and `[INST]` are escaped, so no answer contains a special token of a chat template. A verdict
is read only from a reply that is one JSON object of the schema.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from toolkit.errors import ConfigError
from toolkit.options.config import SHIPPED
from toolkit.reading import parse_json, read_text

PROMPTS = SHIPPED / "recipes" / "configs" / "judge"
ASPECTS = ("instruction_following", "truthfulness", "honesty", "helpfulness")  # arXiv:2310.01377
A, B, TIE = "A", "B", "tie"
PLACEHOLDERS = {
    "pairwise": ("prompt", "answer_a", "answer_b"),
    "aspects": ("aspect", "prompt", "answer"),
}
MARK = re.compile(r"<(?=\S)|\[(?=/?INST\])")
FENCE = re.compile(r"\A```(?:json)?\n(.*)\n```\Z", re.DOTALL)


class MalformedReply(ValueError):
    """A reply that does not fit the schema."""


@dataclass(frozen=True)
class Form:
    """The schema of a reply: a reason, and one `field` with one of the `choices`."""

    field: str
    choices: tuple[Any, ...]

    @property
    def schema(self) -> dict[str, Any]:
        """As JSON schema."""
        kind = "string" if isinstance(self.choices[0], str) else "integer"
        value = {"type": kind, "enum": list(self.choices)}
        return {
            "type": "object",
            "properties": {"reason": {"type": "string"}, self.field: value},
            "required": ["reason", self.field],
            "additionalProperties": False,
        }

    @property
    def replies(self) -> dict[Any, str]:
        """The reply without a reason for each choice."""
        return {c: json.dumps({"reason": "", self.field: c}) for c in self.choices}

    def parse(self, text: str) -> tuple[Any, str]:
        """The choice and the reason in a reply. Raises: MalformedReply for any other text."""
        text = text.strip()
        fenced = FENCE.fullmatch(text)
        try:
            parse_json(fenced[1] if fenced else text)  # within the limits of depth and digits
            reply = json.loads(fenced[1] if fenced else text, object_pairs_hook=_unique)
        except ValueError as error:
            raise MalformedReply(f"it is not one JSON object ({error})") from error
        if not isinstance(reply, dict) or set(reply) != {"reason", self.field}:
            raise MalformedReply(f'it must have the keys "reason" and "{self.field}"')
        choice, reason = reply[self.field], reply["reason"]
        known = any(type(choice) is type(c) and choice == c for c in self.choices)
        if not known or not isinstance(reason, str):
            options = ", ".join(map(json.dumps, self.choices))
            raise MalformedReply(f'"{self.field}" must be one of {options}, and "reason" a text')
        return choice, reason


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key is repeated")
    return dict(pairs)


VERDICT = Form("verdict", (A, B, TIE))
RATING = Form("rating", (1, 2, 3, 4, 5))
FORMS = {"pairwise": VERDICT, "aspects": RATING}


@dataclass(frozen=True)
class Question:
    """One request: its text, and the form of its reply."""

    text: str
    form: Form

    @cached_property
    def key(self) -> str:
        """A hash of the request; equal requests are sent once."""
        return hashlib.sha256(json.dumps([self.text, self.form.field]).encode()).hexdigest()[:32]


class Template:
    """The judge's instructions: a text with placeholders such as `{answer_a}`."""

    def __init__(self, mode: str, file: str | None = None) -> None:
        """Read the file, or the shipped text of the mode.

        Raises: ConfigError if the file cannot be read or lacks a placeholder.
        """
        path = PROMPTS / f"{mode}.txt" if file is None else Path(file).expanduser()
        try:
            self.text = read_text(path)
        except (OSError, ValueError) as error:
            raise ConfigError(f"judge_prompt: {path} cannot be read ({error})") from error
        missing = [n for n in PLACEHOLDERS[mode] if f"{{{n}}}" not in self.text]
        if missing:
            raise ConfigError(
                f"judge_prompt: {path} must contain the placeholder {{{missing[0]}}}; add it"
            )
        self.form = FORMS[mode]
        self._pattern = re.compile(r"\{(" + "|".join(PLACEHOLDERS[mode]) + r")\}")

    def fill(self, values: Mapping[str, Any]) -> Question:
        """A question with the values as JSON. One pass: a placeholder inside a value stays text."""
        return Question(
            self._pattern.sub(lambda match: as_data(values[match[1]]), self.text), self.form
        )


def as_data(value: Any) -> str:
    """A value as JSON that contains no token of a chat template."""
    text = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace").decode()
    return MARK.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def pair_question(template: Template, prompt: Any, first: str, second: str) -> Question:
    """Which of two answers is better? `first` is shown as A."""
    return template.fill({"prompt": prompt, "answer_a": first, "answer_b": second})


def aspect_questions(template: Template, prompt: Any, answer: str) -> Sequence[Question]:
    """How good is an answer in each of `ASPECTS`?"""
    values = {"prompt": prompt, "answer": answer}
    return [template.fill(values | {"aspect": aspect}) for aspect in ASPECTS]
