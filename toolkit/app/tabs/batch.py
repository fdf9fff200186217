"""The tab Batch: a file of prompts over several checkpoints, as a table and as files."""

import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from toolkit.app.answering import request as limits
from toolkit.app.answering.batch import (
    MAX_PROMPTS,
    BatchRow,
    answer_all,
    parse_prompts,
    prompt_line,
    to_csv,
    to_jsonl,
)
from toolkit.app.choices import reward_choices
from toolkit.app.tabs import parts
from toolkit.app.tabs.run_menus import REWARD_MENU, TEST_ROWS_MENU
from toolkit.app.texts import markdown, two_decimals
from toolkit.app.web.scripts import BATCH_FILE, BATCH_PROMPTS
from toolkit.errors import ConfigError

if TYPE_CHECKING:
    from toolkit.app.workbench import Workbench

UPDATE_S = 0.5
IDLE = "Choose prompts and checkpoints, then run the batch."
COLUMNS = {  # column -> type and width
    "#": ("number", "60px"),
    "Prompt": ("str", "260px"),
    "Checkpoint": ("str", "160px"),
    "Answer": ("str", "420px"),
    "Score": ("number", "90px"),
    "KL": ("number", "90px"),
    "Tokens": ("number", "90px"),
    "Ended": ("str", "110px"),
}


def batch_tab(page: gr.Blocks, workbench: "Workbench", prompts: Sequence[str] = ()) -> None:
    """Build the tab; `prompts` are those of the option `--prompts`."""
    gr.Markdown(markdown("batch"))
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=320):
            info = (
                f'One per line, or JSON lines with "prompt"; up to {MAX_PROMPTS} different ones. '
                "Paste them, open a file, or type."
            )
            text = gr.Textbox(
                label="Prompts",
                info=info,
                lines=8,
                max_lines=14,
                elem_id=BATCH_PROMPTS,
            )
            with gr.Row():
                gr.Button("Open a file", elem_id=BATCH_FILE)  # a script of the page reads it
                started_with = gr.Button("Prompts of --prompts", visible=bool(prompts))
                examples = gr.Button("Examples", visible=bool(workbench.examples()))
            info = "Fills in the prompts of the test split that a run recorded."
            held_out = gr.Dropdown(
                [], label="Held-out prompts of a run", info=info, elem_classes=TEST_ROWS_MENU
            )
        with gr.Column(scale=2, min_width=320):
            pool = parts.pool_list(page, workbench, f"Up to {limits.MAX_COLUMNS}.")
            rewards = reward_choices(workbench.catalog)
            reward = gr.Dropdown(
                rewards.choices,
                value=rewards.chosen[0] if workbench.ready else None,
                label="Reward model",
                info="Scores each answer.",
                elem_classes=REWARD_MENU,
            )
            with gr.Accordion("Sampling", open=False):
                temperature, tokens = parts.temperature_and_length()
                info = "The same for all prompts and checkpoints."
                seed = gr.Number(
                    0, precision=0, minimum=0, maximum=limits.MAX_SEED, label="Seed", info=info
                )
    with gr.Row():
        run = gr.Button("Run the batch", variant="primary")
        stop = gr.Button("Stop the batch")
    status = parts.status_box(IDLE)
    table = gr.Dataframe(
        headers=list(COLUMNS),
        datatype=[kind for kind, _ in COLUMNS.values()],
        column_widths=[width for _, width in COLUMNS.values()],
        interactive=False,
        wrap=True,
        max_height=560,
        label="Answers",
        elem_classes="ratings",
    )
    make = gr.Button("Make files (CSV, JSONL)")
    files = parts.downloadable("Files of the batch")
    rows: gr.State = gr.State([])
    downloads = tempfile.TemporaryDirectory()  # Gradio serves copies of these files

    def answer(
        lines: Any, chosen: Any, scorer: Any, heat: Any, length: Any, number: Any
    ) -> Iterator[list[Any]]:
        with parts.errors_as_toast():
            questions = parse_prompts(lines)
            ids = parts.pool_or_default(workbench, chosen)
            settings = {"temperature": heat, "max_new_tokens": length, "seed": number}
            settings["reward"] = parts.reward_or_default(workbench, scorer)
            total, shown = len(questions), 0.0
            answers: list[BatchRow] = []
            for answers in answer_all(workbench, questions, ids, **settings):
                if time.monotonic() - shown > UPDATE_S:
                    shown = time.monotonic()
                    done = f"{len(answers)} of {total * len(ids)} answers…"
                    yield [answers, gr.update(value=_cells(answers)), done]
            yield [answers, gr.update(value=_cells(answers)), f"{len(answers)} answers: complete."]

    def take_held_out(id: Any) -> list[str]:
        with parts.errors_as_toast(workbench.runs):
            of_run = workbench.held_out_prompts(id)
        return _filled(of_run, "held-out prompts")

    def write(answers: list[BatchRow]) -> list[str]:
        with parts.errors_as_toast():
            if not answers:
                raise ConfigError("there are no answers yet: run the batch first")
        folder = Path(tempfile.mkdtemp(dir=downloads.name))
        for name, content in (("batch.csv", to_csv(answers)), ("batch.jsonl", to_jsonl(answers))):
            (folder / name).write_text(content, encoding="utf-8")
        return [str(folder / name) for name in ("batch.csv", "batch.jsonl")]

    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    started_with.click(lambda: _filled(prompts, "prompts"), None, [text, status], **private)
    examples.click(
        lambda: _filled(workbench.examples(), "examples"), None, [text, status], **private
    )
    held_out.input(take_held_out, held_out, [text, status], api_name="held_out")
    streaming: dict[str, Any] = {"concurrency_limit": None, "show_progress": "minimal"}
    inputs = [text, pool, reward, temperature, tokens, seed]
    running = run.click(answer, inputs, [rows, table, status], api_name="batch", **streaming)
    stopped = "Stopped. The table has the answers so far."
    stop.click(
        lambda: stopped, None, status, cancels=[running], queue=False, api_visibility="private"
    )
    made = make.click(write, rows, files, api_name="batch_files")
    made.success(lambda: gr.update(visible=True), None, files, **private)


def _filled(prompts: Sequence[str], kind: str) -> list[str]:
    """The text of the prompts' field, and a status with their number."""
    shown = [prompt_line(prompt) for prompt in prompts[:MAX_PROMPTS]]
    count = (
        len(shown) if len(shown) == len(prompts) else f"The first {MAX_PROMPTS} of {len(prompts)}"
    )
    return ["\n".join(shown), f"{count} {kind}."]


def _cells(rows: Sequence[BatchRow]) -> list[list[Any]]:
    return [
        [
            *(row.number, row.prompt, row.checkpoint, row.answer or row.problem),
            *(None if n is None else float(two_decimals(n)) for n in (row.score, row.kl)),
            *(row.tokens, "error" if row.problem else "yes" if row.ended else "no, cut off"),
        ]
        for row in rows
    ]
