"""K answers to one prompt, put in order."""

import secrets
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr

from toolkit.app.judgements.battles import MAX_ANSWERS, MIN_ANSWERS
from toolkit.app.judgements.judgement import FLAGS, LIKERT, parse_order
from toolkit.app.judgements.texts import RANK, revealed
from toolkit.app.tabs.parts import (
    QUIET,
    about_labeler,
    chosen_pool,
    no_longer_waiting,
    page_error,
    pool_list,
    prompt_box,
    sampling,
    status_box,
    waiting,
)
from toolkit.app.web.dragging import ANSWER, BOARD, ORDER, PLACE_BUTTON
from toolkit.errors import ConfigError, ToolkitError

if TYPE_CHECKING:
    from toolkit.app.judgements.battles import Battles

DRAG = (
    "Drag each answer to its place, the best at the top; dropped on another one it ties with it. "
    "Or press the answers' buttons or numbers, the best first."
)
IDLE = "Ask for answers; then put them in order, the best first."
FLAG_WORDS = dict(zip(("Harmful", "Untruthful", "Off task"), FLAGS, strict=True))
NO_GRADE = 0


def rank_tab(page: gr.Blocks, battles: "Battles", prompts: Sequence[str] = ()) -> None:
    """The tab's contents; `prompts` as in the arena."""
    workbench, root = battles.workbench, battles.store.path.parent
    drawn_from = list(prompts) or workbench.examples()
    gr.Markdown(RANK)
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=320):
            prompt = prompt_box()
            with gr.Row():
                draw = gr.Button("Draw a prompt", visible=bool(drawn_from))
                start = gr.Button("Get answers", variant="primary", elem_id="rank-start")
                stop = gr.Button("Stop", scale=0, min_width=100)
        with gr.Column(scale=2, min_width=320):
            info = "One or several; one alone gives several samples."
            pool = pool_list(page, workbench, info)
            many = gr.Slider(
                MIN_ANSWERS,
                MAX_ANSWERS,
                value=MIN_ANSWERS,
                step=1,
                label="Answers",
                info="How many to put in order. They are shared out evenly.",
            )
            temperature, tokens = sampling()
    columns = _answers()
    order = _order()
    status = status_box(IDLE)
    reason, labeler = about_labeler()
    save = gr.Button(
        "Save the order (Ctrl+Enter)", variant="primary", interactive=False, elem_id="rank-save"
    )
    ranking, count = gr.State(""), gr.State(0)  # stay on the server
    boxes, texts, grades, flags = map(list, zip(*columns, strict=True))

    def begin(*asked: Any) -> Iterator[list[Any]]:
        try:
            question, chosen, k, heat, length = asked
            among = chosen_pool(workbench, chosen)
            for shown in battles.ranking(
                question, among, k, temperature=heat, max_new_tokens=length
            ):
                if shown.id:
                    said = "Put the answers in order: drag them, or press their numbers, the best first."
                    parts = _shown(shown.texts)
                else:
                    said = waiting(shown.done, shown.wanted)
                    parts = _shown(())
                save_button = gr.update(interactive=bool(shown.id))
                yield [shown.id, len(shown.texts), "", said, save_button, *parts]
        except ToolkitError as error:
            raise page_error(error, root) from error

    def keep(id: str, k: int, said: str, why: str, who: str, *graded: Any) -> list[Any]:
        given = [int(g) if g else None for g in graded[:k]]
        flagged = [list(f or ()) for f in graded[MAX_ANSWERS : MAX_ANSWERS + k]]
        try:
            if not id:
                raise ConfigError("ask for answers first")
            ranks = parse_order(said, k)
            told = battles.rank(id, ranks, likert=given, flags=flagged, reason=why, labeler=who)
        except ToolkitError as error:
            raise page_error(error, root) from error
        return [revealed(told), "", gr.update(interactive=False)]

    started = start.click(
        begin,
        [prompt, pool, many, temperature, tokens],
        [ranking, count, order, status, save, *boxes, *texts, *grades, *flags],
        api_name="ranking",
        concurrency_limit=None,  # the engine's own queue is shorter, and says what to do
        show_progress="minimal",
    )
    started.failure(no_longer_waiting(IDLE), status, status, queue=False, api_visibility="private")
    stop.click(lambda: IDLE, None, status, cancels=[started], queue=False, api_visibility="private")
    save.click(
        keep,
        [ranking, count, order, reason, labeler, *grades, *flags],
        [status, reason, save],
        api_name="save_ranking",
        concurrency_limit=4,
    )
    draw.click(lambda: secrets.choice(drawn_from), None, prompt, api_visibility="private")


def _answers() -> list[tuple[Any, ...]]:
    """Column, text, quality and flags of each answer; its button is the page's script's."""
    made: list[tuple[Any, ...]] = []
    with gr.Row(equal_height=False):
        for number in range(1, MAX_ANSWERS + 1):
            with gr.Column(min_width=260, visible=False, elem_classes=QUIET) as column:
                text = gr.Textbox(
                    label=f"Answer {number}",
                    lines=5,
                    max_lines=20,
                    interactive=False,
                    elem_id=f"{ANSWER}{number}",
                )
                gr.Button(
                    f"Next best is {number} (key {number})",
                    size="md",
                    elem_id=f"{PLACE_BUTTON}{number}",
                )
                with gr.Accordion("Quality and flags (optional)", open=False):
                    grade = gr.Dropdown(
                        [("not graded", NO_GRADE), *((str(n), n) for n in LIKERT)],
                        value=NO_GRADE,
                        label="Overall quality",
                        info="1 is useless, 7 could not be better.",
                    )
                    flags = gr.CheckboxGroup(
                        list(FLAG_WORDS.items()),
                        label="Flags",
                        info="What is wrong with the answer, whatever its place.",
                    )
            made.append((column, text, grade, flags))
    return made


def _order() -> gr.Textbox:
    """The order as text, which buttons and dragging change through the page's scripts."""
    with gr.Column(elem_id=BOARD):
        gr.Markdown(DRAG, elem_classes="note")
    with gr.Row():
        order = gr.Textbox(
            label="Order, the best first",
            info="Made by dragging, by buttons and keys, or typed: 3 > 1 = 2 > 4, where = is a tie.",
            max_length=200,
            lines=1,
            scale=3,
            min_width=300,
            elem_id=ORDER,
            elem_classes=QUIET,
        )
        gr.Button("The next one ties (T)", elem_id="rank-tie", scale=1, min_width=160)
        gr.Button("Clear the order (Esc)", elem_id="rank-clear", scale=1, min_width=160)
    return order


def _shown(texts: Sequence[str]) -> list[Any]:
    """Updates of all columns, texts, grades and flags, with nothing said of them yet."""
    n = len(texts)
    return [
        *(gr.update(visible=i < n) for i in range(MAX_ANSWERS)),
        *(texts[i] if i < n else "" for i in range(MAX_ANSWERS)),
        *([NO_GRADE] * MAX_ANSWERS),
        *([] for _ in range(MAX_ANSWERS)),
    ]
