"""The tab Arena: blind battles of two checkpoints."""

import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr

from toolkit.app.judgements.judgement import BOTH_BAD, SKIP, TIE, VERDICT_LABELS, A, B, reveal
from toolkit.app.tabs import parts
from toolkit.app.texts import markdown

if TYPE_CHECKING:
    from toolkit.app.judgements.battles import Battles

KEYS = {A: "1", B: "2", TIE: "T", BOTH_BAD: "B", SKIP: "S"}
IDLE = "Start a battle, then choose the better answer."
UNDONE = (
    "The vote is deleted. Choose another verdict, or start the next battle. You have seen the names: "
    "give another verdict only to correct a wrong key."
)
# One at a time in the order of arrival, so that the first of two quick keys is the vote.
IN_ORDER: dict[str, Any] = {"concurrency_id": "arena votes", "concurrency_limit": 1}


def arena_tab(page: gr.Blocks, battles: "Battles", prompts: Sequence[str] = ()) -> None:
    """Build the tab.

    Args:
        prompts: the prompts to draw from; by default the workbench's examples.
    """
    workbench, root = battles.workbench, battles.store.path.parent
    examples = list(prompts) or workbench.examples()
    gr.Markdown(markdown("arena"))
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=320):
            prompt, start = parts.prompt_and_start(
                workbench,
                examples,
                "Start a battle (Ctrl+Enter)",
                "arena-start",
                draw_api={"api_name": "draw_prompt"},
            )
        with gr.Column(scale=2, min_width=320):
            info = "Each battle draws two of them. Choose two or more."
            pool = parts.pool_list(page, workbench, info)
            # no seed here: visitors must not be able to predict answers
            with gr.Accordion("Sampling", open=False):
                temperature, tokens = parts.temperature_and_length()
    with gr.Row(equal_height=False):
        answers = [_answer("A"), _answer("B")]
    with gr.Row():
        buttons = [
            gr.Button(
                f"{label} ({KEYS[verdict]})",
                interactive=False,
                elem_id=f"arena-{verdict.replace('_', '-')}",
                min_width=120,
            )
            for verdict, label in VERDICT_LABELS.items()
        ]
    with gr.Row():
        status = parts.status_box(IDLE)
        following = gr.Button("Next battle (N)", elem_id="arena-next", scale=0, min_width=190)
        undo = gr.Button(
            "Undo the vote (U)", interactive=False, elem_id="arena-undo", scale=0, min_width=200
        )
        stop = gr.Button("Stop (Esc)", elem_id="arena-stop", scale=0, min_width=160)
    reason, labeler = parts.labeler_fields()
    battle_id = gr.State("")  # the server does not send it to the page

    def enabled(*, vote: bool = False, judged: bool = False) -> list[Any]:
        """Updates of the verdicts, *Next battle* and *Undo*; Gradio empties those it receives."""
        states = [vote] * len(buttons) + [judged, judged]
        return [gr.update(interactive=state) for state in states]

    def begin(question: Any, chosen: Any, heat: Any, length: Any) -> Iterator[list[Any]]:
        with parts.errors_as_toast(root):
            ids = parts.pool_or_default(workbench, chosen)
            for progress in battles.battle(question, ids, temperature=heat, max_new_tokens=length):
                ready = bool(progress.id)
                waiting = f"{progress.done} of {progress.total} {parts.READY}"
                message = "Which answer is better?" if ready else waiting
                yield [progress.id, *(progress.texts or ("", "")), message, *enabled(vote=ready)]

    def vote(verdict: str) -> Callable[..., list[Any]]:
        def store_vote(id: str, why: str, name: str) -> list[Any]:
            with parts.errors_as_toast(root):
                judgement = battles.vote(id, verdict, reason=why, labeler=name)
            return [reveal(judgement), "", *enabled(judged=True)]

        return store_vote

    def undo_vote(id: str) -> list[Any]:
        with parts.errors_as_toast(root):
            judged = battles.undo(id)
        return [UNDONE, judged.reason or gr.skip(), *enabled(vote=True)]

    controls = [*buttons, following, undo]
    drawn = following.click(
        lambda text: secrets.choice(examples) if examples else text,
        prompt,
        prompt,
        api_visibility="private",
        show_progress="hidden",
    )

    started = parts.connect_generation(
        start,
        stop,
        begin,
        [prompt, pool, temperature, tokens],
        [battle_id, *answers, status, *controls],
        also=drawn,
        status=status,
        idle=IDLE,
        api_name="battle",
    )
    quiet: dict[str, Any] = {"queue": False, "api_visibility": "private"}
    for ended in (stop.click, *(event.failure for event in started)):
        ended(lambda: gr.update(interactive=True), None, following, **quiet)
    for verdict, button in zip(VERDICT_LABELS, buttons, strict=True):
        button.click(
            vote(verdict),
            [battle_id, reason, labeler],
            [status, reason, *controls],
            api_name=f"vote_{verdict}",
            **IN_ORDER,
        )
    undo.click(undo_vote, battle_id, [status, reason, *controls], api_name="undo_vote", **IN_ORDER)


def _answer(side: str) -> gr.Textbox:
    return gr.Textbox(
        label=f"Answer {side}",
        placeholder="The answer appears here.",
        lines=6,
        max_lines=24,
        interactive=False,
        min_width=280,
        elem_classes=parts.QUIET,
    )
