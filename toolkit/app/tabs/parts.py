"""Common parts of several tabs: the page's style, fields and error messages."""

import html
import json
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from gradio.components.plot import PlotData

from toolkit.app.answering import request as limits
from toolkit.app.choices import (
    NO_REWARD_RUN,
    NO_SCORE,
    SHARED_SCAN_S,
    checkpoint_choices,
    reward_choices,
)
from toolkit.app.tabs.run_menus import RUN_MENU
from toolkit.app.texts import LOADING, ONLY_THE_BASE, tidy
from toolkit.errors import ToolkitError

if TYPE_CHECKING:
    from toolkit.app.workbench import Workbench

QUIET = "quiet"  # hides Gradio's error badge on fields whose errors a toast shows
READY = "answers are ready…"  # the end of the status while answers are generated


def theme() -> gr.themes.Default:
    """The visitor's own fonts, and enough contrast for explanations, empty fields, boxes and buttons."""
    font, mono = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")
    return gr.themes.Default(font=font, font_mono=mono).set(
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_400",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        checkbox_border_color="*neutral_500",
        checkbox_border_color_dark="*neutral_400",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_800",
    )


def plotly(figure: dict[str, Any]) -> PlotData:
    """A figure for `gr.Plot`. The page has Plotly's script; the Python package is not needed."""
    return PlotData(type="plotly", plot=json.dumps(figure))


def column_widths(columns: Iterable[tuple[int, int]]) -> list[str]:
    """CSS widths from minimum pixels and shares of the page, %; a narrow page scrolls the table."""
    return [f"max({pixels}px, {share}%)" for pixels, share in columns]


@contextmanager
def errors_as_toast(root: Path | None = None) -> Iterator[None]:
    """Show a ToolkitError as the page's toast, which is HTML; the path of `root` is removed from it."""
    try:
        yield
    except ToolkitError as error:
        message = str(error) if root is None else tidy(str(error), root)
        raise gr.Error(html.escape(message), print_exception=False) from error


def token_count(
    workbench: "Workbench", text: Any, conversations: dict[str, Any], new_tokens: Any = 1
) -> str:
    """The length of the longest conversation in tokens, or the limit that it exceeds, as Markdown.

    Args:
        text: the last message; if it is empty, or the base is not loaded, the result is empty.
        conversations: as for `Workbench.context_use`.
    """
    if not workbench.ready or not isinstance(text, str) or not text.strip():
        return ""
    try:
        return workbench.context_use(conversations, new_tokens)
    except ToolkitError as error:
        return f"**{html.escape(str(error))}**"


def show_token_count(workbench: "Workbench", field: gr.Textbox) -> None:
    """Show the length of a field's text below it. A field with `max_length` would cut the text."""
    note = gr.Markdown(elem_classes="note")
    field.change(
        lambda text: token_count(workbench, text, {"any": text}),
        field,
        note,
        trigger_mode="always_last",
        api_visibility="private",
        show_progress="hidden",
    )


def prompt_and_start(
    workbench: "Workbench",
    examples: Sequence[str],
    start: str,
    start_id: str,
    *,
    draw_api: dict[str, str],
) -> tuple[gr.Textbox, gr.Button]:
    """The prompt, a button that draws one of `examples`, and the start button."""
    prompt = gr.Textbox(
        label="Prompt",
        info="The question for the checkpoints. Type one or draw one.",
        lines=3,
        max_lines=12,
        placeholder="Ask something…",
    )
    show_token_count(workbench, prompt)
    with gr.Row():
        draw = gr.Button("Draw a prompt", visible=bool(examples))
        start_button = gr.Button(start, variant="primary", elem_id=start_id)
    draw.click(lambda: secrets.choice(examples), None, prompt, **draw_api)
    return prompt, start_button


