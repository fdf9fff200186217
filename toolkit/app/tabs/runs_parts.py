"""What stands on the tab Runs: lists, places for curves and pictures, tables, texts."""

from typing import Any

import gradio as gr

from toolkit.app.history.curves import MOST_LINES, MOST_PICTURES
from toolkit.app.history.settings import ALL, DIFFERENT, MAIN
from toolkit.evaluation.render import PLOTS

COLUMNS = {
    "run": "220px",
    "recipe": "100px",
    "state": "420px",
    "started": "170px",
    "took": "130px",
    "made from": "290px",
}


def choices() -> tuple[gr.Dropdown, gr.Dropdown]:
    """The runs and the metrics whose curves are drawn."""
    with gr.Row():
        chosen = gr.Dropdown(
            [],
            multiselect=True,
            min_width=320,
            max_choices=MOST_LINES,
            label="Runs to lay over each other",
            info=f"Up to {MOST_LINES}; each keeps one colour.",
        )
        metrics = gr.Dropdown(
            [],
            multiselect=True,
            min_width=320,
            max_choices=MOST_PICTURES,
            label="Metrics",
            info=f"What these runs logged; up to {MOST_PICTURES}. docs/metrics.md explains each.",
        )
    return chosen, metrics


def pictures() -> list[gr.Plot]:
    """A place for each curve."""
    plots = []
    with gr.Row(equal_height=False):
        for number in range(1, MOST_PICTURES + 1):
            with gr.Column(min_width=340):
                plots.append(
                    gr.Plot(
                        label=f"Curve {number}",
                        show_label=False,
                        visible=False,
                        elem_classes="toolkit-curve",
                    )
                )
    return plots


def settings() -> tuple[gr.Radio, gr.Dataframe]:
    """Which settings are shown, and their table."""
    with gr.Accordion("Settings of these runs", open=False):
        which = gr.Radio(
            [MAIN, DIFFERENT, ALL],
            value=MAIN,
            label="Which settings",
            info="From each run's run.json. What is not set is left out.",
        )
        config = table("Settings", ["setting"], max_height=500)
    return which, config


def one_run() -> tuple[gr.Dropdown, gr.Code, gr.Code, list[Any]]:
    """One run: itself, its story, its results, and the parts of its report."""
    gr.Markdown("## One run")
    one = gr.Dropdown([], label="Run", info="Where it comes from, what it measured, its report.")
    with gr.Row(equal_height=False):
        with gr.Column(min_width=320):
            story = _text("Where it comes from")
        with gr.Column(min_width=320):
            results = _text("What it measured")
    with gr.Accordion("Its report", visible=False, open=True) as box:
        text = _text("Report, as text", wrap=False)
        with gr.Row(equal_height=False):
            pictures = [_report_picture(number) for number in range(1, len(PLOTS) + 1)]
    return one, story, results, [box, text, *pictures]


def table(
    label: str, headers: list[str], *, max_height: int, widths: list[str] | None = None
) -> gr.Dataframe:
    """A table of texts."""
    return gr.Dataframe(
        headers=headers,
        datatype="str",
        type="array",
        label=label,
        interactive=False,
        wrap=True,
        max_height=max_height,
        column_widths=widths,
        buttons=[],
    )


def _report_picture(number: int) -> gr.Image:
    with gr.Column(min_width=340):
        return gr.Image(
            label=f"Picture {number}",
            interactive=False,
            visible=False,
            buttons=["fullscreen"],
        )


def _text(label: str, *, wrap: bool = True) -> gr.Code:
    """Text of the disk in a fixed-width font, never rendered."""
    return gr.Code(
        label=label,
        language=None,
        interactive=False,
        wrap_lines=wrap,
        max_lines=30,
        show_line_numbers=False,
        buttons=["copy"],
    )
