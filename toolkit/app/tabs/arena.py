"""Blind battles of two checkpoints."""

import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr

from toolkit.app.judgements.judgement import BOTH_BAD, SKIP, TIE, A, B
from toolkit.app.judgements.texts import ARENA, VERDICT_WORDS, revealed
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
from toolkit.errors import ToolkitError

if TYPE_CHECKING:
    from toolkit.app.judgements.battles import Battles

KEYS = {A: "1", B: "2", TIE: "T", BOTH_BAD: "B", SKIP: "S"}
IDLE = "Start a battle; then say which answer is better."


def arena_tab(page: gr.Blocks, battles: "Battles", prompts: Sequence[str] = ()) -> None:
    """The tab's contents.

    Args:
        prompts: those to draw from; by default the workbench's examples.
    """
    workbench, root = battles.workbench, battles.store.path.parent
    drawn_from = list(prompts) or workbench.examples()
    gr.Markdown(ARENA)
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=320):
            prompt = prompt_box()
            with gr.Row():
                draw = gr.Button("Draw a prompt", visible=bool(drawn_from))
                start = gr.Button(
                    "Start a battle (Ctrl+Enter)", variant="primary", elem_id="arena-start"
                )
        with gr.Column(scale=2, min_width=320):
            info = "Two of them are drawn for each battle. Choose two or more."
            pool = pool_list(page, workbench, info)
            temperature, tokens = sampling()
    with gr.Row(equal_height=False):
        answers = [_answer("A"), _answer("B")]
    with gr.Row():
        verdicts = {verdict: _verdict(verdict) for verdict in VERDICT_WORDS}
    with gr.Row():
        status = status_box(IDLE)
        stop = gr.Button("Stop (Esc)", elem_id="arena-stop", scale=0, min_width=160)
    reason, labeler = about_labeler()
    battle = gr.State("")  # the id stays on the server
    buttons = list(verdicts.values())

    def pressable(yes: bool) -> list[Any]:  # new ones each time: Gradio empties what it is given
        return [gr.update(interactive=yes) for _ in buttons]

    def begin(*asked: Any) -> Iterator[list[Any]]:
        try:
            question, chosen, heat, length = asked
            among = chosen_pool(workbench, chosen)
            for shown in battles.battle(question, among, temperature=heat, max_new_tokens=length):
                if not shown.id:
                    said = waiting(shown.done, shown.wanted)
                    yield ["", "", "", said, *pressable(False)]
                    continue
                yield [shown.id, *shown.texts, "Which answer is better?", *pressable(True)]
        except ToolkitError as error:
            raise page_error(error, root) from error

    def vote(verdict: str) -> Callable[..., list[Any]]:
        def said(id: str, why: str, who: str) -> list[Any]:
            try:
                told = revealed(battles.vote(id, verdict, reason=why, labeler=who))
            except ToolkitError as error:
                raise page_error(error, root) from error
            return [told, "", *pressable(False)]

        return said

    started = start.click(
        begin,
        [prompt, pool, temperature, tokens],
        [battle, *answers, status, *buttons],
        api_name="battle",
        concurrency_limit=None,  # the engine's own queue is shorter, and says what to do
        show_progress="minimal",
    )
    started.failure(no_longer_waiting(IDLE), status, status, queue=False, api_visibility="private")
    stop.click(lambda: IDLE, None, status, cancels=[started], queue=False, api_visibility="private")
    for verdict, button in verdicts.items():
        button.click(
            vote(verdict),
            [battle, reason, labeler],
            [status, reason, *buttons],
            api_name=f"vote_{verdict}",
            concurrency_limit=4,
        )
    draw.click(lambda: secrets.choice(drawn_from), None, prompt, api_name="draw_prompt")


def _answer(side: str) -> gr.Textbox:
    return gr.Textbox(
        label=f"Answer {side}",
        placeholder="An answer will stand here.",
        lines=6,
        max_lines=24,
        interactive=False,
        min_width=280,
        elem_classes=QUIET,
    )


def _verdict(verdict: str) -> gr.Button:
    return gr.Button(
        f"{VERDICT_WORDS[verdict]} ({KEYS[verdict]})",
        interactive=False,
        elem_id=f"arena-{verdict.replace('_', '-')}",
        min_width=120,
    )
