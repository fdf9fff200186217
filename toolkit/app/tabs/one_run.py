"""The section *One run* of the tab Runs: origin, results, report, and completions of one run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from toolkit.app.history.history import History, Record
from toolkit.app.history.reports import read_report
from toolkit.app.history.run_summary import run_results, run_story
from toolkit.app.history.samples import SAMPLES_FILE, read_samples


@dataclass(frozen=True)
class OneRun:
    """The components of the section, and their updates for a run or None."""

    history: History
    menu: gr.Dropdown
    step: gr.Dropdown
    details: list[Any]
    samples: list[Any]

    def details_of(self, record: Record | None) -> list[Any]:
        """Updates of `details`."""
        if record is None:
            hidden = [gr.update(value="", visible=False) for _ in range(2)]
            return [*hidden, gr.update(visible=False), "", gr.update(value="", visible=False)]
        report = read_report(record.path, self.history.root)
        return [
            gr.update(value=run_story(record, self.history), visible=True),
            gr.update(value=run_results(record), visible=True),
            gr.update(visible=not report.empty),
            report.markdown,
            gr.update(value=report.summary, visible=bool(report.summary)),
        ]

    def samples_of(self, record: Record | None, step: Any = None) -> list[Any]:
        """Updates of `samples`: the completions of one step, by default of the latest."""
        samples = None if record is None else read_samples(record.path, self.history.root)
        if samples is None or not samples.steps:
            return [gr.update(visible=False), gr.update(choices=[], value=None), gr.update()]
        choices = [(f"step {s:g}", f"{s:g}") for s in reversed(samples.steps)]
        step = step if step in dict(choices).values() else choices[0][1]
        headers, rows = samples.table(float(step))
        title = f"{len(rows)} completions" + (", the beginning is left out" if samples.cut else "")
        table = {"headers": headers, "data": rows}
        widths = ["320px", "420px", *["150px"] * (len(headers) - 2)]
        return [
            gr.update(visible=True),
            gr.update(choices=choices, value=step),
            gr.update(value=table, label=title, column_widths=widths),
        ]

    def size_of_samples(self, record: Record | None) -> int:
        """The bytes of the run's completions; 0 without a file."""
        try:
            return 0 if record is None else (record.path / SAMPLES_FILE).stat().st_size
        except OSError:
            return 0

    def connect(self, scan: Callable[[], dict[str, Record]]) -> None:
        """Connect the menus; `scan` returns the runs by id."""

        def show(run: Any) -> list[Any]:
            record = scan().get(str(run))
            return [*self.details_of(record), *self.samples_of(record)]

        def show_step(run: Any, step: Any) -> list[Any]:
            return self.samples_of(scan().get(str(run)), step)

        public: dict[str, Any] = {"show_progress": "minimal"}
        outputs = [*self.details, *self.samples]
        self.menu.input(show, self.menu, outputs, api_name="run", **public)
        inputs = [self.menu, self.step]
        self.step.input(show_step, inputs, self.samples, api_name="samples", **public)


def one_run(history: History) -> OneRun:
    """Build the section."""
    gr.Markdown("## One run")
    menu = gr.Dropdown([], label="Run", info="Shows the run's origin, results and report.")
    with gr.Row(equal_height=False):
        with gr.Column(min_width=320):
            story = _plain_text("Origin")
        with gr.Column(min_width=320):
            results = _plain_text("Results")
    with gr.Accordion("Completions during training", visible=False, open=True) as samples_box:
        info = (
            "Answers to the held-out prompts, sampled at this step. New ones appear by themselves."
        )
        step = gr.Dropdown([], label="Step", info=info)
        table = run_table("Completions", ["prompt", "completion"], max_height=420)
    with gr.Accordion("Report", visible=False, open=True) as report_box:
        report = gr.Markdown(
            latex_delimiters=[],
            header_links=False,
            line_breaks=False,
            elem_classes="toolkit-report",
        )
        summary = _plain_text("Report as text", wrap=False)
    details = [story, results, report_box, report, summary]
    return OneRun(history, menu, step, details, [samples_box, step, table])


def run_table(
    label: str, headers: list[str], *, max_height: int, widths: list[str] | None = None
) -> gr.Dataframe:
    """A table of text from the disk, never rendered."""
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


def _plain_text(label: str, *, wrap: bool = True) -> gr.Code:
    """Text from the disk in a fixed-width font, never rendered."""
    return gr.Code(
        label=label,
        language=None,
        interactive=False,
        wrap_lines=wrap,
        max_lines=30,
        show_line_numbers=False,
        buttons=["copy"],
    )