def pool_list(page: gr.Blocks, workbench: "Workbench", info: str) -> gr.Dropdown:
    """The list of checkpoints to choose from; opening the page reads the runs folder again."""
    notice = gr.Markdown(ONLY_THE_BASE, visible=workbench.ready and workbench.catalog.empty)
    models = checkpoint_choices(workbench.catalog)
    pool = gr.Dropdown(
        models.choices,
        value=models.chosen if workbench.ready else [],
        multiselect=True,
        label="Checkpoints",
        info=info,
        elem_classes=RUN_MENU,
    )

    def load_pool(chosen: list[str] | None) -> Iterator[list[Any]]:
        if not workbench.ready:
            yield [gr.update(value=LOADING, visible=True), gr.skip()]
        catalog = workbench.refresh(max_age_s=SHARED_SCAN_S)
        models = checkpoint_choices(catalog, chosen or [])
        yield [
            gr.update(value=ONLY_THE_BASE, visible=catalog.empty),
            gr.update(choices=models.choices, value=models.chosen),
        ]

    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    page.load(load_pool, pool, [notice, pool], concurrency_limit=None, **quiet)
    return pool


def pool_or_default(workbench: "Workbench", chosen: Any) -> Any:
    """The visitor's choice, or the default choice if the page has not loaded its lists yet."""
    if chosen or workbench.ready:
        return chosen
    return checkpoint_choices(workbench.refresh()).chosen


def reward_or_default(workbench: "Workbench", chosen: Any) -> Any:
    """The visitor's reward model, None for no score; the default one as in `pool_or_default`."""
    if chosen is None:
        chosen = reward_choices(workbench.refresh(max_age_s=SHARED_SCAN_S)).chosen[0]
    return None if chosen in (NO_SCORE, NO_REWARD_RUN) else chosen


def temperature_and_length() -> tuple[gr.Slider, gr.Slider]:
    """The two settings of every tab that generates answers."""
    default = limits.DEFAULT_TEMPERATURE
    info = "0 always takes the likeliest token; higher values give more varied answers."
    temperature = gr.Slider(
        0, limits.MAX_TEMPERATURE, value=default, step=0.05, label="Temperature", info=info
    )
    length, info = limits.DEFAULT_NEW_TOKENS, "An answer that has not ended by then is cut off."
    tokens = gr.Slider(
        1, limits.MAX_NEW_TOKENS, value=length, step=1, label="Max new tokens", info=info
    )
    return temperature, tokens


def labeler_fields() -> tuple[gr.Textbox, gr.Textbox]:
    """The optional reason and the labeler's name."""
    with gr.Row():
        info = "Why you decided so; stored with the judgement."
        reason = gr.Textbox(label="Reason (optional)", info=info, scale=2, min_width=240)
        info = "Needed to measure how far labelers agree. The exported data contains it."
        labeler = gr.Textbox(label="Your name (optional)", info=info, min_width=240)
    return reason, labeler


def downloadable(label: str) -> gr.File:
    """The list of files to download, hidden while it is empty."""
    return gr.File(label=label, file_count="multiple", interactive=False, visible=False)


def status_box(value: str) -> gr.Textbox:
    """The state of a battle or ranking as plain text, because it contains names from the disk."""
    return gr.Textbox(
        value,
        label="Status",
        max_lines=4,
        interactive=False,
        scale=1,
        min_width=300,
        elem_classes=QUIET,
    )


def connect_generation(
    start: gr.Button,
    stop: gr.Button,
    begin: Callable[..., Iterator[list[Any]]],
    inputs: list[Any],
    outputs: list[Any],
    *,
    status: gr.Textbox,
    idle: str,
    api_name: str,
    also: Any = None,
) -> list[Any]:
    """Connect the start and stop buttons.

    Args:
        idle: the status text after answers were stopped.
        also: another event; the answers start after it has succeeded.

    Returns: the events that generate answers.
    """
    # the engine has a shorter queue with an error message
    streaming: dict[str, Any] = {"concurrency_limit": None, "show_progress": "minimal"}
    started = [start.click(begin, inputs, outputs, api_name=api_name, **streaming)]
    if also is not None:
        started.append(also.success(begin, inputs, outputs, api_visibility="private", **streaming))
    quiet: dict[str, Any] = {"queue": False, "api_visibility": "private"}
    # after an error, the answers of an earlier battle can still be judged
    for event in started:
        event.failure(
            lambda text: idle if str(text).endswith(READY) else gr.skip(), status, status, **quiet
        )
    stop.click(lambda: idle, None, status, cancels=started, **quiet)
    return started
