"""Every run: what became of it, its curves while it trains, its settings, lineage and report."""

from typing import TYPE_CHECKING, Any

import gradio as gr

from toolkit.app.history.curves import (
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
from toolkit.app.history.history import History, Record, duration, moment
from toolkit.app.history.reports import read_report
from toolkit.app.history.run_summary import (
    first_choice,
    reported,
    results_of,
    state_in_words,
    story_of,
)
from toolkit.app.history.settings import settings_table
from toolkit.app.tabs import runs_parts as parts
from toolkit.evaluation.render import PLOTS

if TYPE_CHECKING:
    from toolkit.app.workbench import Workbench

EVERY = 5  # seconds between looks while the page is open
INTRODUCTION = """# Training runs
Every run in the runs folder, the latest first. Choose some to lay their curves over each other; \
a run that is training is followed as it goes."""
NO_RUNS = """**There are no runs yet.** `make quickstart` trains some on the embedded world, \
without a download; a recipe such as `python recipes/sft.py --config \
recipes/configs/world/sft.yaml --output_dir runs/sft` makes one. They appear here by themselves."""


def runs_tab(page: gr.Blocks, workbench: "Workbench") -> None:
    """The tab's contents. Whatever the disk says is shown as plain text or as a picture."""
    history = History(workbench.runs)
    gr.Markdown(INTRODUCTION)
    nothing = gr.Markdown(NO_RUNS, visible=False)
    table = parts.table(
        "Runs", list(parts.COLUMNS), max_height=420, widths=list(parts.COLUMNS.values())
    )
    chosen, metrics = parts.choices()
    pictures = parts.pictures()
    latest = parts.table("Latest values", ["run", "step"], max_height=260)
    notes = gr.Textbox(
        label="About these logs",
        info="Warnings that a run wrote, values that were not finite, lines that were damaged.",
        lines=1,
        max_lines=8,
        interactive=False,
        visible=False,
    )
    which, config = parts.settings()
    one, story, results, report = parts.one_run()
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
        headers, rows = settings_table(beside, str(wanted))
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
            unsaid = gr.update(value="", visible=False)
            return [unsaid, unsaid, gr.update(visible=False), "", *hidden]
        found = read_report(record.path, history.root)
        pictures = [
            gr.update(value=picture, label=caption, visible=True)
            for picture, caption in found.pictures
        ]
        unused = len(PLOTS) - len(pictures)
        pictures += [gr.update(visible=False, value=None) for _ in range(unused)]
        return [
            gr.update(value=story_of(record, history), visible=True),
            gr.update(value=results_of(record), visible=True),
            gr.update(visible=not found.empty),
            "\n\n".join(part for part in (found.summary, found.text) if part),
            *pictures,
        ]

    asked = [chosen, metrics, which, one]
    everything = [*overview, *curves, *details, seen]
    page.load(refresh, asked, everything, api_visibility="private", show_progress="hidden")
    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    shown: dict[str, Any] = {"show_progress": "minimal"}
    timer.tick(tick, [*asked, seen], [*overview, *curves, seen], queue=False, **quiet)
    for control in (chosen, metrics, which):
        control.input(curves_of, [chosen, metrics, which], curves, api_name="curves", **shown)
    one.input(details_of, one, details, api_name="run", **shown)


def overview_of(records: dict[str, Record], runs: Any, run: Any) -> list[Any]:
    """Updates of the table and of the lists of runs."""
    choices = [(record.label, key) for key, record in records.items()]
    rows = [
        [
            record.name,
            record.recipe,
            state_in_words(record),
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


def _drawn(key: str, logs: dict[str, Any]) -> Any:
    return gr.update(value=draw(key, lines_of(key, logs)), visible=True)


def _filled(headers: list[str], rows: list[list[str]]) -> Any:
    each = max(170, min(400, 1000 // max(1, len(headers) - 1)))  # a narrow page scrolls the table
    widths = ["220px", *[f"{each}px"] * (len(headers) - 1)]
    filled = {"headers": headers, "data": rows}
    return gr.update(value=filled, column_widths=widths, visible=bool(rows))


def _texts(values: Any) -> list[str]:
    """A list of texts, whatever a visitor sent."""
    return [v for v in values if isinstance(v, str)] if isinstance(values, list) else []
