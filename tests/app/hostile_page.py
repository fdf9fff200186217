"""The app with two tabs, where model output and everything on the disk is shown: Compare and Runs.

Takes the app's own arguments and launches with the app's own settings.
"""

import sys

import gradio as gr

import app
from toolkit.arena.arguments import parse_arguments
from toolkit.arena.tabs.compare import compare_tab
from toolkit.arena.tabs.runs import runs_tab


def build(workbench):
    with gr.Blocks(title="Compare checkpoints", analytics_enabled=False, fill_width=True) as page:
        with gr.Tab("Compare"):
            compare_tab(page, workbench)
        with gr.Tab("Runs"):
            runs_tab(page, workbench)
    page.queue(max_size=32)
    return page


if __name__ == "__main__":
    app.build = build
    sys.exit(app.main(parse_arguments(description=__doc__)))
