"""One visitor's conversation with several checkpoints: the prompts and each checkpoint's answers."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from toolkit.app.answering.request import Answer, Message


@dataclass(frozen=True)
class Turn:
    """A prompt and the answers to it, by checkpoint id."""

    prompt: str
    answers: dict[str, Answer] = field(default_factory=dict)


@dataclass(frozen=True)
class Chat:
    """The turns so far. Each checkpoint sees only its own prompts and answers.

    `columns` is the number of columns on the page.
    """

    turns: tuple[Turn, ...] = ()
    system: str = ""
    columns: int = 0

    def with_prompt(self, prompt: str) -> "Chat":
        """A copy with one more turn that has no answers."""
        return replace(self, turns=(*self.turns, Turn(prompt)))

    def with_answers(self, answers: Sequence[Answer]) -> "Chat":
        """A copy with these answers to the last turn."""
        last = replace(self.turns[-1], answers={a.checkpoint: a for a in answers})
        return replace(self, turns=(*self.turns[:-1], last))

    def without_answers(self) -> "Chat":
        """A copy without the answers to the last turn."""
        return self.with_answers([]) if self.turns else self

    def without_last(self) -> "Chat":
        """A copy without the last turn."""
        turns = self.turns[:-1]
        return replace(self, turns=turns, columns=len(turns[-1].answers) if turns else 0)

    @property
    def last_prompt(self) -> str:
        """The last prompt, or "" at the start."""
        return self.turns[-1].prompt if self.turns else ""

    def conversation(self, checkpoint: str) -> list[Message]:
        """The messages that a checkpoint gets to answer the last turn."""
        messages = [_message("system", self.system)] if self.system.strip() else []
        for turn in self.turns[:-1]:
            answer = turn.answers.get(checkpoint)
            if answer is not None and answer.problem is None:
                messages += [_message("user", turn.prompt), _message("assistant", answer.text)]
        return [*messages, _message("user", self.last_prompt)]

    def shown(self, answer: Answer) -> list[Message]:
        """The messages in a column: earlier turns, the prompt, and the answer so far."""
        before = [m for m in self.conversation(answer.checkpoint) if m["role"] != "system"]
        if answer.problem is not None:
            text = "(no answer)"
        else:
            text = answer.text or ("(an empty answer)" if answer.done else "…")
        return [*before, _message("assistant", text)]


def _message(role: str, text: str) -> Message:
    return {"role": role, "content": text}
