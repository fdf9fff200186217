"""The tab Data: judgement counts, export as training data, and commands that train on it."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from toolkit.app.catalog import Catalog
from toolkit.app.judgements.export import Export, export, training_commands, training_files
from toolkit.app.judgements.judgement import VERDICT_LABELS
from toolkit.app.judgements.store import Tally
from toolkit.app.tabs.parts import downloadable, errors_as_toast
from toolkit.app.texts import markdown
from toolkit.errors import DatasetError
from toolkit.recipe import find_recipe, recipes

if TYPE_CHECKING:
    from toolkit.app.judgements.store import Store
    from toolkit.app.workbench import Workbench

FOLDER = "judgements"  # next to the store


def data_tab(page: gr.Blocks, tab: gr.Tab, workbench: "Workbench", store: "Store") -> None:
    """Build the tab; opening it counts the judgements again."""
    root, files_of = store.path.parent, training_files()
    gr.Markdown(markdown("data"))
    empty = gr.Markdown(markdown("no_judgements"))
    counts = gr.Dataframe(
        headers=["What", "How many"], interactive=False, label="Judgements", max_height=480
    )
    button = gr.Button("Export", variant="primary")
    summary = gr.Textbox(
        "Press Export to write the files.",
        label="Exported",
        info="Rows per file, and judgements that were left out because no recipe can use them.",
        max_lines=10,
        interactive=False,
    )
    files = downloadable("Files to download")
    with gr.Row():
        commands = [_command_box(recipe, file) for recipe, file in files_of.items()]
    with gr.Accordion("What the files contain", open=False):
        gr.Markdown(markdown("data_files"))
    downloads = tempfile.TemporaryDirectory()  # Gradio serves copies of these files

    def refresh() -> list[Any]:
        with errors_as_toast(root):
            tally = store.tally()
        return [gr.update(visible=not tally.judgements), _count_rows(tally)]

    def write() -> list[Any]:
        folder = root / FOLDER
        with errors_as_toast(root):
            try:
                exported = export(store.all())
                written = [shutil.copy(file, downloads.name) for file in exported.write(folder)]
            except OSError as error:
                raise DatasetError(f"{folder.name}: not writable ({error.strerror})") from error
        lines = training_commands(
            folder,
            base=workbench.roles.fingerprint,
            parent=_first_sft(workbench.catalog),
            runs=workbench.runs,
        )
        return [
            *refresh(),
            _summary(exported, f"{FOLDER}/ next to {store.path.name}"),
            written or None,
            *(_command(lines.get(name), exported.lines[file]) for name, file in files_of.items()),
        ]

    outputs = [empty, counts, summary, files, *commands]
    exported = button.click(write, None, outputs, api_name="export", concurrency_limit=1)
    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    exported.success(lambda: gr.update(visible=True), None, files, **quiet)
    for opened in (tab.select, page.load):
        opened(refresh, None, [empty, counts], **quiet)


def _count_rows(tally: Tally) -> list[list[str]]:
    verdicts = {f"– {label}": tally.verdicts.get(v, 0) for v, label in VERDICT_LABELS.items()}
    counts = {
        "Judgements": tally.judgements,
        "Battles": sum(tally.verdicts.values()),
        **verdicts,
        "Rankings": tally.rankings,
        "Answers ranked": tally.ranked,
        "Different prompts": tally.prompts,
        "Labelers with a name": tally.labelers,
    }
    return [[name, str(count)] for name, count in counts.items()]


def _command_box(recipe: str, file: str) -> gr.Textbox:
    return gr.Textbox(
        label=f"toolkit {recipe}",
        info=f"Trains a {find_recipe(recipe).holds} on {file}.",
        placeholder="Appears after an export.",
        lines=3,
        max_lines=8,
        interactive=False,
        buttons=["copy"],
        min_width=300,
    )


def _command(line: str | None, rows: Sequence[str]) -> str:
    if not rows:
        return "Nothing to train on: no judgement prefers one answer to another yet."
    return line or "No SFT run to start from: train one with `toolkit sft`, then export again."


def _summary(exported: Export, place: str) -> str:
    rows = [f"{name}: {len(lines)} row(s)" for name, lines in exported.lines.items() if lines]
    left_out = [f"left out, {why}: {n} judgement(s)" for why, n in exported.left_out.items()]
    if not rows and not left_out:
        return "There is nothing to export yet."
    return "\n".join([f"Written to {place}", *rows, *left_out])


def _first_sft(catalog: Catalog) -> Path | None:
    """The SFT run that training starts from: the first finished one, or else the first."""
    supervised = {recipe.name for recipe in recipes().values() if recipe.is_supervised}
    entries = catalog.checkpoints.values()
    runs = [e for e in entries if e.recipe in supervised and e.path is not None]
    finished = [entry for entry in runs if entry.state == "finished"]
    return (finished or runs)[0].path if runs else None
