"""The tab Rank: several answers to one prompt, put in order."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr

from toolkit.app.judgements.battles import MAX_ANSWERS, MIN_ANSWERS
from toolkit.app.judgements.judgement import FLAGS, LIKERT, parse_order, reveal
from toolkit.app.tabs import parts
from toolkit.app.texts import markdown
from toolkit.app.web.scripts import ANSWER, BOARD, ORDER, PLACE_BUTTON
from toolkit.errors import ConfigError

if TYPE_CHECKING:
    from toolkit.app.judgements.battles import Battles

IDLE = "Get answers, then put them in order, best first."
SORT = "Put the answers in order, best first: drag them, or press their numbers."
FLAG_LABELS = dict(zip(("Harmful", "Untruthful", "Off task"), FLAGS, strict=True))
NO_GRADE = 0


def rank_tab(page: gr.Blocks, battles: "Battles", prompts: Sequence[str] = ()) -> None:
    """Build the tab; `prompts` as in `arena_tab`."""
    workbench, root = battles.workbench, battles.store.path.parent
    gr.Markdown(markdown("rank"))
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=320):
            prompt, start = parts.prompt_and_start(
                workbench,
                list(prompts) or workbench.examples(),
                "Get answers",
                "rank-start",
                draw_api={"api_visibility": "private"},
            )
        with gr.Column(scale=2, min_width=320):
            info = "One or several; a single checkpoint gives several samples."
            pool = parts.pool_list(page, workbench, info)
            info = "How many answers to rank, distributed evenly over the checkpoints."
            answer_count = gr.Slider(
                MIN_ANSWERS, MAX_ANSWERS, value=MIN_ANSWERS, step=1, label="Answers", info=info
            )
            # no seed here: visitors must not be able to predict answers
            with gr.Accordion("Sampling", open=False):
                temperature, tokens = parts.temperature_and_length()
    boxes, texts, grades, flags = map(list, zip(*_answers(), strict=True))
    order = _order()
    with gr.Row():
        status = parts.status_box(IDLE)
        stop = gr.Button("Stop", scale=0, min_width=160)
    reason, labeler = parts.labeler_fields()
    save = gr.Button(
        "Save the order (Ctrl+Enter)", variant="primary", interactive=False, elem_id="rank-save"
    )
    ranking_id, count = gr.State(""), gr.State(0)  # the server does not send them to the page

    def begin(question: Any, chosen: Any, k: Any, heat: Any, length: Any) -> Iterator[list[Any]]:
        with parts.errors_as_toast(root):
            ids = parts.pool_or_default(workbench, chosen)
            for progress in battles.ranking(
                question, ids, k, temperature=heat, max_new_tokens=length
            ):
                ready = bool(progress.id)
                message = SORT if ready else f"{progress.done} of {progress.total} {parts.READY}"
                button = gr.update(interactive=ready)
                columns = _columns(progress.texts)
                yield [progress.id, len(progress.texts), "", message, button, *columns]

    def store_order(id: str, k: int, order: str, why: str, name: str, *details: Any) -> list[Any]:
        likert = [int(grade) if grade else None for grade in details[:k]]
        flags = [list(f or ()) for f in details[MAX_ANSWERS : MAX_ANSWERS + k]]
        with parts.errors_as_toast(root):
            if not id:
                raise ConfigError("get answers first")
            ranks = parse_order(order, k)
            judgement = battles.rank(
                id, ranks, likert=likert, flags=flags, reason=why, labeler=name
            )
        return [reveal(judgement), "", gr.update(interactive=False)]

    parts.connect_generation(
        start,
        stop,
        begin,
        [prompt, pool, answer_count, temperature, tokens],
        [ranking_id, count, order, status, save, *boxes, *texts, *grades, *flags],
        status=status,
        idle=IDLE,
        api_name="ranking",
    )
    save.click(
        store_order,
        [ranking_id, count, order, reason, labeler, *grades, *flags],
        [status, reason, save],
        api_name="save_ranking",
        concurrency_limit=4,
    )


def _answers() -> list[tuple[Any, ...]]:
    """Column, text, quality and flags of each answer; a script of the page handles its button."""
    columns: list[tuple[Any, ...]] = []
    grades = [("not graded", NO_GRADE), *((str(n), n) for n in LIKERT)]
    with gr.Row(equal_height=False):
        for number in range(1, MAX_ANSWERS + 1):
            with gr.Column(min_width=260, visible=False, elem_classes=parts.QUIET) as column:
                text = gr.Textbox(
                    label=f"Answer {number}",
                    lines=5,
                    max_lines=20,
                    interactive=False,
                    elem_id=f"{ANSWER}{number}",
                )
                button = f"Next best is {number} (key {number})"
                gr.Button(button, size="md", elem_id=f"{PLACE_BUTTON}{number}")
                with gr.Accordion("Quality and flags (optional)", open=False):
                    info = "From 1 (useless) to 7 (perfect)."
                    grade = gr.Dropdown(grades, value=NO_GRADE, label="Overall quality", info=info)
                    info = "Faults of the answer, independent of its place in the order."
                    flags = gr.CheckboxGroup(list(FLAG_LABELS.items()), label="Flags", info=info)
            columns.append((column, text, grade, flags))
    return columns


def _order() -> gr.Textbox:
    """The order as text; the page's scripts for buttons and dragging change it."""
    with gr.Column(elem_id=BOARD):
        gr.Markdown(markdown("rank_order"), elem_classes="note")
    with gr.Row():
        order = gr.Textbox(
            label="Order, best first",
            info="Drag answers, use buttons or keys, or type here, such as 3 > 1 = 2 > 4 (= is a tie).",
            scale=3,
            min_width=300,
            elem_id=ORDER,
            elem_classes=parts.QUIET,
        )
        gr.Button("The next one ties (T)", elem_id="rank-tie", scale=1, min_width=160)
        gr.Button("Clear the order (Esc)", elem_id="rank-clear", scale=1, min_width=160)
    return order


def _columns(texts: Sequence[str]) -> list[Any]:
    """Updates of all columns, texts, grades and flags, with the grades and flags empty."""
    n = len(texts)
    return [
        *(gr.update(visible=i < n) for i in range(MAX_ANSWERS)),
        *(texts[i] if i < n else "" for i in range(MAX_ANSWERS)),
        *([NO_GRADE] * MAX_ANSWERS),
        *([] for _ in range(MAX_ANSWERS)),
    ]
