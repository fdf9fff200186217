"""What happens on the Compare tab: answers that stream into columns, and the buttons that end them."""

import html
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import gradio as gr

from toolkit.app.answering.answers import Answer
from toolkit.app.answering.chat import Chat
from toolkit.app.answering.cli_command import command
from toolkit.app.answering.request import MAX_COLUMNS, MAX_SEED, Message, clamp
from toolkit.app.choices import checkpoint_choices, reward_choices, reward_id
from toolkit.app.texts import measures
from toolkit.errors import ToolkitError

if TYPE_CHECKING:
    from toolkit.app.workbench import Comparison, Workbench

HEARTBEAT_S = 1.0  # a page that was closed while its question waits is noticed at the next one
PARTS = 5  # of a column: itself, answer, stop button, numbers, command


class Visitors:
    """The tab's events. Each visitor has one comparison at a time, found again by the session."""

    def __init__(self, workbench: "Workbench") -> None:
        self.workbench = workbench
        self._running: dict[str, Comparison] = {}

    def answering(
        self, begin: Callable[[Chat, str, str], Chat], *, keep_prompt: bool = False
    ) -> Callable[..., Iterator[list[Any]]]:
        """An event that has the chat answered.

        Args:
            begin: the chat to answer, from the one that there is, prompt and system prompt.
            keep_prompt: leave what stands in the prompt's box.
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
            asked = begin(chat, _text(prompt), _text(system))
            settings = (temperature, tokens, top_k, top_p, beams, seed)
            for update in self._answer(asked, checkpoints, reward, settings, visitor):
                yield [update[0], gr.skip(), *update[2:]] if keep_prompt else update

        return answer

    def _answer(
        self,
        chat: Chat,
        checkpoints: Any,
        reward: Any,
        settings: Sequence[Any],
        visitor: gr.Request,
    ) -> Iterator[list[Any]]:
        """Updates of chat, prompt and all columns: once with all parts, then of what grows."""
        temperature, tokens, top_k, top_p, beams, seed = settings
        if not checkpoints and reward is None:  # asked before the page had its lists
            catalog = self.workbench.refresh()
            checkpoints = checkpoint_choices(catalog).chosen
            reward = reward_choices(catalog).chosen[0]
        ids = [c for c in checkpoints if isinstance(c, str)] if checkpoints else []
        key = _session(visitor)
        self.leave(visitor)
        try:
            comparison = self.workbench.stream(
                {c: chat.conversation(c) for c in ids},
                checkpoints,
                reward=reward_id(reward),
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                beams=beams,
                max_new_tokens=tokens,
                seed=seed,
            )
        except ToolkitError as error:  # the toast is HTML
            raise gr.Error(html.escape(str(error)), print_exception=False) from error
        self._running[key] = comparison
        before: list[Answer | None] = []
        told = time.monotonic()
        try:
            for answers in comparison:
                if self._running.get(key) is not comparison:
                    # something else is on the page; Gradio shows what is yielded last once more
                    yield [gr.skip() for _ in range(2 + PARTS * MAX_COLUMNS)]
                    return
                done = all(a.done for a in answers)
                if done:
                    chat = chat.answered(answers)
                if list(answers) == before and not done:
                    if time.monotonic() - told > HEARTBEAT_S:  # Gradio ends us at a yield only
                        told = time.monotonic()
                        yield [gr.skip() for _ in range(2 + PARTS * MAX_COLUMNS)]
                    continue
                told = time.monotonic()
                # an update is made again each time: Gradio empties those that it is given
                shown, chat = chat.columns, replace(chat, columns=len(answers))
                parts = self._columns(chat, answers, [] if done else before, comparison, shown)
                news = chat if done or not before else gr.skip()
                yield [news, gr.skip() if before else "", *parts]
                before = list(answers)
        finally:
            comparison.close()
            if self._running.get(key) is comparison:
                del self._running[key]

    def _columns(
        self,
        chat: Chat,
        answers: Sequence[Answer],
        before: Sequence[Answer | None],
        comparison: "Comparison",
        shown: int,
    ) -> list[Any]:
        """Updates of all columns, of which the first `shown` are on the page."""
        found: list[Any] = []
        for number in range(MAX_COLUMNS):
            answer = answers[number] if number < len(answers) else None
            if answer is None and number >= shown:  # each update costs Gradio a new component
                found += [gr.skip() for _ in range(PARTS)]
            elif before:
                old = before[number] if number < len(before) else None
                found += self._grown(chat, old, answer, comparison)
            else:
                found += self._column(chat, answer, comparison)
        return found

    def _grown(
        self, chat: Chat, old: Answer | None, answer: Answer | None, comparison: "Comparison"
    ) -> list[Any]:
        """Updates of one column that was there before."""
        if answer is None or answer == old:
            return [gr.skip() for _ in range(PARTS)]
        if answer.done:
            return self._column(chat, answer, comparison)
        return [gr.skip(), gr.update(value=_bubbles(chat, answer)), *(gr.skip() for _ in range(3))]

    def _column(self, chat: Chat, answer: Answer | None, comparison: "Comparison") -> list[Any]:
        """Updates of all parts of one column."""
        if answer is None:
            empty = [gr.update(value="") for _ in range(2)]
            return [gr.update(visible=False), gr.update(value=[]), gr.update(visible=False), *empty]
        failed = answer.problem is not None
        return [
            gr.update(visible=True),
            gr.update(value=_bubbles(chat, answer), label=answer.name),
            gr.update(visible=not answer.done),
            gr.update(
                value=measures(answer) if answer.done else "",
                label="Why there is none" if failed else "Numbers",
                placeholder="…",
            ),
            gr.update(value=self._command(chat, answer, comparison)),
        ]

    def _command(self, chat: Chat, answer: Answer, comparison: "Comparison") -> str:
        request, catalog = comparison.request, comparison.catalog
        return command(
            self.workbench.options,
            checkpoint=answer.name,
            messages=chat.conversation(answer.checkpoint),
            drawing=request.sampling,
            reward=None if request.reward is None else catalog.rewards[request.reward].name,
        )

    def new_seed(self, chat: Chat, seed: Any) -> int:
        """The next seed, so that what is said again is said anew."""
        if not chat.turns:
            raise gr.Error("Ask something first.", print_exception=False)
        return (round(clamp(seed, 0, MAX_SEED, 0)) + 1) % MAX_SEED

    def edit(self, chat: Chat, visitor: gr.Request) -> list[Any]:
        """The last prompt back into the box, and its answers off the page."""
        self.leave(visitor)
        if not chat.turns:
            raise gr.Error("Ask something first.", print_exception=False)
        earlier = chat.without_last()
        return [earlier, chat.last_prompt, *self._earlier(earlier)]

    def clear(self, visitor: gr.Request) -> list[Any]:
        """Nothing asked, nothing answered."""
        self.leave(visitor)
        return [Chat(), "", *self._earlier(Chat())]

    def _earlier(self, chat: Chat) -> list[Any]:
        """Columns of a conversation whose last turn is answered, or none."""
        answers = list(chat.turns[-1].answers.values()) if chat.turns else []
        found: list[Any] = []
        for number in range(MAX_COLUMNS):
            there = number < len(answers)
            found += [
                gr.update(visible=there),
                gr.update(
                    value=_bubbles(chat, answers[number]) if there else [],
                    label=answers[number].name if there else "Answer",
                ),
                gr.update(visible=False),
                gr.update(value=measures(answers[number]) if there else ""),
                gr.update(value=""),
            ]
        return found

    def stop(self, visitor: gr.Request) -> None:
        """End all answers where they are."""
        comparison = self._running.get(_session(visitor))
        if comparison is not None:
            comparison.stop()

    def stop_column(self, number: int) -> Callable[[gr.Request], None]:
        """An event that ends one column's answer."""

        def stop(visitor: gr.Request) -> None:
            comparison = self._running.get(_session(visitor))
            answers = () if comparison is None else comparison.now()
            if comparison is not None and number < len(answers):
                comparison.stop(answers[number].checkpoint)

        return stop

    def leave(self, visitor: gr.Request) -> None:
        """Give up what a visitor waits for: the page was closed, or something else is asked."""
        comparison = self._running.pop(_session(visitor), None)
        if comparison is not None:
            comparison.close()


def anew(chat: Chat, prompt: str, system: str) -> Chat:
    """A conversation that begins with this prompt."""
    return Chat(system=system, columns=chat.columns).asked(prompt)


def further(chat: Chat, prompt: str, system: str) -> Chat:
    """One turn more."""
    return replace(chat, system=system).asked(prompt)


def again(chat: Chat, prompt: str, system: str) -> Chat:
    """The last turn once more, whatever stands in the prompt's box."""
    return chat.unanswered()


def _bubbles(chat: Chat, answer: Answer) -> list[Message]:
    """What a column's Chatbot shows. Without markdown it still takes its text for HTML."""
    return [m | {"content": html.escape(m["content"], quote=False)} for m in chat.shown(answer)]


def _session(visitor: gr.Request) -> str:
    return visitor.session_hash or f"request {id(visitor)}"


def _text(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else ""
