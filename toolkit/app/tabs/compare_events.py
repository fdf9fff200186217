"""The events of the tab Compare: answers stream into columns, and buttons stop or repeat them."""

import html
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import gradio as gr

from toolkit.app.answering.chat import Chat
from toolkit.app.answering.cli_command import cli_command
from toolkit.app.answering.request import MAX_COLUMNS, MAX_SEED, Answer, Message, clamp
from toolkit.app.choices import checkpoint_choices, reward_choices, reward_id
from toolkit.app.tabs.parts import errors_as_toast
from toolkit.app.texts import answer_numbers

if TYPE_CHECKING:
    from toolkit.app.workbench import Comparison, Workbench

HEARTBEAT_S = 1.0  # Gradio can end the event of a closed page only when it yields
PARTS = 5  # per column: itself, answer, stop button, numbers, command


class CompareEvents:
    """Event handlers. Each visitor, identified by the session, has at most one running comparison."""

    def __init__(self, workbench: "Workbench") -> None:
        self.workbench = workbench
        self._running: dict[str, Comparison] = {}

    def answering(
        self, begin: Callable[[Chat, str, str], Chat], *, keep_prompt: bool = False
    ) -> Callable[..., Iterator[list[Any]]]:
        """An event handler that has the checkpoints answer.

        Args:
            begin: (chat, prompt, system message) -> the chat to answer.
            keep_prompt: do not clear the prompt field.
        """

        def answer(
            chat: Chat,
            prompt: Any,
            checkpoints: Any,
            reward: Any,
            temperature: Any,
            tokens: Any,
            top_k: Any,
            top_p: Any,
            beams: Any,
            system: Any,
            seed: Any,
            visitor: gr.Request,
        ) -> Iterator[list[Any]]:
            open_chat = begin(chat, prompt or "", system or "")
            drawing = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "beams": beams}
            settings = drawing | {"max_new_tokens": tokens, "seed": seed}
            for update in self._answer(open_chat, checkpoints, reward, settings, visitor):
                yield [update[0], gr.skip(), *update[2:]] if keep_prompt else update

        return answer

    def _answer(
        self,
        chat: Chat,
        checkpoints: Any,
        reward: Any,
        settings: dict[str, Any],
        visitor: gr.Request,
    ) -> Iterator[list[Any]]:
        """Updates of chat, prompt and columns: first of all parts, then only of those that changed."""
        if not checkpoints and reward is None:  # the page has not loaded its lists yet
            catalog = self.workbench.refresh()
            checkpoints = checkpoint_choices(catalog).chosen
            reward = reward_choices(catalog).chosen[0]
        key = _session(visitor)
        self.leave(visitor)
        conversations = {c: chat.conversation(c) for c in checkpoints or () if isinstance(c, str)}
        with errors_as_toast():
            comparison = self.workbench.stream(
                conversations, checkpoints, reward=reward_id(reward), **settings
            )
        self._running[key] = comparison
        before: list[Answer] = []
        last_yield = time.monotonic()
        try:
            for answers in comparison:
                if self._running.get(key) is not comparison:
                    # another event has changed the page; Gradio shows the last yield once more
                    yield _skip(2 + PARTS * MAX_COLUMNS)
                    return
                done = all(answer.done for answer in answers)
                if done:
                    chat = chat.with_answers(answers)
                if list(answers) == before and not done:
                    if time.monotonic() - last_yield > HEARTBEAT_S:
                        last_yield = time.monotonic()
                        yield _skip(2 + PARTS * MAX_COLUMNS)
                    continue
                last_yield = time.monotonic()
                shown, chat = chat.columns, replace(chat, columns=len(answers))
                parts = self._columns(chat, answers, [] if done else before, comparison, shown)
                chat_update = chat if done or not before else gr.skip()
                yield [chat_update, gr.skip() if before else "", *parts]
                before = list(answers)
        finally:
            comparison.close()
            if self._running.get(key) is comparison:
                del self._running[key]

    def _columns(
        self,
        chat: Chat,
        answers: Sequence[Answer],
        before: Sequence[Answer],
        comparison: "Comparison",
        shown: int,
    ) -> list[Any]:
        """Updates of all columns, where the page shows the first `shown`.

        Everything that did not change is skipped, because Gradio builds a component per update.
        """
        updates: list[Any] = []
        for number in range(MAX_COLUMNS):
            answer = answers[number] if number < len(answers) else None
            if answer is None:
                updates += _skip(PARTS) if before or number >= shown else _column(chat, None, "")
            elif before and answer == before[number]:
                updates += _skip(PARTS)
            elif before and not answer.done:
                updates += [gr.skip(), gr.update(value=_bubbles(chat, answer)), *_skip(3)]
            else:
                updates += _column(chat, answer, self._command(chat, answer, comparison))
        return updates

    def _command(self, chat: Chat, answer: Answer, comparison: "Comparison") -> str:
        request, catalog = comparison.request, comparison.catalog
        return cli_command(
            self.workbench.cli_options,
            checkpoint=answer.name,
            messages=chat.conversation(answer.checkpoint),
            drawing=request.sampling,
            reward=None if request.reward is None else catalog.rewards[request.reward].name,
        )

    def new_seed(self, chat: Chat, seed: Any) -> int:
        """The next seed, so that a repeated answer can differ."""
        _require_turns(chat)
        return (round(clamp(seed, 0, MAX_SEED, 0)) + 1) % MAX_SEED

    def edit(self, chat: Chat, visitor: gr.Request) -> list[Any]:
        """Move the last prompt back into its field and remove its answers."""
        self.leave(visitor)
        _require_turns(chat)
        earlier = chat.without_last()
        return [earlier, chat.last_prompt, *_last_answers(earlier)]

    def clear(self, visitor: gr.Request) -> list[Any]:
        """Empty the chat and the page."""
        self.leave(visitor)
        return [Chat(), "", *_last_answers(Chat())]

    def stop(self, visitor: gr.Request) -> None:
        """Stop all answers and keep the text so far."""
        comparison = self._running.get(_session(visitor))
        if comparison is not None:
            comparison.stop()

    def stop_column(self, number: int) -> Callable[[gr.Request], None]:
        """An event handler that ends one column's answer."""

        def stop(visitor: gr.Request) -> None:
            comparison = self._running.get(_session(visitor))
            answers = () if comparison is None else comparison.now()
            if comparison is not None and number < len(answers):
                comparison.stop(answers[number].checkpoint)

        return stop

    def leave(self, visitor: gr.Request) -> None:
        """Cancel the visitor's comparison: the page was closed, or another event follows."""
        comparison = self._running.pop(_session(visitor), None)
        if comparison is not None:
            comparison.close()


