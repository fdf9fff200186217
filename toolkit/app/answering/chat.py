"""One visitor's conversation with several checkpoints: the prompts and each checkpoint's answers."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from toolkit.app.answering.request import Answer, Message
from toolkit.sampling.settings import Drawing

MAX_UNDO = 10


@dataclass(frozen=True)
class Turn:
    """A prompt and the answers to it, by checkpoint id.

    The answers were generated with `sampling` on the base `base` (see `Workbench.base`) and scored by the
    reward run named `reward`.
    """

    prompt: str
    answers: dict[str, Answer] = field(default_factory=dict)
    sampling: Drawing | None = None
    reward: str | None = None
    base: str = ""


@dataclass(frozen=True)
class Chat:
    """The turns so far. Each checkpoint reads only the prompts and its own answers.

    `columns` is the number of columns on the page. `earlier` holds the chats that `undone` returns, the
    newest last. `id` and `revision` belong to the stored conversation; see `Conversations`.
    """

    turns: tuple[Turn, ...] = ()
    system: str = ""
    columns: int = 0
    earlier: tuple["Chat", ...] = ()
    id: str = ""
    revision: int = 0

    def with_prompt(self, prompt: str) -> "Chat":
        """A copy with one more turn that has no answers."""
        return replace(self, turns=(*self.turns, Turn(prompt)))

    def with_answers(self, answers: Sequence[Answer]) -> "Chat":
        """A copy with these answers to the last turn."""
        return self._with_last(answers={a.checkpoint: a for a in answers})

    def with_sampling(self, sampling: Drawing, reward: str | None, base: str = "") -> "Chat":
        """A copy whose last turn has these settings."""
        return self._with_last(sampling=sampling, reward=reward, base=base)

    def is_of(self, base: str) -> bool:
        """Whether the last answers were generated on this base, as far as that is known."""
        return bool(self.turns) and self.turns[-1].base in ("", base)

    def without_answers(self) -> "Chat":
        """A copy without the answers to the last turn; `undone` restores them."""
        return self._undoable().with_answers([]) if self.turns else self

    def without_last(self) -> "Chat":
        """A copy without the last turn; `undone` restores it."""
        turns = self.turns[:-1]
        columns = len(turns[-1].answers) if turns else 0
        return replace(self._undoable(), turns=turns, columns=columns)

    def deleted(self) -> "Chat":
        """An empty chat; `undone` restores this chat as a new conversation."""
        chat = self._undoable()
        return Chat(columns=self.columns, earlier=chat.earlier)

    def undone(self) -> "Chat":
        """The chat before the last change that removed answers."""
        *rest, last = self.earlier
        return replace(last, id=self.id, revision=self.revision, earlier=tuple(rest))

    @property
    def last_prompt(self) -> str:
        """The last prompt, or "" at the start."""
        return self.turns[-1].prompt if self.turns else ""

    @property
    def answers(self) -> dict[str, Answer]:
        """The answers to the last turn."""
        return self.turns[-1].answers if self.turns else {}

    @property
    def votable(self) -> bool:
        """Whether the answers to the last turn can be judged, because all of them have the same prompt."""
        answers = self.answers.values()
        conversations = [self.conversation(answer.checkpoint) for answer in answers]
        complete = all(answer.done and answer.problem is None for answer in answers)
        return complete and len(answers) > 1 and all(c == conversations[0] for c in conversations)

    def conversation(self, checkpoint: str) -> list[Message]:
        """The messages that a checkpoint gets to answer the last turn."""
        messages = [_message("system", self.system)] if self.system.strip() else []
        for turn in self.turns[:-1]:
            answer = turn.answers.get(checkpoint)
            if answer is not None and answer.problem is None:
                messages += [_message("user", turn.prompt), _message("assistant", answer.text)]
        return [*messages, _message("user", self.last_prompt)]

    def _with_last(self, **changes: object) -> "Chat":
        last = replace(self.turns[-1], **changes)  # type: ignore[arg-type]
        return replace(self, turns=(*self.turns[:-1], last))

    def _undoable(self) -> "Chat":
        """A copy that `undone` turns into this chat."""
        before = replace(self, earlier=())
        return replace(self, earlier=(*self.earlier, before)[-MAX_UNDO:])


def _message(role: str, text: str) -> Message:
    return {"role": role, "content": text}
