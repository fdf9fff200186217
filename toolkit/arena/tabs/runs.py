"""Every run: what became of it, its curves while it trains, its settings, lineage and report."""

from typing import TYPE_CHECKING, Any

import gradio as gr

from toolkit.arena.history import settings
from toolkit.arena.history.curves import (
    CHOSEN_AT_FIRST,
    FIRST,
    MOST_LINES,
    MOST_PICTURES,
    draw,
    latest_values,
    lines_of,
    log_notes,
    metric_label,
    metric_names,
)
from toolkit.arena.history.history import History, Record, duration, moment
from toolkit.arena.history.reports import read_report
from toolkit.evaluation.render import PLOTS

if TYPE_CHECKING:
    from toolkit.arena.workbench import Workbench

EVERY = 5  # seconds between looks while the page is open
INTRODUCTION = """# Training runs
Every run in the runs folder, the latest first. Choose some to lay their curves over each other; \
a run that is training is followed as it goes."""
NO_RUNS = """**There are no runs yet.** `make quickstart` trains some on the embedded world, \
without a download; a recipe such as `python recipes/sft.py --config \
recipes/configs/world/sft.yaml --output_dir runs/sft` makes one. They appear here by themselves."""
COLUMNS = {
    "run": "220px",
    "recipe": "100px",
    "state": "420px",
    "started": "170px",
    "took": "130px",
    "made from": "290px",
}
LONGEST_REASON = 110  # characters in the table; the whole stands below


def runs_tab(page: gr.Blocks, workbench: "Workbench") -> None:
    """The tab's contents. Whatever the disk says is shown as plain text or as a picture."""
    history = History(workbench.runs)
    gr.Markdown(INTRODUCTION)
    nothing = gr.Markdown(NO_RUNS, visible=False)
    table = _table("Runs", list(COLUMNS), max_height=420, widths=list(COLUMNS.values()))
    chosen, metrics = _choices()
    pictures = _pictures()
    latest = _table("Latest values", ["run", "step"], max_height=260)
    notes = gr.Textbox(
        label="About these logs",
        info="Warnings that a run wrote, values that were not finite, lines that were damaged.",
        lines=1,
        max_lines=8,
        interactive=False,
        visible=False,
    )
    which, config = _settings()
    one, story, results, report = _one_run()
    seen = gr.State("")
    timer = gr.Timer(EVERY)

    overview = [nothing, table, chosen, one]
    curves = [metrics, *pictures, latest, notes, config]
    details = [story, results, *report]

    def refresh(runs: Any, keys: Any, wanted: Any, run: Any) -> list[Any]:
        records = look()
        runs = runs or first_choice(records)
        run = run if run in records else reported(records) or next(iter(records), None)
        shown = [*overview_of(records, runs, run), *curves_of(runs, keys, wanted)]
        return [*shown, *details_of(run), signature(records, runs)]

    def tick(runs: Any, keys: Any, wanted: Any, run: Any, before: Any) -> Any:
        records = look()
        now = signature(records, runs or first_choice(records))
        if now == before:
            return [gr.skip()] * (len(overview) + len(curves) + 1)
        runs = runs or first_choice(records)
        return [*overview_of(records, runs, run), *curves_of(runs, keys, wanted), now]

    def look() -> dict[str, Record]:
        return history.look(dict(workbench.catalog.broken))

    def logs_of(runs: Any) -> dict[str, Any]:
        records = look()
        known = [records[r] for r in _texts(runs) if r in records][:MOST_LINES]
        return {record.name: history.log(record) for record in known}

    def signature(records: dict[str, Record], runs: Any) -> str:
        states = [(r.id, r.state, r.detail) for r in records.values()]
        return repr((states, [(log.rows, log.read_bytes) for log in logs_of(runs).values()]))

    def curves_of(runs: Any, keys: Any, wanted: Any) -> list[Any]:
        logs = logs_of(runs)
        names = metric_names(logs.values())
        kept = [k for k in _texts(keys) if k in names][:MOST_PICTURES]
        kept = kept or [k for k in names if k in FIRST][:CHOSEN_AT_FIRST] or names[:1]
        drawn = [_drawn(key, logs) for key in kept]
        drawn += [gr.update(visible=False, value=None)] * (MOST_PICTURES - len(drawn))
        said = log_notes(kept, logs)
        records = look()
        beside = [records[r] for r in _texts(runs) if r in records][:MOST_LINES]
        headers, rows = settings.settings_table(beside, str(wanted))
        return [
            gr.update(choices=[(metric_label(k), k) for k in names], value=kept),
            *drawn,
            _filled(*latest_values(kept, logs)),
            gr.update(value=said, visible=bool(said)),
            _filled(headers, rows),
        ]

    def details_of(run: Any) -> list[Any]:
        record = look().get(run) if isinstance(run, str) else None
        if record is None:
            hidden = [gr.update(visible=False, value=None) for _ in PLOTS]
            return ["", "", gr.update(visible=False), "", *hidden]
        found = read_report(record.path, history.root)
        pictures = [
            gr.update(value=picture, label=caption, visible=True)
            for picture, caption in found.pictures
        ]
        unused = len(PLOTS) - len(pictures)
        pictures += [gr.update(visible=False, value=None) for _ in range(unused)]
        return [
            _story(record, history),
            _results(record),
            gr.update(visible=not found.empty),
            "\n\n".join(part for part in (found.summary, found.text) if part),
            *pictures,
        ]

    asked = [chosen, metrics, which, one]
    everything = [*overview, *curves, *details, seen]
    page.load(refresh, asked, everything, api_visibility="private", show_progress="hidden")
    quiet = {"api_visibility": "private", "show_progress": "hidden"}
    timer.tick(tick, [*asked, seen], [*overview, *curves, seen], queue=False, **quiet)
    for control in (chosen, metrics, which):
        control.input(curves_of, [chosen, metrics, which], curves, api_name="curves", **_SHOWN)
    one.input(details_of, one, details, api_name="run", **_SHOWN)


