"""Parts that the tabs about judgements share."""

import html
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from toolkit.app.answering import request as limits
from toolkit.app.catalog import tidy
from toolkit.app.choices import PAGE_LOOKS_APART, checkpoint_choices
from toolkit.app.judgements.judgement import MAX_LABELER, MAX_REASON
from toolkit.app.texts import LOADING, ONLY_THE_BASE
from toolkit.errors import ToolkitError

if TYPE_CHECKING:
    from toolkit.app.workbench import Workbench

QUIET = "quiet"  # of what no badge shall cover when a toast says an error
READY = "answers are ready…"


def page_error(error: ToolkitError, root: Path) -> gr.Error:
    """An error as the page's toast, which is HTML, without the folder's own path in it."""
    return gr.Error(html.escape(tidy(str(error), root)), print_exception=False)


def prompt_box() -> gr.Textbox:
    """Where the prompt is typed."""
    return gr.Textbox(
        label="Prompt",
        info="What the checkpoints are asked. Type it, or draw one.",
        lines=3,
        max_lines=12,
        max_length=limits.MAX_PROMPT_CHARACTERS,
        placeholder="Ask something…",
    )


def pool_list(page: gr.Blocks, workbench: "Workbench", info: str) -> gr.Dropdown:
    """The checkpoints that may be asked, as the runs folder is when the page is opened."""
    said = gr.Markdown(ONLY_THE_BASE, visible=workbench.ready and workbench.catalog.empty)
    models = checkpoint_choices(workbench.catalog)
    pool = gr.Dropdown(
        models.choices,
        value=models.chosen if workbench.ready else [],
        multiselect=True,
        label="Checkpoints",
        info=info,
    )

    def looked(chosen: list[str] | None) -> Iterator[list[Any]]:
        if not workbench.ready:
            yield [gr.update(value=LOADING, visible=True), gr.skip()]
        catalog = workbench.refresh(unless_within=PAGE_LOOKS_APART)
        found = checkpoint_choices(catalog, chosen or [])
        yield [
            gr.update(value=ONLY_THE_BASE, visible=catalog.empty),
            gr.update(choices=found.choices, value=found.chosen),
        ]

    page.load(
        looked,
        pool,
        [said, pool],
        api_visibility="private",
        concurrency_limit=None,
        show_progress="hidden",
    )
    return pool


def chosen_pool(workbench: "Workbench", chosen: Any) -> Any:
    """What a visitor chose; asked before the page had its lists, what is chosen in them at first."""
    if chosen or workbench.ready:
        return chosen
    return checkpoint_choices(workbench.refresh()).chosen


def sampling() -> tuple[gr.Slider, gr.Slider]:
    """Temperature and maximum length; seeds are the server's, so that nobody can foresee answers."""
    with gr.Accordion("Sampling", open=False):
        return heat_and_length()


def heat_and_length() -> tuple[gr.Slider, gr.Slider]:
    """The two settings that every tab with answers has."""
    temperature = gr.Slider(
        0,
        limits.MAX_TEMPERATURE,
        value=limits.DEFAULT_TEMPERATURE,
        step=0.05,
        label="Temperature",
        info="0 always takes the likeliest token; higher is more varied.",
    )
    tokens = gr.Slider(
        1,
        limits.MAX_NEW_TOKENS,
        value=limits.DEFAULT_NEW_TOKENS,
        step=1,
        label="Max new tokens",
        info="Where an answer is cut off if it does not end by itself.",
    )
    return temperature, tokens


def about_labeler() -> tuple[gr.Textbox, gr.Textbox]:
    """The optional reason and the labeler's name."""
    with gr.Row():
        reason = gr.Textbox(
            label="Reason (optional)",
            info="Why; it is kept with the judgement.",
            max_length=MAX_REASON,
            lines=1,
            scale=2,
            min_width=240,
        )
        labeler = gr.Textbox(
            label="Your name (optional)",
            info="Tells labelers apart, to see how far they agree. It is in the exported data.",
            max_length=MAX_LABELER,
            lines=1,
            min_width=240,
        )
    return reason, labeler


def status_box(value: str) -> gr.Textbox:
    """What happens, in plain text: it holds names from the disk."""
    return gr.Textbox(
        value,
        label="Status",
        lines=1,
        max_lines=4,
        interactive=False,
        scale=1,
        min_width=300,
        elem_classes=QUIET,
    )


def waiting(done: int, wanted: int) -> str:
    """What Status says while answers are made."""
    return f"{done} of {wanted} {READY}"


def no_longer_waiting(idle: str) -> Callable[[str], Any]:
    """Status after a refusal: what to do, if it waited for answers; else as it is."""
    return lambda said: idle if str(said).endswith(READY) else gr.skip()
