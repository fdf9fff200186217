"""The judgements as training data: counts, files to download, and the command that uses them."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from toolkit.app.catalog import Catalog
from toolkit.app.judgements.export import TRAINS_ON, Export, export, training_commands
from toolkit.app.judgements.texts import DATA, FILES_TEXT, NO_VOTES, count_rows
from toolkit.app.tabs.parts import page_error
from toolkit.errors import DatasetError, ToolkitError

if TYPE_CHECKING:
    from toolkit.app.judgements.store import Store
    from toolkit.app.workbench import Workbench

FOLDER = "judgements"  # beside the store
MAKES: Mapping[str, str] = {
    "reward": "a reward model",
    "dpo": "a policy by DPO",
    "kto": "a policy by KTO",
}


def data_tab(page: gr.Blocks, tab: gr.Tab, workbench: "Workbench", store: "Store") -> None:
    """The tab's contents; counts are made again when `tab` is opened."""
    gr.Markdown(DATA)
    empty = gr.Markdown(NO_VOTES)
    counts = gr.Dataframe(
        headers=["What", "How many"], interactive=False, label="Judgements", max_height=480
    )
    make = gr.Button("Export", variant="primary")
    said = gr.Textbox(
        "Press Export to write the files.",
        label="What was exported",
        info="Rows of each file, and what was left out because no recipe could use it.",
        lines=1,
        max_lines=10,
        interactive=False,
    )
    files = gr.File(label="Files to download", file_count="multiple", interactive=False)
    with gr.Row():
        commands = [_command(recipe, makes) for recipe, makes in MAKES.items()]
    with gr.Accordion("What the files hold", open=False):
        gr.Markdown(FILES_TEXT)
    downloads = tempfile.TemporaryDirectory()  # Gradio hands out copies of what lies here

    def refresh() -> list[Any]:
        try:
            tally = store.tally()
        except ToolkitError as error:
            raise page_error(error, store.path.parent) from error
        return [gr.update(visible=not tally.judgements), count_rows(tally)]

    def write() -> list[Any]:
        folder = store.path.parent / FOLDER
        try:
            made = export(store.all())
            written = [shutil.copy(file, downloads.name) for file in made.write(folder)]
        except OSError as error:
            problem = DatasetError(f"{folder.name}: cannot be written ({error.strerror})")
            raise page_error(problem, store.path.parent) from error
        except ToolkitError as error:
            raise page_error(error, store.path.parent) from error
        lines = training_commands(
            folder,
            base=workbench.roles.fingerprint,
            parent=_first_sft(workbench.catalog),
            runs=workbench.runs,
        )
        return [
            *refresh(),
            _summary(made, folder),
            written or None,
            *(_line(lines, recipe, made) for recipe in MAKES),
        ]

    make.click(
        write, None, [empty, counts, said, files, *commands], api_name="export", concurrency_limit=1
    )
    tab.select(refresh, None, [empty, counts], api_visibility="private", show_progress="hidden")
    page.load(refresh, None, [empty, counts], api_visibility="private", show_progress="hidden")


def _command(recipe: str, makes: str) -> gr.Textbox:
    return gr.Textbox(
        label=f"Command for {makes}",
        info=f"On {TRAINS_ON[recipe]}; start it in the project's folder.",
        placeholder="Stands here after an export.",
        lines=3,
        max_lines=8,
        interactive=False,
        buttons=["copy"],
        min_width=300,
    )


def _line(lines: Mapping[str, str], recipe: str, made: Export) -> str:
    if not made.lines[TRAINS_ON[recipe]]:
        return "No comparison yet in which one answer is better: there is nothing to train on."
    start = "There is no SFT run to start from: make one with recipes/sft.py, then export again."
    return lines.get(recipe, start)


def _summary(made: Export, folder: Path) -> str:
    rows = [f"{name}: {len(found)} rows" for name, found in made.lines.items() if found]
    left = [f"left out, {why}: {n} judgements" for why, n in made.left_out.items()]
    where = f"Written to the folder {folder.name} beside the judgements"
    return "\n".join([where, *rows, *left] if rows or left else ["There is nothing to export yet."])


def _first_sft(catalog: Catalog) -> Path | None:
    """The run that training starts from: the first SFT run that is finished."""
    found = [e for e in catalog.checkpoints.values() if e.recipe == "sft" and e.path is not None]
    finished = [e for e in found if e.state == "finished"]
    return (finished or found)[0].path if found else None