_SHOWN: dict[str, Any] = {"show_progress": "minimal"}


def first_choice(records: dict[str, Record]) -> list[str]:
    """The run that trains, or else the latest ones that logged something."""
    logged = [r for r in records.values() if (r.path / "metrics.jsonl").is_file()]
    training = [r.id for r in logged if r.state == "running"]
    return (training or [r.id for r in logged])[:CHOSEN_AT_FIRST]


def reported(records: dict[str, Record]) -> str | None:
    """The latest run with a report."""
    return next((k for k, r in records.items() if (r.path / "report.md").is_file()), None)


def overview_of(records: dict[str, Record], runs: Any, run: Any) -> list[Any]:
    """Updates of the table and of the lists of runs."""
    choices = [(record.label, key) for key, record in records.items()]
    rows = [
        [
            record.name,
            record.recipe,
            _state(record),
            moment(record.started),
            duration(record.seconds),
            record.made_from,
        ]
        for record in records.values()
    ]
    return [
        gr.update(visible=not records),
        gr.update(value=rows, visible=bool(records)),
        gr.update(choices=choices, value=[r for r in _texts(runs) if r in records]),
        gr.update(choices=choices, value=run if run in records else None),
    ]


def _state(record: Record) -> str:
    reason = record.detail
    if len(reason) > LONGEST_REASON:
        reason = f"{reason[: LONGEST_REASON - 1]}…"
    return f"{record.state}: {reason}" if reason else record.state


def _choices() -> tuple[gr.Dropdown, gr.Dropdown]:
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


def _pictures() -> list[gr.Plot]:
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


def _drawn(key: str, logs: dict[str, Any]) -> Any:
    return gr.update(value=draw(key, lines_of(key, logs)), visible=True)


def _settings() -> tuple[gr.Radio, gr.Dataframe]:
    with gr.Accordion("Settings of these runs", open=False):
        which = gr.Radio(
            [settings.MAIN, settings.DIFFERENT, settings.ALL],
            value=settings.MAIN,
            label="Which settings",
            info="From each run's run.json. What is not set is left out.",
        )
        config = _table("Settings", ["setting"], max_height=500)
    return which, config


def _one_run() -> tuple[gr.Dropdown, gr.Code, gr.Code, list[Any]]:
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


def _table(
    label: str, headers: list[str], *, max_height: int, widths: list[str] | None = None
) -> gr.Dataframe:
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


def _filled(headers: list[str], rows: list[list[str]]) -> Any:
    each = max(170, min(400, 1000 // max(1, len(headers) - 1)))  # a narrow page scrolls the table
    widths = ["220px", *[f"{each}px"] * (len(headers) - 1)]
    filled = {"headers": headers, "data": rows}
    return gr.update(value=filled, column_widths=widths, visible=bool(rows))


def _story(record: Record, history: History) -> str:
    """State, time and ancestors as lines."""
    lines = [f"{record.name}: {record.state}"]
    if record.detail:
        lines.append(record.detail)
    if record.started is not None:
        took = f", took {duration(record.seconds)}" if record.seconds else ""
        lines.append(f"started {moment(record.started)}{took}")
    return "\n".join([*lines, "", history.lineage(record)])


def _results(record: Record) -> str:
    """The manifest's results and versions as lines."""
    run = record.run
    if run is None:
        return ""
    lines = []
    for title, values in (("", run.results), ("versions", run.versions)):
        if isinstance(values, dict) and values:
            lines += [title] * bool(title)
            lines += [f"{'  ' * bool(title)}{k}: {_short(v)}" for k, v in values.items()]
    return "\n".join(lines) or "nothing was written down"


def _short(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 300 else f"{text[:299]}…"


def _texts(values: Any) -> list[str]:
    """A list of texts, whatever a visitor sent."""
    return [v for v in values if isinstance(v, str)] if isinstance(values, list) else []