def new_chat(chat: Chat, prompt: str, system: str) -> Chat:
    """A conversation that begins with this prompt."""
    return Chat(system=system, columns=chat.columns).with_prompt(prompt)


def next_turn(chat: Chat, prompt: str, system: str) -> Chat:
    """The conversation with one more turn."""
    return replace(chat, system=system).with_prompt(prompt)


def repeat_turn(chat: Chat, prompt: str, system: str) -> Chat:
    """The last turn without its answers; the prompt field is ignored."""
    return chat.without_answers()


def _column(chat: Chat, answer: Answer | None, command_line: str) -> list[Any]:
    """Updates of all parts of one column; None hides it."""
    if answer is None:
        values = [gr.update(value="") for _ in range(2)]
        return [gr.update(visible=False), gr.update(value=[]), gr.update(visible=False), *values]
    return [
        gr.update(visible=True),
        gr.update(value=_bubbles(chat, answer), label=answer.name),
        gr.update(visible=not answer.done),
        gr.update(
            value=answer_numbers(answer) if answer.done else "",
            label="Numbers" if answer.problem is None else "Error",
            placeholder="…",
        ),
        gr.update(value=command_line),
    ]


def _last_answers(chat: Chat) -> list[Any]:
    """Updates of all columns with the answers of a chat's last turn."""
    answers = list(chat.turns[-1].answers.values()) if chat.turns else []
    columns = [*answers, *[None] * (MAX_COLUMNS - len(answers))]
    return [update for answer in columns for update in _column(chat, answer, "")]


def _require_turns(chat: Chat) -> None:
    if not chat.turns:
        raise gr.Error("Ask something first.", print_exception=False)


def _bubbles(chat: Chat, answer: Answer) -> list[Message]:
    """The messages of a column's Chatbot, which parses them as HTML even without markdown."""
    return [m | {"content": html.escape(m["content"], quote=False)} for m in chat.shown(answer)]


def _skip(count: int) -> list[Any]:
    """New objects each time, because Gradio empties the updates that it receives."""
    return [gr.skip() for _ in range(count)]


def _session(visitor: gr.Request) -> str:
    return visitor.session_hash or f"request {id(visitor)}"
