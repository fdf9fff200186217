"""The judge's replies on disk: one JSON line each, written at once, so that a killed run continues."""

import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from tqdm.auto import tqdm

from toolkit.judging.questions import Question
from toolkit.reading import parse_json

FILE = "replies.jsonl"
MALFORMED, REJECTED, NO_REPLY = "malformed", "rejected", "no reply"
MOST_KEPT = 2000  # characters of a reason or of a malformed reply


@dataclass
class Reply:
    """A judge's reply: the choice, or the reason why the question is left out.

    `malformed` counts the replies that did not fit the schema; tokens and seconds include them.
    """

    choice: Any = None
    reason: str = ""
    problem: str | None = None
    malformed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0

    def left_out(self, problem: str, text: str) -> "Reply":
        """This reply without a choice."""
        self.choice, self.problem, self.reason = None, problem, text
        return self


Receive = Callable[[Question, Reply], None]
Replies = Mapping[str, Reply]  # by the question's key


class Judge(Protocol):
    """A model that answers questions.

    `name` is shown to people; `identity` changes with anything that changes the replies.
    """

    name: str
    identity: str

    def ask(self, questions: Sequence[Question], receive: Receive) -> None:
        """Pass each question with its reply to `receive`, in any order."""


def ask_all(judge: Judge, questions: Sequence[Question], folder: Path) -> tuple[Replies, int]:
    """The judge's reply to each question; replies that the folder holds are not asked for again.

    Questions that are left out are asked again by the next call.

    Returns: the replies, and how many of them were on disk.
    """
    file = folder / FILE
    wanted = {question.key: question for question in questions}
    replies = {key: r for key, r in _read(file, judge.identity).items() if key in wanted}
    kept, missing = len(replies), [q for key, q in wanted.items() if key not in replies]
    with (
        file.open("a", encoding="utf-8") as out,
        tqdm(total=len(wanted), initial=kept, unit="reply", desc=judge.name[:30]) as bar,
    ):

        def receive(question: Question, reply: Reply) -> None:
            reply.reason = reply.reason[:MOST_KEPT]
            replies[question.key] = reply
            if reply.problem is None:
                line = {"judge": judge.identity, "key": question.key} | asdict(reply)
                del line["problem"]
                out.write(json.dumps(line, ensure_ascii=True) + "\n")
                out.flush()
            bar.update()

        judge.ask(missing, receive)
    return replies, kept


def _read(file: Path, identity: str) -> dict[str, Reply]:
    """This judge's replies in a file; a line that a kill cut short is removed."""
    if not file.is_file():
        return {}
    content = file.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(file, len(whole))
    replies = {}
    for line in whole.splitlines():
        with contextlib.suppress(ValueError, TypeError, KeyError):
            row = parse_json(line)
            key, judge = row.pop("key"), row.pop("judge")
            if judge == identity:
                replies[key] = Reply(**row)
    return replies
