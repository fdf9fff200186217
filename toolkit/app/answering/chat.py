"""One visitor's conversation with several checkpoints: what each of them was told, and what it said."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from toolkit.app.answering.answers import Answer
from toolkit.app.answering.request import Message


@dataclass(frozen=True)
class Turn:
    """A prompt and the answers to it, by checkpoint id."""

    prompt: str
    answers: dict[str, Answer] = field(default_factory=dict)


@dataclass(frozen=True)
class Chat:
    """Turns so far. Every checkpoint sees the prompts that it was asked and its own answers only.

    `columns` is how many of them the page shows.
    """

    turns: tuple[Turn, ...] = ()
    system: str = ""
    columns: int = 0

    def asked(self, prompt: str) -> "Chat":
        """With one turn more, not answered yet."""
        return replace(self, turns=(*self.turns, Turn(prompt)))

    def answered(self, answers: Sequence[Answer]) -> "Chat":
        """With the answers to the last turn."""
        last = replace(self.turns[-1], answers={a.checkpoint: a for a in answers})
        return replace(self, turns=(*self.turns[:-1], last))

    def unanswered(self) -> "Chat":
        """With the last turn as if it had only been asked."""
        return self.answered([]) if self.turns else self

    def without_last(self) -> "Chat":
        """With the last turn taken back."""
        left = self.turns[:-1]
        return replace(self, turns=left, columns=len(left[-1].answers) if left else 0)

    @property
    def last_prompt(self) -> str:
        """What was asked last, "" at the start."""
        return self.turns[-1].prompt if self.turns else ""

    def conversation(self, checkpoint: str) -> list[Message]:
        """What a checkpoint is told so that it answers the last turn."""
        messages = [{"role": "system", "content": self.system}] if self.system.strip() else []
        for turn in self.turns[:-1]:
            answer = turn.answers.get(checkpoint)
            if answer is not None and answer.problem is None:
                messages += [_message("user", turn.prompt), _message("assistant", answer.text)]
        return [*messages, _message("user", self.last_prompt)]

    def shown(self, answer: Answer) -> list[Message]:
        """A column's bubbles: its earlier turns, the prompt, and the answer so far."""
        before = [m for m in self.conversation(answer.checkpoint) if m["role"] != "system"]
        if answer.problem is not None:
            said = "(no answer)"
        else:
            said = answer.text or ("(an empty answer)" if answer.done else "…")
        return [*before, _message("assistant", said)]


def _message(speaker: str, text: str) -> Message:
    return {"role": speaker, "content": text}
