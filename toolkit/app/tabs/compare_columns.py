"""The columns of Compare: one chat for each checkpoint, with the numbers below each answer."""

from collections.abc import Sequence
from typing import Any

import gradio as gr

from toolkit.app.answering.chat import Chat
from toolkit.app.answering.cli_command import cli_command
from toolkit.app.answering.request import MAX_COLUMNS, Answer
from toolkit.app.texts import answer_line, answer_numbers
from toolkit.app.web.answer_html import markdown_html, numbers_html, plain_html
from toolkit.evaluation.plots import short_names

MAX_TITLE = 60  # characters of a name above a column
PARTS = 5  # per column: itself, answers, stop button, vote button, command


def build_columns() -> tuple[list[Any], list[gr.Button], list[gr.Button]]:
    """The parts of each column, one column after the other; their stop and their vote buttons."""
    parts: list[Any] = []
    stops: list[gr.Button] = []
    votes: list[gr.Button] = []
    with gr.Row(equal_height=False, elem_classes="answers"):
        for _ in range(MAX_COLUMNS):
            with gr.Column(min_width=0, visible=False, elem_classes="answer-column") as column:
                answers = gr.Chatbot(
                    label="Answer",
                    height="100%",
                    layout="bubble",
                    render_markdown=False,  # the server makes the HTML, see answer_html.py
                    allow_tags=False,
                    latex_delimiters=[],
                    buttons=["copy"],
                    feedback_options=None,
                    group_consecutive_messages=False,
                )
                with gr.Row(elem_classes="answer-actions"):
                    stop = gr.Button("Stop this one", size="sm", min_width=0, visible=False)
                    vote = gr.Button("Best answer", size="sm", min_width=0, visible=False)
                    command = gr.Textbox(
                        label="Command",
                        max_lines=1,
                        interactive=False,
                        buttons=["copy"],
                        min_width=0,
                        elem_classes="command",
                    )
            parts += [column, answers, stop, vote, command]
            stops.append(stop)
            votes.append(vote)
    return parts, stops, votes


def column_updates(
    chat: Chat,
    answers: Sequence[Answer],
    before: Sequence[Answer],
    *,
    shown: int,
    markdown: bool,
    options: list[str] | None,
) -> list[Any]:
    """Updates of all columns, where the page shows the first `shown`.

    Everything that did not change since `before` is skipped, because Gradio builds a component per
    update.

    Args:
        markdown: show answers as Markdown instead of plain text.
        options: the app's options for commands; None shows no commands.
    """
    updates: list[Any] = []
    votable = chat.votable
    titles = short_names([answer.name for answer in answers], MAX_TITLE)
    for number in range(MAX_COLUMNS):
        answer = answers[number] if number < len(answers) else None
        if answer is None:
            updates += skip(PARTS) if before or number >= shown else _hidden()
        elif before and answer == before[number]:
            updates += skip(PARTS)
        elif before and not answer.done:
            updates += [gr.skip(), gr.update(value=_messages(chat, answer, markdown)), *skip(3)]
        else:
            updates += [
                gr.update(visible=True),
                gr.update(value=_messages(chat, answer, markdown), label=titles[number]),
                gr.update(visible=not answer.done),
                gr.update(visible=votable),
                gr.update(value=_command(chat, answer, options)),
            ]
    return updates


def skip(count: int) -> list[Any]:
    """New objects each time, because Gradio empties the updates that it receives."""
    return [gr.skip() for _ in range(count)]


def _hidden() -> list[Any]:
    buttons = [gr.update(visible=False) for _ in range(2)]
    return [gr.update(visible=False), gr.update(value=[]), *buttons, gr.update(value="")]


def _messages(chat: Chat, answer: Answer, markdown: bool) -> list[Any]:
    """A column's messages: its earlier turns, the prompt, and the answer so far."""
    turns = [(turn.prompt, turn.answers.get(answer.checkpoint)) for turn in chat.turns[:-1]]
    messages = [m for prompt, one in turns if one is not None for m in _turn(prompt, one, markdown)]
    return [*messages, *_turn(chat.last_prompt, answer, markdown)]


def _turn(prompt: str, answer: Answer, markdown: bool) -> list[Any]:
    """A prompt, its answer, and a line of numbers that opens to show all of them."""
    if answer.problem is not None:
        text = plain_html(f"(no answer) {answer.problem}")
    elif not answer.text:
        text = "(an empty answer)" if answer.done else "…"
    else:
        text = markdown_html(answer.text) if markdown else plain_html(answer.text)
    messages = [_message("user", plain_html(prompt)), _message("assistant", text)]
    if answer.done and answer.problem is None:
        numbers = numbers_html(answer_line(answer), answer_numbers(answer))
        messages.append(_message("assistant", numbers))
    return messages


def _message(role: str, text: str) -> dict[str, Any]:
    """A Chatbot's message; Gradio would remove the indentation of a `content` that is a string."""
    return {"role": role, "content": [{"type": "text", "text": text}]}


def _command(chat: Chat, answer: Answer, options: list[str] | None) -> str:
    """The command that prints the last answer; "" if its settings are not known."""
    turn = chat.turns[-1]
    if turn.sampling is None or options is None:
        return ""
    return cli_command(
        options,
        checkpoint=answer.name,
        messages=chat.conversation(answer.checkpoint),
        drawing=turn.sampling,
        reward=turn.reward,
    )
