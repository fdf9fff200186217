"""The events of the tab Compare: answers stream into columns, and buttons stop or repeat them."""

import html
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import gradio as gr

from toolkit.app.answering.chat import Chat
from toolkit.app.answering.request import MAX_COLUMNS, MAX_SEED, Answer, clamp
from toolkit.app.choices import checkpoint_choices
from toolkit.app.conversations.store import Conversations
from toolkit.app.tabs.compare_columns import PARTS, column_updates, skip
from toolkit.app.tabs.parts import errors_as_toast, reward_or_default, token_count
from toolkit.app.texts import PROMPT_KEYS, tidy
from toolkit.errors import DatasetError

if TYPE_CHECKING:
    from toolkit.app.workbench import Comparison, Workbench

HEARTBEAT_S = 1.0  # Gradio can end the event of a closed page only when it yields
# outputs before the columns: chat, prompt, history, delete, welcome, actions, equal, undo
FRONT = 8


@dataclass(frozen=True)
class Visit:
    """An open page: the owner of its conversations, and whether it shows answers as Markdown."""

    owner: str | None = None
    markdown: bool = False


@dataclass
class _Running:
    """A comparison that streams to a page."""

    comparison: "Comparison"
    chat: Chat
    visit: Visit


class CompareEvents:
    """Event handlers. Each visitor, identified by the session, has at most one running comparison."""

    def __init__(self, workbench: "Workbench", conversations: Conversations) -> None:
        self.workbench = workbench
        self.conversations = conversations
        self._running: dict[str, _Running] = {}

    def answering(
        self, begin: Callable[[Chat, str, str], Chat], *, wait: bool = False
    ) -> Callable[..., Iterator[list[Any]]]:
        """An event handler that runs the checkpoints; its first output is the prompt.

        Args:
            begin: (chat, prompt, system message) -> the chat to answer.
            wait: raise an error while answers stream; otherwise they are stopped.
        """

        def answer(
            chat: Chat,
            visit: Visit,
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
            yield [prompt, *skip(FRONT + PARTS * MAX_COLUMNS)]
            if wait and self.streams(visitor):
                raise gr.Error("Wait for the answers, or stop them first.", print_exception=False)
            chat = self.leave(visitor) or chat
            open_chat = begin(chat, prompt or "", system or "")
            drawing = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "beams": beams}
            settings = drawing | {"max_new_tokens": tokens, "seed": seed}
            updates = self._answer(open_chat, visit, checkpoints, reward, settings, visitor)
            yield from ([gr.skip(), *update] for update in updates)

        return answer

    def _answer(
        self,
        chat: Chat,
        visit: Visit,
        checkpoints: Any,
        reward: Any,
        settings: dict[str, Any],
        visitor: gr.Request,
    ) -> Iterator[list[Any]]:
        """Updates of the page: first of all parts, then only of those that changed."""
        if not checkpoints and reward is None:  # the page has not loaded its lists yet
            checkpoints = checkpoint_choices(self.workbench.refresh()).chosen
        reward = reward_or_default(self.workbench, reward)
        key = _session(visitor)
        conversations = {c: chat.conversation(c) for c in checkpoints or () if isinstance(c, str)}
        with errors_as_toast():
            base, options = self.workbench.base, self.workbench.command_options
            comparison = self.workbench.stream(
                conversations, checkpoints, reward=reward, **settings
            )
        request, rewards = comparison.request, comparison.catalog.rewards
        scorer = None if request.reward is None else rewards[request.reward].name
        shown, chat = chat.columns, replace(chat, columns=len(request.checkpoints))
        chat = self.saved(visit.owner, chat.with_sampling(request.sampling, scorer, base))
        running = self._running[key] = _Running(comparison, chat, visit)
        before: list[Answer] = []
        last_yield = time.monotonic()
        try:
            for answers in comparison:
                if self._running.get(key) is not running:
                    # another event has changed the page; Gradio shows the last yield once more
                    yield skip(FRONT + PARTS * MAX_COLUMNS)
                    return
                done = all(answer.done for answer in answers)
                if list(answers) == before and not done:
                    if time.monotonic() - last_yield > HEARTBEAT_S:
                        last_yield = time.monotonic()
                        yield skip(FRONT + PARTS * MAX_COLUMNS)
                    continue
                last_yield = time.monotonic()
                if done:
                    visit, chat = running.visit, chat.with_answers(answers)
                    chat = running.chat = self.saved(visit.owner, chat, warn=True)
                changed = done or not before
                front = self._front(chat, visit, busy=not done) if changed else skip(FRONT)
                parts = column_updates(
                    chat,
                    answers,
                    [] if done else before,
                    shown=shown,
                    markdown=running.visit.markdown,
                    options=options,
                )
                yield [*front, *parts]
                before = list(answers)
                if done:
                    self._running.pop(key, None)
        finally:
            if self._running.get(key) is running:
                self.leave(visitor)
            comparison.close()

    def settled(self, chat: Chat, visit: Visit, prompt: str | None = None) -> list[Any]:
        """Updates of the whole page for a chat whose answers do not stream.

        Args:
            prompt: the text of the prompt field; None keeps it.
        """
        chat = replace(chat, columns=len(chat.answers))
        parts = column_updates(
            chat,
            list(chat.answers.values()),
            [],
            shown=MAX_COLUMNS,
            markdown=visit.markdown,
            options=self.workbench.command_options if self.is_current(chat) else None,
        )
        return [*self._front(chat, visit, prompt), *parts]

    def _front(
        self, chat: Chat, visit: Visit, prompt: str | None = None, *, busy: bool = False
    ) -> list[Any]:
        """Updates of everything before the columns; while `busy`, the prompt has a stop button."""
        typed = {} if prompt is None else {"value": prompt}
        titles = self.conversations.titles(visit.owner)
        current = chat.id if any(id == chat.id for _, id in titles) else None
        return [
            chat,
            gr.update(submit_btn=not busy, stop_btn=busy, **typed),
            gr.update(choices=titles, value=current, visible=bool(titles)),
            gr.update(visible=bool(chat.turns)),
            gr.update(visible=not chat.turns),
            gr.update(visible=bool(chat.turns)),
            gr.update(visible=chat.votable),
            gr.update(visible=bool(chat.earlier)),
        ]

    def is_current(self, chat: Chat) -> bool:
        """Whether the last answers were generated on the base in memory."""
        return bool(chat.turns) and chat.is_of(self.workbench.base)

    def streams(self, visitor: gr.Request) -> bool:
        """Whether answers stream to the visitor."""
        return _session(visitor) in self._running

    def identify(self, visitor: gr.Request, visit: Visit) -> None:
        """Change the owner of the streaming answers and how they are shown."""
        running = self._running.get(_session(visitor))
        if running is not None:
            running.visit = visit

    def new_seed(self, chat: Chat, seed: Any) -> int:
        """The next seed, so that a repeated answer can differ."""
        require_turns(chat)
        return (round(clamp(seed, 0, MAX_SEED, 0)) + 1) % MAX_SEED

    def context_use(
        self, chat: Chat, prompt: Any, checkpoints: Any, system: Any, new_tokens: Any
    ) -> str:
        """The length of the next question in tokens, beside the limits that it must keep."""
        turn = replace(chat, system=system or "").with_prompt(prompt or "")
        ids = [c for c in checkpoints or ["base"] if isinstance(c, str)]
        conversations = {c: turn.conversation(c) for c in ids}
        return token_count(self.workbench, prompt, conversations, new_tokens) or PROMPT_KEYS

    def stop(self, visitor: gr.Request) -> None:
        """Stop all answers and keep the text so far."""
        running = self._running.get(_session(visitor))
        if running is not None:
            running.comparison.stop()

    def stop_column(self, number: int) -> Callable[[gr.Request], None]:
        """An event handler that ends one column's answer."""

        def stop(visitor: gr.Request) -> None:
            running = self._running.get(_session(visitor))
            answers = () if running is None else running.comparison.now()
            if running is not None and number < len(answers):
                running.comparison.stop(answers[number].checkpoint)

        return stop

    def leave(self, visitor: gr.Request) -> Chat | None:
        """Cancel the visitor's comparison: the page was closed, or another event follows.

        Returns: the chat with the answers so far, which are stored; None if nothing was running.
        """
        running = self._running.pop(_session(visitor), None)
        if running is None:
            return None
        answers = [_interrupted(answer) for answer in running.comparison.now()]
        running.comparison.close()
        return self.saved(running.visit.owner, running.chat.with_answers(answers))

    def saved(self, owner: str | None, chat: Chat, *, warn: bool = False) -> Chat:
        """The chat after storing it. The page works without the store, too, with a warning."""
        try:
            return self.conversations.save(owner, chat)
        except DatasetError as error:
            if warn:
                reason = tidy(str(error), self.conversations.path.parent)
                gr.Warning(f"This conversation is not stored: {html.escape(reason)}")
            return chat


def new_chat(chat: Chat, prompt: str, system: str) -> Chat:
    """A conversation that begins with this prompt."""
    return Chat(system=system, columns=chat.columns).with_prompt(prompt)


def next_turn(chat: Chat, prompt: str, system: str) -> Chat:
    """The conversation with one more turn."""
    return replace(chat, system=system).with_prompt(prompt)


def unsent(sent: str, typed: str) -> str:
    """The prompt field after an error: the unsent prompt, followed by the text typed later."""
    return typed if typed.startswith(sent) else f"{sent}\n{typed}".rstrip()


def repeat_turn(chat: Chat, prompt: str, system: str) -> Chat:
    """The last turn without its answers; the prompt field is ignored."""
    return chat.without_answers()


def require_turns(chat: Chat) -> None:
    """Raise the page's error if the chat is empty."""
    if not chat.turns:
        raise gr.Error("Ask something first.", print_exception=False)


def _interrupted(answer: Answer) -> Answer:
    """An answer as it is when the visitor leaves."""
    return answer if answer.done else replace(answer, done=True, notes=("stopped",))


def _session(visitor: gr.Request) -> str:
    return visitor.session_hash or f"request {id(visitor)}"
