"""The tab Runs: every run's state, live curves, settings, lineage and report."""

from typing import TYPE_CHECKING, Any

import gradio as gr

from toolkit.app.answering.request import clamp
from toolkit.app.history.curves import (
    CHOSEN_AT_FIRST,
    MAX_CURVES,
    MAX_RUNS,
    SHOWN_FIRST,
    draw,
    latest_values,
    lines_of,
    log_notes,
    metric_label,
    metric_names,
)
from toolkit.app.history.history import History, Record, duration, moment
from toolkit.app.history.run_summary import (
    ALL,
    DIFFERENT,
    MAIN,
    default_runs,
    latest_report,
    settings_table,
    short_state,
)
from toolkit.app.tabs.one_run import one_run, run_table
from toolkit.app.tabs.parts import plotly
from toolkit.app.texts import markdown

if TYPE_CHECKING:
    from toolkit.app.workbench import Workbench

REFRESH_S = 5  # while the page is open
COLUMNS = {
    "Run": "220px",
    "Recipe": "100px",
    "State": "420px",
    "Started": "170px",
    "Duration": "130px",
    "Trained from": "290px",
}


def runs_tab(page: gr.Blocks, workbench: "Workbench") -> None:
    """Build the tab. Text from the disk is shown as plain text, never rendered."""
    history = History(workbench.runs)
    gr.Markdown(markdown("runs"))
    nothing = gr.Markdown(markdown("runs_empty"), visible=False)
    table = run_table("Runs", list(COLUMNS), max_height=420, widths=list(COLUMNS.values()))
    chosen, metrics = _choices()
    info = "Moving average over the steps, against noise. 0 draws the values themselves."
    smoothing = gr.Slider(0, 0.99, value=0, step=0.01, label="Smoothing", info=info)
    plots = _plots()
    latest = run_table("Latest values", ["Run", "Step"], max_height=260)
    info = "Warnings of the runs, values that are not finite, and damaged lines."
    notes = gr.Textbox(
        label="About these logs", info=info, max_lines=8, interactive=False, visible=False
    )
    which, config = _settings()
    one = one_run(history)
    state = gr.State("")
    timer = gr.Timer(REFRESH_S)

    overview = [nothing, table, chosen, one.menu]
    curves = [metrics, *plots, latest, notes, config]

    def refresh(runs: Any, keys: Any, which: Any, smooth: Any, run: Any) -> list[Any]:
        records = scan()
        runs = runs or default_runs(records)
        run = run if run in records else latest_report(records) or next(iter(records), None)
        updates = [*overview_of(records, runs, run), *curves_of(runs, keys, which, smooth)]
        details = [*one.details_of(records.get(str(run))), *one.samples_of(records.get(str(run)))]
        return [*updates, *details, signature(records, runs, run)]

    def tick(
        runs: Any, keys: Any, which: Any, smooth: Any, run: Any, step: Any, before: Any
    ) -> Any:
        records = scan()
        runs = runs or default_runs(records)
        now = signature(records, runs, run)
        if now == before:
            return [gr.skip() for _ in range(len(overview) + len(curves) + len(one.samples) + 1)]
        updates = [*overview_of(records, runs, run), *curves_of(runs, keys, which, smooth)]
        return [*updates, *one.samples_of(records.get(str(run)), step), now]

    def scan() -> dict[str, Record]:
        return history.records(dict(workbench.catalog.broken))

    def selected(runs: Any) -> list[Record]:
        records = scan()
        return [records[r] for r in _strings(runs) if r in records][:MAX_RUNS]

    def logs_of(runs: Any) -> dict[str, Any]:
        return {record.name: history.log(record) for record in selected(runs)}

    def signature(records: dict[str, Record], runs: Any, run: Any) -> str:
        """A value that changes with any table row, a log of a chosen run, and its completions."""
        states = [(r.id, r.state, r.detail) for r in records.values()]
        logs = [(log.rows, log.read_bytes) for log in logs_of(runs).values()]
        return repr((states, logs, one.size_of_samples(records.get(str(run)))))

    def curves_of(runs: Any, keys: Any, which: Any, smooth: Any) -> list[Any]:
        logs = logs_of(runs)
        names = metric_names(logs.values())
        kept = [k for k in _strings(keys) if k in names][:MAX_CURVES]
        kept = kept or [k for k in names if k in SHOWN_FIRST][:CHOSEN_AT_FIRST] or names[:1]
        weight = clamp(smooth, 0.0, 0.99, 0.0)
        figures = [plotly(draw(k, lines_of(k, logs), weight)) for k in kept]
        drawn = [gr.update(value=figure, visible=True) for figure in figures]
        drawn += [gr.update(visible=False, value=None)] * (MAX_CURVES - len(drawn))
        log_text = log_notes(kept, logs)
        return [
            gr.update(choices=[(metric_label(k), k) for k in names], value=kept),
            *drawn,
            _filled(*latest_values(kept, logs)),
            gr.update(value=log_text, visible=bool(log_text)),
            _filled(*settings_table(selected(runs), str(which))),
        ]

    inputs = [chosen, metrics, which, smoothing, one.menu]
    everything = [*overview, *curves, *one.details, *one.samples, state]
    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    page.load(refresh, inputs, everything, **quiet)
    updated = [*overview, *curves, *one.samples, state]
    timer.tick(tick, [*inputs, one.step, state], updated, queue=False, **quiet)
    public: dict[str, Any] = {"show_progress": "minimal"}
    for control in (chosen, metrics, which):
        control.input(curves_of, inputs[:-1], curves, api_name="curves", **public)
    smoothing.release(curves_of, inputs[:-1], curves, **quiet)
    one.connect(scan)


def overview_of(records: dict[str, Record], runs: Any, run: Any) -> list[Any]:
    """Updates of the notice, the table, and the choices of runs for the curves and for *One run*."""
    choices = [(record.label, key) for key, record in records.items()]
    rows = [
        [
            *(record.name, record.recipe, short_state(record)),
            *(moment(record.started), duration(record.seconds), record.made_from),
        ]
        for record in records.values()
    ]
    return [
        gr.update(visible=not records),
        gr.update(value=rows, visible=bool(records)),
        gr.update(choices=choices, value=[r for r in _strings(runs) if r in records]),
        gr.update(choices=choices, value=run if run in records else None),
    ]


def _choices() -> tuple[gr.Dropdown, gr.Dropdown]:
    """The runs and the metrics to draw."""
    several: dict[str, Any] = {"multiselect": True, "min_width": 320}
    with gr.Row():
        info = f"Up to {MAX_RUNS}; a run has the same colour in every plot."
        chosen = gr.Dropdown(
            [], label="Runs to compare", info=info, max_choices=MAX_RUNS, **several
        )
        info = f"Metrics that these runs logged; up to {MAX_CURVES}. See docs/metrics.md."
        metrics = gr.Dropdown([], label="Metrics", info=info, max_choices=MAX_CURVES, **several)
    return chosen, metrics


def _plots() -> list[gr.Plot]:
    plots = []
    with gr.Row(equal_height=False):
        for number in range(1, MAX_CURVES + 1):
            label = f"Curve {number}"
            with gr.Column(min_width=340):
                plot = gr.Plot(
                    label=label, show_label=False, visible=False, elem_classes="toolkit-curve"
                )
            plots.append(plot)
    return plots


def _settings() -> tuple[gr.Radio, gr.Dataframe]:
    """The choice of settings and their table."""
    with gr.Accordion("Settings of these runs", open=False):
        info = "From each run's run.json, without the settings that have no value."
        which = gr.Radio([MAIN, DIFFERENT, ALL], value=MAIN, label="Which settings", info=info)
        config = run_table("Settings", ["Setting"], max_height=500)
    return which, config


def _filled(headers: list[str], rows: list[list[str]]) -> Any:
    """A table's update; a narrow page scrolls the table."""
    each = max(170, min(400, 1000 // max(1, len(headers) - 1)))
    widths = ["220px", *[f"{each}px"] * (len(headers) - 1)]
    table = {"headers": headers, "data": rows}
    return gr.update(value=table, column_widths=widths, visible=bool(rows))


def _strings(values: Any) -> list[str]:
    """The strings in a list that a visitor sent."""
    return [v for v in values if isinstance(v, str)] if isinstance(values, list) else []
